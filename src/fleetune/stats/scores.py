"""Method against method by a metric that is no mean over examples: F1, Matthews, Pearson, Spearman.

Notation: S trainings, n examples, C classes; outputs [S, n] (class or value) or logits [S, n, C].

Two ways from the same resampling idea, both in the record. The crossed paired bootstrap (stats/bootstrap.py) gives
`bootstrap_low` and `bootstrap_high`, percentile: BCa corrects skew, but what is wrong with five trainings is their number and
not skew, and it cannot give a p-value at 5 trainings' freedom. So the interval and the tests proper are those of
stats/compare.py on jackknife pseudo-values: p_si = n t_s - (n - 1) t_s(without example i), whose mean is the score less its
bias and which vary over examples as the score does. Where the metric is a mean they are the scores themselves, so this is
`compare` exactly. docs/statistics.md has the rates of both ways.

Sources: Tukey 1958 and Miller 1974 for pseudo-values; Sellam et al. 2022 (arXiv:2106.16163) for the crossed bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fleetune.stats.bootstrap import (
    RESAMPLES,
    Floats,
    Scorer,
    crossed_differences,
    percentile,
)
from fleetune.stats.compare import (
    LEVEL,
    MARGIN,
    NO_VARIATION,
    Comparison,
    Outcome,
    assemble,
    cautious,
    check_settings,
    nothing_varies,
    over_what,
    t_test,
)
from fleetune.stats.crossed import contrast
from fleetune.stats.weighted import Score, scorer_of

# A function is called resamples x trainings times in Python.
RESAMPLES_OF_FUNCTION = 2_000
ON_PSEUDO_VALUES = "crossed t on jackknife pseudo-values"
_CELLS = 4_000_000


def compare_scores(
    score: Score,
    outputs_a: ArrayLike,
    outputs_b: ArrayLike,
    labels: ArrayLike,
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
    resamples: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare two methods by the mean over trainings of any score of (outputs, labels).

    score: "accuracy", "f1", "f1_macro", "matthews_correlation", "pearson", "spearmanr" (fast), or a function of (outputs
    [n, ...], labels [n]) that takes repeated rows. outputs_a, outputs_b: [S_A, n], [S_B, n] of classes or values, or logits with
    a last axis more. labels: [n]. margin: in the unit of the score. resamples: 10,000, for a function 2,000.
    Assumes: as `compare`; and a score that is smooth in the weights of the examples, as all the named are.
    Misleads: as `compare`; for scores of few examples (F1 of a class with under about 30) skew is left in the interval; for
    scores that hang on single examples, such as a median, pseudo-values are wrong and only the bootstrap is to be trusted.
    Raises ValueError for shapes that do not fit, values that are not finite, an unknown score, or a score that is nan.
    """
    found = tested(score, outputs_a, outputs_b, labels, margin, level)
    seeds_a, seeds_b = len(found.of_a), len(found.of_b)
    draws = crossed_differences(
        found.scorer,
        seeds_a,
        seeds_b,
        found.n,
        resamples=resamples or (RESAMPLES_OF_FUNCTION if callable(score) else RESAMPLES),
        seed=seed,
    )
    return assemble(
        found.difference,
        found.test,
        found.means,
        (found.of_a, found.of_b),
        percentile(draws, level),
        n=found.n,
        margin=margin,
        level=level,
        how=f"{100 * level:g}% {ON_PSEUDO_VALUES} over {over_what(seeds_a, seeds_b)}, Satterthwaite"
        if found.varies
        else NO_VARIATION,
        metric=score if isinstance(score, str) else "",
    )


@dataclass(frozen=True, slots=True)
class Tested:
    """Two sides by a score, and the tests of their difference."""

    scorer: Scorer
    """Of the trainings of both, those of A first."""
    of_a: Floats
    """The score of each training, [S_A]."""
    of_b: Floats
    n: int
    test: Outcome
    varies: bool
    """Whether anything did, so that there is a test."""

    @property
    def means(self) -> tuple[float, float]:
        return float(self.of_a.mean()), float(self.of_b.mean())

    @property
    def difference(self) -> float:
        return self.means[1] - self.means[0]


def tested(
    score: Score,
    outputs_a: ArrayLike,
    outputs_b: ArrayLike,
    labels: ArrayLike,
    margin: float,
    level: float,
) -> Tested:
    """The t tests on pseudo-values of `compare_scores`, whose arguments and errors these are."""
    check_settings(margin, level)
    (a, b), truth = checked_outputs(
        {"outputs_a": outputs_a, "outputs_b": outputs_b}, labels, named=isinstance(score, str)
    )
    n = len(truth)
    scorer = scorer_of(score, np.concatenate([a, b]), truth)
    whole = finite_scores(scorer, n)
    pseudo = pseudo_values(scorer, whole, n)
    groups, weights = (pseudo[: len(a)], pseudo[len(a) :]), (-1.0, 1.0)
    found, varies = contrast(groups, weights), not nothing_varies(groups, weights)
    difference = float(whole[len(a) :].mean()) - float(whole[: len(a)].mean())
    variance = float(found.variance) if varies else 0.0
    test = t_test(difference, variance, float(found.freedom), margin, level)
    if of_classes(a, b):
        test = cautious(test, groups, weights, difference, margin)
    return Tested(scorer, whole[: len(a)], whole[len(a) :], n, test, varies)


def of_classes(*outputs: NDArray[Any]) -> bool:
    """Whether outputs are classes [S, n], and not values or logits."""
    return all(side.ndim == 2 and side.dtype.kind in "biu" for side in outputs)


def pseudo_values(scorer: Scorer, whole: Floats, n: int) -> Floats:
    """Jackknife pseudo-values [S, n] of scores `whole` [S]: what each example adds to each training's score."""
    found = np.empty((len(whole), n))
    step = max(1, _CELLS // n)
    for start in range(0, n, step):
        places = np.arange(start, min(start + step, n))
        weights = np.ones((len(places), n))
        weights[np.arange(len(places)), places] = 0.0
        found[:, places] = n * whole[:, None] - (n - 1) * scorer(weights).T
    return found


def finite_scores(scorer: Scorer, n: int) -> Floats:
    """The score of each training on all n examples, [S]; ValueError where one is not finite."""
    whole: Floats = scorer(np.ones((1, n)))[0]
    if not np.isfinite(whole).all():
        raise ValueError(f"the score must be finite for every training, but is {whole.tolist()}.")
    return whole


def checked_outputs(
    outputs: Mapping[str, ArrayLike], labels: ArrayLike, *, named: bool
) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """The outputs of each side, by the name to complain under, and the labels, as arrays.

    named: the score is one of the known ones, which take classes or values: logits become those. ValueError for what does
    not fit together.
    """
    truth: NDArray[Any] = np.asarray(labels)
    if truth.ndim != 1 or len(truth) < 2:
        raise ValueError(f"`labels` must be [n] with n >= 2, but its shape is {truth.shape}.")
    sides: list[NDArray[Any]] = []
    for name, given in outputs.items():
        side: NDArray[Any] = np.asarray(given)
        if side.ndim not in (2, 3) or len(side) == 0 or side.shape[1] != len(truth):
            raise ValueError(
                f"`{name}` must be [seeds, {len(truth)}] or [seeds, {len(truth)}, C], one row for each "
                f"training and one column for each label, but its shape is {side.shape}."
            )
        if side.dtype.kind not in "biuf" or not np.isfinite(side).all():
            raise ValueError(
                f"`{name}` must hold finite numbers; count a diverged training, do not drop it."
            )
        if side.ndim == 3 and named:
            side = side[:, :, 0] if side.shape[2] == 1 else side.argmax(2)
        sides.append(side)
    if len({side.shape[2:] for side in sides}) > 1:
        shapes = " and ".join(str(side.shape) for side in sides)
        raise ValueError(f"all sides need outputs of one form, but they are {shapes}.")
    return sides, truth
