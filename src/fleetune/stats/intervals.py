"""Intervals for the score of one method on one test set.

Notation: S seeds (trainings), n examples; `correct` is a boolean array [S, n] on the same examples for every seed.

What an interval is about: with one seed, that one model on new examples, nothing about other seeds; with several, the
method over new seeds and new examples. numpy and scipy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fleetune.records import Estimate
from fleetune.seeds import stream
from fleetune.stats.bootstrap import CELLS, Floats, Scorer, draw_weights
from fleetune.stats.compare import LEVEL, NO_VARIATION, nothing_varies, t_half
from fleetune.stats.crossed import contrast
from fleetune.stats.scores import ON_PSEUDO_VALUES, pseudo_values
from fleetune.stats.weighted import RANGES, Score, scorer_of

RESAMPLES = 2000
# Below this all resamples had one score, up to rounding.
_ROUNDING = 1e-12


def accuracy_estimate(correct: NDArray[np.bool_], *, optimistic: bool = False) -> Estimate:
    """Mean accuracy with its 95 % interval.

    One seed: Wilson's score interval over examples (Wilson 1927). More: `Var = s2_seeds / S + s2_examples / n` with
    Satterthwaite's degrees of freedom, where s2_seeds is the variance of the seeds' means and s2_examples that of the
    examples' means; it counts the residual variance twice and so errs on the wide side. Its middle and its variances are those of
    four examples more, two right and two wrong in every training, as Agresti and Coull (1998) have it for one share: without
    them 95 % are 82 to 93 % where nearly all is right, or wrong, on up to 300 examples. Where every answer
    is right, or every one is wrong, nothing varies, and Wilson's interval over examples stands in.
    Misleads: with fewer than five seeds the spread between seeds is hardly known, and the interval is wide or lucky.
    """
    if correct.ndim != 2 or 0 in correct.shape:
        raise ValueError(
            f"`correct` must be [seeds, examples] and not empty, but got {correct.shape}."
        )
    seeds, n = correct.shape
    value = float(correct.mean())
    if seeds == 1:
        low, high = wilson(value * n, n)
        return Estimate(value, low, high, n, 1, "95% Wilson over examples, one seed", optimistic)
    if correct.all() or not correct.any():
        # No spread to go by, and no certainty either.
        low, high = wilson(value * n, n)
        return Estimate(
            value, low, high, n, seeds, "95% Wilson over examples, seeds agree", optimistic
        )
    more = np.column_stack([correct, np.tile([True, True, False, False], (seeds, 1))])
    half = _half_width(
        (
            (float(more.mean(1).var(ddof=1)) / seeds, seeds - 1),
            (float(more.mean(0).var(ddof=1)) / (n + 4), n + 3),
        )
    )
    middle = float(more.mean())
    return Estimate(
        value,
        max(0.0, min(middle - half, value)),
        min(1.0, max(middle + half, value)),
        n,
        seeds,
        "95% over seeds and examples",
        optimistic,
    )


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): unlike the normal one it holds up at 0, at 1 and for few examples.

    Its ends hold the share even where rounding would leave it out.
    """
    found = stats.binomtest(round(right), n).proportion_ci(LEVEL, method="wilson")
    share = round(right) / n
    return min(float(found.low), share), max(float(found.high), share)


def _half_width(parts: tuple[tuple[float, int], ...]) -> float:
    variance = sum(part for part, _ in parts)
    if variance == 0.0:
        return 0.0
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * variance**0.5


def score_estimate(
    score: Score, outputs: NDArray[Any], labels: NDArray[Any], *, optimistic: bool = False
) -> Estimate:
    """The mean over seeds of a score that is no mean over examples (F1, Matthews, Pearson), with a 95 % interval.

    score: the name of one (`weighted.SCORERS`, fast), or a function of (outputs [n, ...], labels [n]). outputs: [S, n] classes or
    values for a named score, [S, n, ...] for a function. Several seeds: the crossed t of jackknife pseudo-values, as comparisons
    have it (stats/scores.py), over seeds and examples. One seed: the percentile bootstrap over examples. Where nothing varies, as
    with constant answers or where none is wrong, there is no interval, and `how` says so.
    Misleads: with two or three noisy trainings, whose scores are skewed, it holds the truth in 83 to 94 of 100 cases; near the
    end of a score's range it is cut there; and as `compare_scores`.
    """
    seeds, n = outputs.shape[:2]
    scorer = scorer_of(score, outputs, labels)
    whole: Floats = scorer(np.ones((1, n)))[0]
    value = float(whole.mean())
    how = f"95% {ON_PSEUDO_VALUES} over seeds and examples"
    if seeds == 1:
        ends, how = _bootstrap(scorer, n), "95% bootstrap over examples, one seed"
    else:
        # Of a single example nothing can be left out.
        ends = _crossed_t(pseudo_values(scorer, whole, n), value) if n > 1 else None
    if ends is None:
        return Estimate(value, None, None, n, seeds, NO_VARIATION, optimistic)
    least, most = (
        RANGES.get(score, (-np.inf, np.inf)) if isinstance(score, str) else (-np.inf, np.inf)
    )
    return Estimate(value, max(ends[0], least), min(ends[1], most), n, seeds, how, optimistic)


def _crossed_t(pseudo: Floats, value: float) -> tuple[float, float] | None:
    if nothing_varies((pseudo,), (1.0,)):
        return None
    found = contrast((pseudo,), (1.0,))
    half = t_half(float(found.variance) ** 0.5, float(found.freedom), LEVEL)
    return value - half, value + half


def _bootstrap(scorer: Scorer, n: int) -> tuple[float, float] | None:
    """The percentile interval of one training's score over examples."""
    draw = stream(0, "bootstrap", "examples", n)
    step = max(1, CELLS // n)
    sizes = (min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step))
    values = np.concatenate([scorer(draw_weights(draw, size, n))[:, 0] for size in sizes])
    low, high = np.nanpercentile(values, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return None if high - low <= _ROUNDING else (float(low), float(high))


def metric_estimate(
    metric: str, outputs: NDArray[Any], labels: NDArray[Any], *, optimistic: bool = False
) -> Estimate:
    """A metric of data/metrics.py from what models gave: outputs [S, n, C] logits, or [S, n, 1] values of a regression."""
    if metric == "accuracy":
        correct = outputs.argmax(-1) == labels.astype(np.int64)[None]
        return accuracy_estimate(correct, optimistic=optimistic)
    said, truth = said_of(outputs), labels
    if outputs.shape[-1] > 1:
        truth = labels.astype(np.int64)
    return score_estimate(metric, said, truth, optimistic=optimistic)


def said_of(outputs: NDArray[Any]) -> NDArray[Any]:
    """The classes of logits [..., C], or the values [..., 1] of a regression: [...]."""
    return outputs.argmax(-1) if outputs.shape[-1] > 1 else outputs[..., 0].astype(np.float64)
