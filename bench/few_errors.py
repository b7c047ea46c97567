"""How often claims are wrong where nearly all is right or nearly nothing differs, on simulated studies whose truth is known.

Prints tables of docs/statistics.md, or writes them there; about two minutes on one thread.

    OMP_NUM_THREADS=1 python -m bench.few_errors [--studies 2000] [--write docs/statistics.md]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy import stats

from bench.simulated import METHOD_BY_EXAMPLE, NOISES, simulate
from bench.statistics import put, table
from fleetune.records import Estimate
from fleetune.seeds import stream
from fleetune.stats.compare import MARGIN, compare
from fleetune.stats.crossed import contrast
from fleetune.stats.intervals import accuracy_estimate
from fleetune.stats.models import compare_models
from fleetune.stats.rank import rank_trend

NOISE = NOISES["calm"]
BEGIN, END = "<!-- printed by bench/few_errors.py -->", "<!-- end of few errors -->"
EQUIVALENCE = (
    (10, 50, 0.975, MARGIN), (10, 100, 0.98, MARGIN), (10, 277, 0.98, MARGIN), (5, 277, 0.985, MARGIN),
    (10, 872, 0.98, MARGIN), (10, 872, 0.98, 0.0), (10, 1500, 0.9, 0.0),
)  # fmt: skip
COVERAGE = (
    (2, 100, 0.9), (3, 277, 0.7), (5, 50, 0.95), (10, 50, 0.95), (10, 50, 0.98), (5, 100, 0.98), (10, 100, 0.98), (10, 20, 0.95),
    (5, 277, 0.98), (10, 277, 0.98), (5, 277, 0.8), (10, 872, 0.92),
)  # fmt: skip
FILES = ((350, MARGIN, 0.0), (408, MARGIN, 0.0), (872, MARGIN, 0.0), (1821, 0.01, 0.01), (1821, 0.02, 0.02))  # fmt: skip


def percent(found: list[bool]) -> str:
    """Of so many studies."""
    return f"{100 * float(np.mean(found)):.1f}"


def holds(found: Estimate, truth: float) -> bool:
    """Whether an interval has the truth in it."""
    assert found.low is not None and found.high is not None
    return found.low <= truth <= found.high


def by_t_alone(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two one-sided t tests at 5 % put the difference within the margin, and none finds a difference."""
    found = contrast((a.astype(np.float64), b.astype(np.float64)), (-1.0, 1.0))
    gap, error, freedom = float(found.value), float(found.variance) ** 0.5, float(found.freedom)
    if error == 0.0:
        return gap == 0 and (1 - MARGIN) ** a.shape[1] < 0.05
    close = stats.t.sf((MARGIN - abs(gap)) / error, freedom) < 0.05
    return bool(close and 2 * stats.t.sf(abs(gap) / error, freedom) >= 0.05)


def plain_holds(correct: np.ndarray, truth: float) -> bool:
    """Whether the sum of both variances gives an interval with the truth in it, of the table as it is."""
    seeds, n = correct.shape
    if correct.all():
        return holds(accuracy_estimate(correct), truth)
    parts = [
        (correct.mean(1).var(ddof=1) / seeds, seeds - 1),
        (correct.mean(0).var(ddof=1) / n, n - 1),
    ]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    return bool(abs(correct.mean() - truth) <= stats.t.isf(0.025, freedom) * variance**0.5)


def equivalence_row(seeds: int, n: int, accuracy: float, difference: float, studies: int) -> list[str]:  # fmt: skip
    draw = stream(1, "few errors", "equivalence", seeds, n, round(1000 * difference))
    a, b = simulate(draw, studies, (seeds, seeds), n, NOISE, accuracy=accuracy, difference=difference)  # fmt: skip
    pairs = list(zip(a, b, strict=True))
    said = [compare(x, y, resamples=2).verdict == "equivalent" for x, y in pairs]
    alone = [by_t_alone(x, y) for x, y in pairs]
    given = [str(seeds), str(n), f"{100 * accuracy:g}", f"{100 * difference:g}"]
    return [*given, percent(alone), f"**{percent(said)}**"]


def coverage_row(seeds: int, n: int, accuracy: float, studies: int) -> list[str]:
    draw = stream(1, "few errors", "coverage", seeds, n, round(1000 * accuracy))
    found, _ = simulate(draw, studies, (seeds, 1), n, NOISE, accuracy=accuracy)
    estimates = [accuracy_estimate(one) for one in found]
    held = [holds(e, accuracy) for e in estimates]
    plain = [plain_holds(one, accuracy) for one in found]
    return [str(seeds), str(n), f"{100 * accuracy:g}", percent(plain), f"**{percent(held)}**"]


def files_row(n: int, only_a: float, only_b: float, studies: int) -> list[str]:
    draw = stream(1, "few errors", "files", n, round(1000 * only_b))
    said, torn = [], []
    for _ in range(studies):
        u = draw.random(n)
        a, b = u >= only_b, ~((u >= only_b) & (u < only_b + only_a))
        found = compare_models(a, b, resamples=2000)
        said.append(found.verdict == "equivalent")
        assert found.low is not None and found.high is not None
        torn.append((not found.low <= 0 <= found.high) != (found.verdict in ("better", "worse")))
    return [str(n), f"{100 * only_a:g}", f"{100 * only_b:g}", f"**{percent(said)}**", percent(torn)]


def ranks(studies: int) -> str:
    """Six equal ranks, five seeds, 277 rows."""
    draw = stream(1, "few errors", "ranks")
    slope, some = [], []
    for _ in range(studies):
        easy = draw.standard_normal(277)
        level = float(stats.norm.ppf(0.7)) * NOISE.total
        of: dict[int, np.ndarray] = {}
        for r in (1, 2, 4, 8, 16, 32):
            latent = level + easy + METHOD_BY_EXAMPLE**0.5 * draw.standard_normal(277)
            latent = latent + NOISE.seed * draw.standard_normal((5, 1))
            of[r] = latent + NOISE.rest * draw.standard_normal((5, 277)) > 0
        found = rank_trend(of, resamples=2)
        slope.append(found.p_value < 0.05)
        some.append(any(m.p_holm < 0.05 for m in found.contrasts.members))
    either = [one or other for one, other in zip(slope, some, strict=True)]
    return (
        f"a slope is found in {percent(slope)} %, a rank that differs in {percent(some)} %, "
        f"one or the other in {percent(either)} %"
    )


def tables(studies: int) -> str:
    """All tables, each with a line that says what it shows."""
    equivalence = table(
        ["seeds", "n", "accuracy", "true difference, points", "t alone", "**as `compare` says it**"],
        [equivalence_row(*row, studies) for row in EQUIVALENCE],
    )  # fmt: skip
    coverage = table(
        ["seeds", "n", "accuracy", "the table as it is", "**with four rows more**"],
        [coverage_row(*row, studies) for row in COVERAGE],
    )
    files = table(
        ["n", "only A right, %", "only B right, %", "**said equivalent**", "interval and p differ about 0"],
        [files_row(*row, studies) for row in FILES],
    )  # fmt: skip
    return (
        f"Percent of {studies} simulated studies with calm trainings in which two methods are called equivalent by a margin of "
        f"1 point:\n\n{equivalence}\n\n"
        f"And in which the 95 % interval of an accuracy over several seeds holds it:\n\n{coverage}\n\n"
        f"And of two saved models:\n\n{files}\n\nOf as many studies of six equal ranks (5 seeds, 277 rows) {ranks(studies)}.\n"
    )


def main() -> None:
    """Print, or write into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--write", type=Path, help="a page whose marked part is replaced")
    args = parser.parse_args()
    began = time.perf_counter()
    text = tables(args.studies)
    put(text, args.write, BEGIN, END)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
