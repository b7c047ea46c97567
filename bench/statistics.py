"""How often each way of comparing two methods is wrong, on simulated studies whose truth is known.

Prints the tables of docs/statistics.md, or writes them there; about five minutes on one thread.

    OMP_NUM_THREADS=1 python -m bench.statistics [--studies 2000] [--write docs/statistics.md]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.simulated import NOISES, simulate
from fleetune.seeds import stream
from fleetune.stats.compare import Comparison, compare
from fleetune.stats.crossed import contrast
from fleetune.stats.scores import compare_scores

Rejections = NDArray[np.bool_]
Answers = NDArray[np.bool_]
CHUNK = 100
REGIMES: tuple[tuple[str, tuple[int, int], int, float], ...] = (
    *(
        (noise, (seeds, seeds), n, accuracy)
        for noise in ("calm", "noisy")
        for n, accuracy in ((277, 0.7), (872, 0.92))
        for seeds in (5, 10)
    ),
    *((noise, (seeds, seeds), 277, 0.7) for noise in ("calm", "noisy") for seeds in (3, 20)),
    ("noisy", (5, 20), 277, 0.7),
    ("wild", (10, 10), 277, 0.7),
    ("wild", (5, 20), 277, 0.92),
    ("no seed effect", (5, 5), 277, 0.7),
    ("rest only", (5, 5), 277, 0.7),
    ("rest only", (10, 10), 277, 0.7),
)
BEGIN, END = "<!-- printed by bench/statistics.py -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Budget:
    """How many studies: of the cheap tests, and of those with a bootstrap each."""

    studies: int
    resampled: int


def studies(
    name: str, regime: tuple[str, tuple[int, int], int, float], count: int, difference: float = 0.0
) -> Iterator[tuple[Answers, Answers]]:
    """Simulated studies in chunks that fit the memory."""
    noise, seeds, n, accuracy = regime
    draw = stream(0, name, noise, *seeds, n)
    for _ in range(max(1, count // CHUNK)):
        yield simulate(
            draw,
            min(CHUNK, count),
            seeds,
            n,
            NOISES[noise],
            accuracy=accuracy,
            difference=difference,
        )


def crossed_t(a: Answers, b: Answers, truth: float = 0.0) -> Rejections:
    """`compare`'s test that the difference is `truth`, for many studies at once."""
    found = contrast((a.astype(np.float64), b.astype(np.float64)), (-1.0, 1.0))
    limit = stats.t.isf(0.025, found.freedom)
    return np.abs(found.value - truth) > limit * np.sqrt(found.variance)


def plain_sum(a: Answers, b: Answers) -> Rejections:
    """The crossed test without taking the residual out once: s2_A / S + s2_B / S + s2_examples / n."""
    parts = [(x.mean(2).var(1, ddof=1) / x.shape[1], x.shape[1] - 1) for x in (a, b)]
    gap = b.mean(1) - a.mean(1)
    parts.append((gap.var(1, ddof=1) / gap.shape[1], gap.shape[1] - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    return np.abs(gap.mean(1)) > stats.t.isf(0.025, freedom) * np.sqrt(variance)


def over_seeds(a: Answers, b: Answers) -> Rejections:
    """Welch's t-test on the accuracies of the trainings."""
    with warnings.catch_warnings():
        # Trainings that all score the same have no t; nan is below nothing.
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Any = stats.ttest_ind(b.mean(2), a.mean(2), axis=1, equal_var=False)
        return found.pvalue < 0.05


def over_examples(a: Answers, b: Answers) -> Rejections:
    """The paired t-test on each example's mean over trainings."""
    found: Any = stats.ttest_rel(b.mean(1), a.mean(1), axis=1)
    return found.pvalue < 0.05


def mcnemar(a: Answers, b: Answers) -> Rejections:
    """Exact McNemar on the first training of each."""
    only_a, only_b = (a[:, 0] & ~b[:, 0]).sum(1), (b[:, 0] & ~a[:, 0]).sum(1)
    p = 2 * stats.binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5)
    return p < 0.05


def bootstrap(a: Answers, b: Answers) -> Rejections:
    """The crossed percentile bootstrap that `compare` gives as its check."""
    found = [compare(x, y, resamples=500) for x, y in zip(a, b, strict=True)]
    return np.array([leaves_out_0(c) for c in found])


def leaves_out_0(c: Comparison) -> bool:
    """Whether the bootstrap's interval says that there is a difference."""
    if c.bootstrap_low is None or c.bootstrap_high is None:
        return False
    return not c.bootstrap_low <= 0 <= c.bootstrap_high


WAYS = (crossed_t, plain_sum, over_seeds, over_examples, mcnemar)


def null_row(regime: tuple[str, tuple[int, int], int, float], budget: Budget) -> list[str]:
    """One regime: how often each way finds a difference where there is none, in percent, and coverage at +3 points."""
    noise, seeds, n, accuracy = regime
    hits: dict[str, list[Rejections]] = {way.__name__: [] for way in WAYS}
    spread: list[float] = []
    for a, b in studies("null", regime, budget.studies):
        for way in WAYS:
            hits[way.__name__].append(way(a, b))
        spread.append(float(np.sqrt(a.mean(2).var(1, ddof=1).mean())))
    resampled = [bootstrap(a, b) for a, b in studies("null", regime, budget.resampled)]
    missed: list[Rejections] = []
    found: list[Rejections] = []
    for a, b in studies("three", regime, budget.studies, 0.03):
        missed.append(crossed_t(a, b, 0.03))
        found.append(crossed_t(a, b))
    trainings = str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]}"
    return [
        noise,
        f"{100 * float(np.mean(spread)):.1f}",
        f"{100 * accuracy:.0f}",
        str(n),
        trainings,
        f"**{percent(hits['crossed_t'])}**",
        f"{100 - float(percent(missed)):.1f}",
        percent(found),
        percent(hits["plain_sum"]),
        percent(resampled),
        percent(hits["over_seeds"]),
        percent(hits["over_examples"]),
        percent(hits["mcnemar"]),
    ]


def percent(hits: list[Rejections]) -> str:
    return f"{100 * float(np.concatenate(hits).mean()):.1f}"


def score_row(metric: str, noise: str, seeds: int, budget: Budget) -> list[str]:
    """A metric that is no mean, 408 examples, 69 % of one class: how often each way finds a difference that is none."""
    draw = stream(0, "labels", metric, noise, seeds)
    regime = (noise, (seeds, seeds), 408, 0.8)
    by_t: list[bool] = []
    by_bootstrap: list[bool] = []
    for a, b in studies("scores", regime, budget.resampled):
        for right_a, right_b in zip(a, b, strict=True):
            y = (draw.random(408) < 0.69).astype(np.int64)
            one, other = (np.where(right, y, 1 - y) for right in (right_a, right_b))
            c = compare_scores(metric, one, other, y, resamples=500)
            by_t.append(c.p_value < 0.05)
            by_bootstrap.append(leaves_out_0(c))
    return [
        metric,
        noise,
        str(seeds),
        f"**{percent([np.array(by_t)])}**",
        percent([np.array(by_bootstrap)]),
    ]


def shared_row(noise: str, correlation: float, budget: Budget) -> list[str]:
    """What a seed sets alike for both methods: the interval becomes too wide."""
    draw = stream(0, "shared", noise, str(correlation))
    hits = [
        crossed_t(*simulate(draw, CHUNK, (10, 10), 277, NOISES[noise], shared_seed=correlation))
        for _ in range(max(1, budget.studies // CHUNK))
    ]
    return [noise, f"{correlation:g}", f"**{percent(hits)}**"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(budget: Budget) -> str:
    """All tables, each with a line that says what it shows."""
    nulls = table(
        ["trainings", "SD, points", "accuracy", "n", "seeds", "**crossed t**", "its coverage", "its power, +3 points",
         "plain sum", "crossed bootstrap", "Welch over seeds", "t over examples", "McNemar, 1 seed"],
        [null_row(regime, budget) for regime in REGIMES],
    )  # fmt: skip
    scores = table(
        ["metric", "trainings", "seeds", "**crossed t on pseudo-values**", "crossed bootstrap"],
        [
            score_row(metric, noise, seeds, budget)
            for metric in ("matthews_correlation", "f1")
            for noise in ("calm", "noisy", "wild")
            for seeds in (5, 10)
        ],
    )
    shared = table(
        ["trainings", "correlation of what a seed does to A and to B", "**crossed t**"],
        [shared_row(noise, c, budget) for noise in ("calm", "noisy") for c in (0.0, 0.5, 0.9)],
    )
    return (
        f"Percent of {budget.studies} simulated studies ({budget.resampled} for the bootstrap) in which each way finds a "
        f"difference at 5 %, both methods being equally good:\n\n{nulls}\n\n"
        f"The same for metrics that are no mean, {budget.resampled} studies a row:\n\n{scores}\n\n"
        f"And where equal seeds act alike on both methods, 10 seeds, 277 examples:\n\n{shared}\n"
    )


def put(text: str, page: Path | None, begin: str, end: str) -> None:
    """Print a text, or write it into a page between two marks."""
    if page is None:
        print(text)
        return
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--resampled", type=int, default=400)
    parser.add_argument("--write", type=Path, help="a page whose marked part is replaced")
    args = parser.parse_args()
    began = time.perf_counter()
    text = tables(Budget(args.studies, args.resampled))
    put(text, args.write, BEGIN, END)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
