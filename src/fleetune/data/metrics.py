"""Metrics of a split, by the names of `transformers` and `evaluate`.

Notation: n rows, C classes. logits [n, C] float, for regression [n, 1]; labels int64 [n], for
regression float64 [n]. Computed by scikit-learn and scipy. A constant prediction gives 0.0 for the
three correlations, where they are not defined; logits that are not all finite give nan for every
metric, for a score would hide that training diverged. Not covered: intervals (stats/).
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# (pyproject.toml turns these off for packages that ship no types, but `strict` there overrides it)

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fleetune.errors import did_you_mean

# scikit-learn's inferred types know only the string "warn" here; its documentation has 0.0.
_ZERO: Any = 0.0


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    # The macro average over class 1 alone: average="binary" refuses labels in which class 1 does
    # not occur.
    score = f1_score(labels, predicted, labels=[1], average="macro", zero_division=_ZERO)
    return float(score)


def _f1_macro(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=_ZERO))


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predicted, labels)


def _spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predicted, labels)


def _correlation(
    measure: Callable[..., tuple[float, float]], predicted: np.ndarray, labels: np.ndarray
) -> float:
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    value = float(measure(predicted, labels)[0])
    return 0.0 if math.isnan(value) else value


_OF_CLASSES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews_correlation": _matthews,
}
_OF_TARGETS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": _pearson,
    "spearmanr": _spearman,
}

METRICS: tuple[str, ...] = (*_OF_CLASSES, *_OF_TARGETS)


def metrics_of(regression: bool) -> tuple[str, ...]:
    """The metrics of targets, or those of classes."""
    return tuple(_OF_TARGETS if regression else _OF_CLASSES)


def worst(name: str) -> float:
    """The lowest value that a metric can have."""
    return -1.0 if name in ("matthews_correlation", *_OF_TARGETS) else 0.0


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax [n, C] over the classes, in float64."""
    wide = logits.astype(np.float64)
    if not len(wide):
        return wide
    raised = np.exp(wide - wide.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def compute(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named metrics. ValueError for an unknown name, no rows, or shapes that do not fit."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{logits.shape} and {labels.shape}"
        raise ValueError(f"`logits` must be [n, C] and `labels` [n], but they are {shapes}.")
    if len(labels) == 0:
        raise ValueError("a metric needs at least one row, but n = 0.")
    for name in names:
        _check(name)
        if name in _OF_CLASSES and logits.shape[1] < 2:
            raise ValueError(f"`{name}` needs logits of two classes or more, not {logits.shape}.")
    if not np.isfinite(logits).all():
        return dict.fromkeys(names, math.nan)
    classes = logits.argmax(axis=1)
    targets = logits[:, 0].astype(np.float64)
    with warnings.catch_warnings():
        # A single class, or nearly constant predictions: the docstring above says what comes out
        # then.
        warnings.simplefilter("ignore")
        return {
            name: _OF_CLASSES[name](classes, labels)
            if name in _OF_CLASSES
            else _OF_TARGETS[name](targets, labels)
            for name in names
        }


def higher_is_better(name: str) -> bool:
    """False for `loss`, True for every metric here; ValueError for a name that is neither."""
    if name == "loss":
        return False
    _check(name)
    return True


def _check(name: str) -> None:
    if name not in METRICS:
        raise ValueError(f'metric "{name}" is not known{did_you_mean(name, METRICS)}.')
