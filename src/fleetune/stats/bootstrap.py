"""The crossed bootstrap: every resample draws trainings of each side and examples, the examples once for all.

Notation: R resamples, S = S_A + S_B trainings of both sides, n examples. Example weights [R, n] say how often each example was
drawn; `Scorer` turns them into scores [R, S], so that a resample is a row of a matrix product and not a pass of a Python loop.

Source: Sellam et al. 2022, "The MultiBERTs" (arXiv:2106.16163), section 4; Owen 2007 (doi:10.1214/07-AOAS122): the bootstrap of
both axes is conservative, it counts the residual more than once. Efron and Tibshirani 1993 for the percentile interval.
Misleads: with few trainings the spread between them comes out too small by (S - 1) / S, and the normal rather than the t
quantile is used in effect; both make the interval short, where Owen's effect makes it long.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fleetune.seeds import stream

Floats = NDArray[np.float64]
Scorer = Callable[[Floats], Floats]
RESAMPLES = 10_000
# Example weights held at one time: 4 million float64 are 32 MB, about what a processor's last cache holds.
CELLS = 4_000_000


def draw_weights(draw: np.random.Generator, resamples: int, n: int) -> Floats:
    """How often each of n things was drawn in n draws with replacement: [resamples, n], each row sums to n."""
    drawn = draw.integers(0, n, (resamples, n))
    drawn += np.arange(resamples)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(np.float64)


def mean_scorer(scores: Floats) -> Scorer:
    """Weighted means over examples of scores [S, n]."""
    return lambda weights: weights @ scores.T / scores.shape[1]


def crossed_differences(
    scorer: Scorer, seeds_a: int, seeds_b: int, n: int, *, resamples: int, seed: int
) -> Floats:
    """Resampled differences of B from A, [R]. scorer: of all trainings, those of A first."""
    if resamples < 1:
        raise ValueError(f"`resamples >= 1` must hold, but got {resamples}.")
    draw_a, draw_b = (stream(seed, "bootstrap", side, seeds_a, seeds_b) for side in "ab")
    weights_a = draw_weights(draw_a, resamples, seeds_a) / seeds_a
    weights_b = draw_weights(draw_b, resamples, seeds_b) / seeds_b
    draw = stream(seed, "bootstrap", "examples", n)
    found = np.empty(resamples)
    step = max(1, CELLS // n)
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        scores = scorer(draw_weights(draw, part.stop - part.start, n))
        found[part] = (weights_b[part] * scores[:, seeds_a:]).sum(1)
        found[part] -= (weights_a[part] * scores[:, :seeds_a]).sum(1)
    return found


def percentile(values: Floats, level: float) -> tuple[float, float]:
    """The middle `level` of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def same_side(low: float, high: float, other_low: float, other_high: float) -> bool:
    """Whether two intervals say the same about 0: both above, both below, or both holding it."""
    return (low > 0, high < 0) == (other_low > 0, other_high < 0)
