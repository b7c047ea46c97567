"""Expected best score by budget: against every draw that could be made."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fleetune.seeds import stream
from fleetune.stats.budget import budget_weights, expected_best


def brute(scores: list[float], k: int, estimator: str) -> float:
    draws = (
        itertools.product(scores, repeat=k)
        if estimator == "with replacement"
        else itertools.combinations(scores, k)
    )
    best = [max(drawn) for drawn in draws]
    return sum(best) / len(best)


@pytest.mark.parametrize("estimator", ["with replacement", "unbiased"])
def test_it_is_the_mean_best_over_all_draws(estimator: str) -> None:
    """200 random studies, with tied scores among them."""
    draw = stream(70, estimator)
    for i in range(200):
        n = int(draw.integers(1, 7))
        scores = draw.integers(0, 4, n) / 4 if i % 2 else draw.normal(size=n)
        budgets = [k for k in range(1, n + 1) if k <= 4]
        found = expected_best(scores, budgets, estimator=estimator, resamples=2)
        for k, expected in zip(budgets, found.expected, strict=True):
            # Sums of up to 1,296 terms in another order.
            assert expected == pytest.approx(brute(scores.tolist(), k, estimator), abs=1e-12)


@pytest.mark.parametrize("estimator", ["with replacement", "unbiased"])
def test_shape_of_the_curve(estimator: str) -> None:
    scores = stream(71, "shape").normal(size=60)
    found = expected_best(scores, estimator=estimator)
    assert found.budgets == tuple(range(1, 61))
    assert found.expected[0] == pytest.approx(scores.mean())
    assert list(found.expected) == sorted(found.expected)
    assert found.expected[-1] <= scores.max() + 1e-12
    assert all(lo <= e + 1e-9 for lo, e in zip(found.low, found.expected, strict=True))
    # The band is about the best of so many, and not about any of them.
    assert list(found.low) == sorted(found.low) and found.low[-1] > np.median(scores)
    if estimator == "unbiased":
        assert found.expected[-1] == pytest.approx(scores.max())


def test_weights_sum_to_one_for_large_studies() -> None:
    for estimator in ("with replacement", "unbiased"):
        weights = budget_weights(2000, [1, 7, 1000, 2000], estimator)
        # The logarithms of C(2000, 1000) lose about ten digits of sixteen.
        np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-9)
        assert (weights >= 0).all()


def test_one_is_unbiased_and_the_other_is_too_low() -> None:
    """Best of 5 uniform scores is 5/6 on average; estimated from 8 trials each, 4,000 times."""
    draws = np.sort(stream(72, "bias").random((4000, 8)), axis=1)
    unbiased, biased = (
        (draws @ budget_weights(8, [5], e)[0]) for e in ("unbiased", "with replacement")
    )
    # Standard error of the mean about 0.0018.
    assert unbiased.mean() == pytest.approx(5 / 6, abs=0.006)
    assert biased.mean() < 5 / 6 - 0.02


def test_band_is_a_percentile_bootstrap_over_trials() -> None:
    scores = stream(73, "band").normal(size=12)
    found = expected_best(scores, [1, 3], resamples=20_000)
    draw = stream(74, "oracle")
    again = draw.choice(scores, (20_000, 12)).mean(1)
    low, high = np.quantile(again, [0.025, 0.975])
    # A budget of one is the mean; quantiles of 20,000 draws waver by 2 % of its standard error of 0.3.
    assert found.low[0] == pytest.approx(low, abs=0.02)
    assert found.high[0] == pytest.approx(high, abs=0.02)


def test_adding_a_constant_moves_the_curve() -> None:
    scores = stream(75, "move").random(15)
    plain, moved = expected_best(scores), expected_best(scores + 2)
    np.testing.assert_allclose(np.array(plain.expected) + 2, moved.expected, rtol=1e-12)
    np.testing.assert_allclose(np.array(plain.high) + 2, moved.high, rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "budgets", "words"),
    [
        ([], None, "n >= 1"),
        ([0.5, math.nan], None, "give a trial that failed the score it earned"),
        ([0.5, 0.6], [3], r"budgets must lie in 1\.\.2"),
        ([0.5, 0.6], [0], r"budgets must lie in 1\.\.2"),
        ([0.5, 0.6], [], r"budgets must lie in 1\.\.2"),
        ([[0.5, 0.6]], None, "their shape is"),
    ],
)
def test_wrong_input_is_named(scores: object, budgets: list[int] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expected_best(scores, budgets)
    with pytest.raises(ValueError, match="with replacement"):
        expected_best([0.5, 0.6], estimator="best")
