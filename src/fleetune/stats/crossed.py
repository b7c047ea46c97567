"""The variance of a mean over seeds and examples, and of weighted sums of such means.

Notation: G groups (methods, or ranks), S_g seeds (trainings) of group g, n examples, the same for all groups. Scores of a
group are [S_g, n], one number for each training and example; leading axes are allowed and kept, for simulations.

Model: y_gsi = m_g + seed_gs + example_gi + rest_gsi. Trainings of two groups are independent, examples are shared, so that
example effects of different groups may be correlated in any way. A contrast is d = sum_g w_g mean_g, with

    Var d = sum_g w_g^2 s2_g / S_g + s2_examples / n - sum_g w_g^2 r_g / (S_g n)

s2_g: variance of the seeds' means; s2_examples: variance over examples of sum_g w_g (mean over seeds); r_g: residual mean
square of the two-way layout of group g. Each of the first two holds the residual once, so their plain sum counts it twice;
the last term takes one out, which makes the estimate unbiased. It never goes below the residual's own share. Degrees of
freedom after Satterthwaite (1946), with the variance of each of these mean squares.

Sources: Searle, Casella, McCulloch, "Variance Components" (1992), section 4 (two-way layout); Satterthwaite 1946
(doi:10.2307/3002019); the same split for reader studies in Obuchowski and Rockette 1995. Simulations: docs/statistics.md.
Assumes: examples are a random sample of those that matter; seeds are independent, also across groups. Where two methods share
what a seed sets (the inner split), their difference varies less than this says, and the interval is a little wide.
Not covered: groups of examples that belong together (several pairs with one premise); they make every interval too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contrast:
    """A weighted sum of means: value, variance, degrees of freedom, each an array over the leading axes (or a scalar)."""

    value: Floats
    variance: Floats
    freedom: Floats


@dataclass(frozen=True, slots=True)
class Components:
    """Where the variance of the difference of two methods comes from: variances of one draw, none below 0."""

    seed_a: float
    """Variance between trainings of A, of their expected score."""
    seed_b: float
    examples: float
    """Variance over examples of the difference of the expected scores of A and B."""
    residual_a: float
    """Variance of what is left: a training's score on an example beyond both effects."""
    residual_b: float
    seeds_a: int
    """Trainings that these were estimated from."""
    seeds_b: int
    n: int


def checked(name: str, scores: ArrayLike) -> Floats:
    """Scores as float64 [seeds, examples]; ValueError where they are none, and for fewer than two examples."""
    array: NDArray[Any] = np.asarray(scores)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"`{name}` must be an array of booleans or numbers, but its dtype is {array.dtype}."
        )
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"`{name}` must be [seeds, examples] and not empty, but its shape is {array.shape}."
        )
    if array.shape[1] < 2:
        raise ValueError(
            f"`{name}` must hold at least 2 examples, but has {array.shape[1]}; one says nothing about others."
        )
    found = array.astype(np.float64)
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found)).sum())
        raise ValueError(
            f"`{name}` must be finite, but {bad} of its scores are not; count a training that diverged as wrong "
            "on every example, do not drop it."
        )
    return found


def checked_pair(scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[Floats, Floats]:
    """Two methods' scores on the same examples; ValueError where the numbers of examples differ."""
    a, b = checked("correct_a", scores_a), checked("correct_b", scores_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            "both sides must be scored on the same examples in the same order, but A has "
            f"{a.shape[1]} and B has {b.shape[1]}."
        )
    return a, b


def residual_mean_square(scores: Floats) -> Floats:
    """What seed and example means leave over, per degree of freedom; 0 for one seed. scores [..., S, n]."""
    seeds, n = scores.shape[-2:]
    if seeds < 2:
        return np.zeros(scores.shape[:-2])
    left = scores - scores.mean(-1, keepdims=True) - scores.mean(-2, keepdims=True)
    left += scores.mean((-2, -1), keepdims=True)
    return np.square(left).sum((-2, -1)) / ((seeds - 1) * (n - 1))


def contrast(groups: Sequence[Floats], weights: Sequence[float]) -> Contrast:
    """The weighted sum of the groups' means, with its variance; the formula is at the top of this module.

    groups: G arrays [..., S_g, n]. A group of one seed adds no variance between seeds: what comes out is then about that one
    training, and the caller must say so.
    """
    n = groups[0].shape[-1]
    by_example = sum((w * g.mean(-2) for w, g in zip(weights, groups, strict=True)), np.zeros(n))
    examples = by_example.var(-1, ddof=1) / n
    variance, spread = examples, examples**2 / (n - 1)
    least = np.zeros_like(examples)
    for weight, scores in zip(weights, groups, strict=True):
        seeds = scores.shape[-2]
        if seeds < 2:
            continue
        between = weight**2 * scores.mean(-1).var(-1, ddof=1) / seeds
        residual = weight**2 * residual_mean_square(scores) / (seeds * n)
        variance = variance + between - residual
        spread = spread + between**2 / (seeds - 1) + residual**2 / ((seeds - 1) * (n - 1))
        least = least + residual
    variance = np.maximum(variance, least)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(spread > 0, variance**2 / spread, n - 1)
    value = sum(w * g.mean((-2, -1)) for w, g in zip(weights, groups, strict=True))
    # Below 1 the t distribution has quantiles in the hundreds; seen with two or three seeds only.
    return Contrast(np.asarray(value), variance, np.maximum(freedom, 1.0))


def components(scores_a: ArrayLike, scores_b: ArrayLike) -> Components:
    """Estimated variance components of the difference of two methods; each is cut at 0.

    scores_a, scores_b: [S, n] of booleans or numbers, same examples. Needs two seeds a side: with one, seed and residual
    variance cannot be told apart (ValueError).
    """
    a, b = checked_pair(scores_a, scores_b)
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"variance components need at least 2 seeds a side, but got {len(a)} and {len(b)}."
        )
    n = a.shape[1]
    rest_a, rest_b = float(residual_mean_square(a)), float(residual_mean_square(b))
    between_a, between_b = (float(x.mean(1).var(ddof=1)) for x in (a, b))
    over = float((b.mean(0) - a.mean(0)).var(ddof=1))
    return Components(
        seed_a=max(between_a - rest_a / n, 0.0),
        seed_b=max(between_b - rest_b / n, 0.0),
        examples=max(over - rest_a / len(a) - rest_b / len(b), 0.0),
        residual_a=rest_a,
        residual_b=rest_b,
        seeds_a=len(a),
        seeds_b=len(b),
        n=n,
    )
