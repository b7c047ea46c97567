"""Metrics against their formulas, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.data.metrics import METRICS, compute, higher_is_better, worst

CLASS_METRICS = ["accuracy", "f1", "f1_macro", "matthews_correlation"]


def logits_of(classes: list[int], n_classes: int = 2) -> np.ndarray:
    return np.eye(n_classes, dtype=np.float32)[classes]


def f1_by_hand(predicted: np.ndarray, labels: np.ndarray, positive: int) -> float:
    hits = float(np.sum((predicted == positive) & (labels == positive)))
    found = float(np.sum(predicted == positive) + np.sum(labels == positive))
    return 2 * hits / found if found else 0.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_two_classes(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = np.array(pairs).T
    found = compute(CLASS_METRICS, logits_of(predicted.tolist()), labels)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert found["f1"] == pytest.approx(f1_by_hand(predicted, labels, 1))
    classes = set(predicted.tolist()) | set(labels.tolist())
    scores = [f1_by_hand(predicted, labels, c) for c in classes]
    assert found["f1_macro"] == pytest.approx(np.mean(scores))
    constant = np.ptp(predicted) == 0 or np.ptp(labels) == 0
    wanted = 0.0 if constant else np.corrcoef(predicted, labels)[0, 1]
    assert found["matthews_correlation"] == pytest.approx(wanted)


def test_three_classes() -> None:
    found = compute(["accuracy", "f1_macro"], logits_of([0, 1, 2, 2], 3), np.array([0, 1, 2, 0]))
    assert found["accuracy"] == 0.75
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_correlations() -> None:
    labels = np.array([0.0, 1.0, 2.0, 4.0])
    found = compute(["pearson", "spearmanr"], np.array([[1.0], [3.0], [2.0], [9.0]]), labels)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 3, 2, 9], labels)[0, 1])
    assert found["spearmanr"] == pytest.approx(np.corrcoef([1, 3, 2, 4], [1, 2, 3, 4])[0, 1])


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("name", ["pearson", "spearmanr", "matthews_correlation"])
def test_a_constant_prediction_gives_zero(n: int, name: str) -> None:
    """Without a warning, too: warnings are errors in tests."""
    labels = np.arange(n) % 2
    if name == "matthews_correlation":
        assert compute([name], logits_of([1] * n), labels) == {name: 0.0}
        assert compute([name], logits_of([1] * n), np.ones(n, dtype=np.int64)) == {name: 0.0}
    else:
        assert compute([name], np.full((n, 1), 2.5, np.float32), labels.astype(float)) == {
            name: 0.0
        }
        nearly = np.full((n, 1), 1e9) + np.arange(n)[:, None] * 1e-7
        assert math.isfinite(compute([name], nearly, labels.astype(float))[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_diverged_logits_have_no_score(bad: float) -> None:
    logits = logits_of([0, 1])
    logits[1, 0] = bad
    assert all(math.isnan(v) for v in compute(CLASS_METRICS, logits, np.array([0, 1])).values())


def test_wrong_arguments() -> None:
    good = logits_of([0, 1])
    with pytest.raises(ValueError, match="n = 0"):
        compute(["accuracy"], np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match=r"\[n, C\]"):
        compute(["accuracy"], good, np.array([0]))
    with pytest.raises(ValueError, match=r"\[n, C\]"):
        compute(["accuracy"], good[:, 0], np.array([0, 1]))
    with pytest.raises(ValueError, match='did you mean "accuracy"'):
        compute(["acuracy"], good, np.array([0, 1]))
    with pytest.raises(ValueError, match="two classes"):
        compute(["accuracy"], good[:, :1], np.array([0, 1]))


def test_direction() -> None:
    assert not higher_is_better("loss")
    assert all(higher_is_better(name) for name in METRICS)
    with pytest.raises(ValueError, match="not known"):
        higher_is_better("los")


def test_the_worst_of_a_correlation_is_minus_one() -> None:
    least = {name: worst(name) for name in METRICS}
    correlations = ("matthews_correlation", "pearson", "spearmanr")
    assert least == {name: -1.0 if name in correlations else 0.0 for name in METRICS}
