"""Metrics that are no mean over examples, for many weightings of the examples at once.

Notation: R weightings, S trainings, n examples, C classes. A scorer takes weights [R, n] (how often each example counts) and
returns scores [R, S]; with whole weights it equals the metric of the repeated examples. Names and conventions are those of
data/metrics.py: f1 is of class 1; f1_macro averages over classes that occur among labels or predictions; a metric that is not
defined (nothing of a class, a constant) is 0.

Sources: Gorodkin 2004 (doi:10.1016/j.compbiolchem.2004.09.006) for Matthews' coefficient of many classes; Spearman's is
Pearson's of midranks, ranked anew among the drawn examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.stats.bootstrap import Floats, Scorer

# Below this share of the squared sizes a difference of moments is rounding, and the correlation is not defined.
_ROUNDING = 1e-12


Score = str | Callable[[NDArray[Any], NDArray[Any]], float]
"""The name of a score, or a function of (outputs [n, ...], labels [n])."""


def scorer_of(
    score: Score,
    outputs: NDArray[Any],
    labels: NDArray[Any],
) -> Scorer:
    """A scorer of outputs [S, n] against labels [n]; a function (outputs [n], labels [n]) -> float is called in a loop."""
    if callable(score):
        return _loop(score, outputs, labels)
    if score not in SCORERS:
        raise ValueError(
            f'score "{score}" is not known; choose from {", ".join(SCORERS)}, or pass a function.'
        )
    return SCORERS[score](outputs, labels)


def _loop(
    score: Callable[[NDArray[Any], NDArray[Any]], float],
    outputs: NDArray[Any],
    labels: NDArray[Any],
) -> Scorer:
    places = np.arange(len(labels))

    def scores(weights: Floats) -> Floats:
        found = np.empty((len(weights), len(outputs)))
        for row, weight in enumerate(weights.astype(np.intp)):
            drawn = np.repeat(places, weight)
            found[row] = [score(one[drawn], labels[drawn]) for one in outputs]
        return found

    return scores


def _accuracy(outputs: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    right = (outputs == labels).astype(np.float64)
    return lambda weights: weights @ right.T / weights.sum(1, keepdims=True)


def _class_counts(
    outputs: NDArray[Any], labels: NDArray[Any], classes: NDArray[Any]
) -> Callable[[Floats], tuple[Floats, Floats, Floats]]:
    """Weights to (right [R, S, C], predicted [R, S, C], labelled [R, 1, C])."""
    seeds, n = outputs.shape
    is_label = (labels[:, None] == classes).astype(np.float64)
    is_output = (outputs[:, :, None] == classes).astype(np.float64)
    right = (is_output * is_label).transpose(1, 0, 2).reshape(n, -1)
    predicted = is_output.transpose(1, 0, 2).reshape(n, -1)

    def counts(weights: Floats) -> tuple[Floats, Floats, Floats]:
        shape = (len(weights), seeds, len(classes))
        labelled = (weights @ is_label)[:, None, :]
        return (weights @ right).reshape(shape), (weights @ predicted).reshape(shape), labelled

    return counts


def _divided(above: Floats, below: Floats) -> Floats:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def _f1(outputs: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    counts = _class_counts(outputs, labels, np.array([1]))

    def scores(weights: Floats) -> Floats:
        right, predicted, labelled = counts(weights)
        return _divided(2 * right, predicted + labelled)[:, :, 0]

    return scores


def _f1_macro(outputs: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    counts = _class_counts(outputs, labels, np.union1d(outputs, labels))

    def scores(weights: Floats) -> Floats:
        right, predicted, labelled = counts(weights)
        occurs = (predicted + labelled) > 0
        return _divided(2 * right, predicted + labelled).sum(2) / occurs.sum(2)

    return scores


def _matthews(outputs: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    counts = _class_counts(outputs, labels, np.union1d(outputs, labels))

    def scores(weights: Floats) -> Floats:
        right, predicted, labelled = counts(weights)
        total = weights.sum(1)[:, None]
        above = right.sum(2) * total - (predicted * labelled).sum(2)
        spread = (total**2 - (predicted**2).sum(2)) * (total**2 - (labelled**2).sum(2))
        return _divided(above, np.sqrt(np.maximum(spread, 0.0)))

    return scores


def _correlation(xy: Floats, x: Floats, y: Floats, xx: Floats, yy: Floats) -> Floats:
    """Pearson's coefficient from weighted means of products."""
    spread_x, spread_y = xx - x**2, yy - y**2
    defined = (spread_x > _ROUNDING * xx) & (spread_y > _ROUNDING * yy)
    below = np.sqrt(np.where(defined, spread_x * spread_y, 1.0))
    return np.where(defined, (xy - x * y) / below, 0.0)


def _pearson(outputs: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    # Centred once, so that the difference of moments below loses no digits.
    x = outputs - outputs.mean(1, keepdims=True, dtype=np.float64)
    y = labels - labels.mean(dtype=np.float64)

    def scores(weights: Floats) -> Floats:
        share = weights / weights.sum(1, keepdims=True)
        mean_y, mean_yy = (share @ y)[:, None], (share @ y**2)[:, None]
        return _correlation(share @ (x * y).T, share @ x.T, mean_y, share @ (x**2).T, mean_yy)

    return scores


def _ranker(values: NDArray[Any]) -> Callable[[Floats], Floats]:
    """Weights [R, n] to the midranks, centred, that `values` have when each counts so often: [R, n]."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def ranks(weights: Floats) -> Floats:
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(sizes, axis=1) - sizes / 2
        return middle[:, group] - weights.sum(1, keepdims=True) / 2

    return ranks


def _spearman(outputs: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    rank_labels, rankers = _ranker(labels), [_ranker(one) for one in outputs]

    def scores(weights: Floats) -> Floats:
        of_labels = rank_labels(weights)
        weighted = weights * of_labels
        yy = (weighted * of_labels).sum(1)
        found = np.empty((len(weights), len(rankers)))
        zero = np.zeros(len(weights))
        for s, ranker in enumerate(rankers):
            ranks = ranker(weights)
            xx = (weights * ranks**2).sum(1)
            # Midranks less half the total have mean 0 under the weights.
            found[:, s] = _correlation((weighted * ranks).sum(1), zero, zero, xx, yy)
        return found

    return scores


SCORERS: dict[str, Callable[[NDArray[Any], NDArray[Any]], Scorer]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearmanr": _spearman,
}
RANGES: dict[str, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "f1_macro": (0.0, 1.0),
    "matthews_correlation": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "spearmanr": (-1.0, 1.0),
}
"""The least and the greatest value of each."""
