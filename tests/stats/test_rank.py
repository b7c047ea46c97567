"""Rank: the slope against least squares and `compare`, its rates by simulation, and effective ranks of known matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from scipy import stats
from sklearn import metrics

from fleetune.seeds import stream
from fleetune.stats.compare import compare
from fleetune.stats.crossed import contrast
from fleetune.stats.rank import effective_rank, rank_trend, rank_trend_scores
from fleetune.stats.scores import compare_scores


def study(
    *name: str | int, ranks: tuple[int, ...] = (1, 2, 4, 8), by: float = 0.0, n: int = 200
) -> dict[int, np.ndarray]:
    """Right or wrong by rank, six seeds each; by > 0 makes larger ranks better."""
    draw = stream(80, *name)
    easy = draw.normal(size=n)
    return {
        r: (
            0.5
            + by * 3 * math.log2(r)
            + easy
            + 0.3 * draw.normal(size=(6, n))
            + 0.1 * draw.normal(size=(6, 1))
        )
        > 0
        for r in ranks
    }


def test_slope_is_least_squares_on_the_means() -> None:
    for i in range(50):
        scores = study("fit", i, ranks=(1, 2, 3, 8, 20), by=0.02)
        x = np.log2(list(scores))
        oracle = np.polyfit(x, [s.mean() for s in scores.values()], 1)[0]
        assert rank_trend(scores, resamples=2).slope == pytest.approx(oracle, abs=1e-12)


def test_two_neighbouring_ranks_are_a_comparison() -> None:
    for i in range(20):
        scores = study("two", i, ranks=(4, 8), by=0.03)
        trend, pair = rank_trend(scores, resamples=2), compare(scores[4], scores[8], resamples=2)
        assert (trend.slope, trend.low, trend.high) == pytest.approx(
            (pair.difference, pair.low, pair.high)
        )
        assert (trend.p_value, trend.equivalence_p) == pytest.approx(
            (pair.p_value, pair.equivalence_p)
        )
        assert (trend.verdict, trend.detectable) == (pair.verdict, pytest.approx(pair.detectable))


def test_contrasts_are_comparisons_with_the_reference() -> None:
    scores = study("contrasts", by=0.05)
    found = rank_trend(scores, reference=4)
    assert [m.name for m in found.contrasts.members] == [f"r={r} against r=4" for r in (1, 2, 8)]
    for member, r in zip(found.contrasts.members, (1, 2, 8), strict=True):
        assert member.comparison == compare(scores[4], scores[r])
        assert member.p_holm >= member.comparison.p_value
    assert rank_trend(scores).reference == 1


def test_a_rising_score_is_seen_and_a_falling_one_too() -> None:
    rising = rank_trend(study("rising", by=0.15))
    falling = rank_trend(study("falling", by=-0.15))
    assert (rising.verdict, falling.verdict) == ("better", "worse")
    assert rising.low > 0 > falling.high


def test_a_slope_needs_five_trainings_of_every_rank() -> None:
    draw = stream(84, "few of one rank")
    shares = {1: (6, 0.3), 2: (6, 0.6), 4: (4, 0.9)}
    scores = {r: draw.random((seeds, 400)) < share for r, (seeds, share) in shares.items()}
    found = rank_trend(scores, resamples=2)
    assert found.p_value < 0.05 and found.verdict == "cannot tell" and found.detectable is None


def test_points_hold_value_and_interval() -> None:
    scores = study("points")
    for point in rank_trend(scores).points:
        assert point.value == pytest.approx(scores[point.r].mean())
        assert point.low < point.value < point.high and point.seeds == 6


def test_false_positives_of_the_slope_are_near_five_percent() -> None:
    """2,000 nulls of four ranks, 5 seeds, through the contrast that `rank_trend` uses."""
    draw = stream(81, "null")
    first = simulate(draw, 2000, (5, 5), 150, NOISES["noisy"])
    # The next two ranks see other examples' ease, as if wholly interacting with rank; the null stays true.
    second = simulate(draw, 2000, (5, 5), 150, NOISES["noisy"])
    groups = [g.astype(float) for g in (*first, *second)]
    found = contrast(groups, (-0.3, -0.1, 0.1, 0.3))
    hits = np.abs(found.value) > stats.t.isf(0.025, found.freedom) * found.variance**0.5
    assert 0.035 <= hits.mean() <= 0.065


def test_equivalence_is_about_the_whole_range() -> None:
    """The same slope over a wider range of ranks is a larger change."""
    narrow = study("range", ranks=(1, 2), n=4000)
    wide = {1: narrow[1], 1024: narrow[2]}
    one, other = (rank_trend(x, margin=0.05, resamples=2) for x in (narrow, wide))
    assert other.slope == pytest.approx(one.slope / 10)
    assert other.equivalence_p == pytest.approx(one.equivalence_p)
    assert "margin of 0.05 over the whole range of ranks" in other.reason


@pytest.mark.parametrize(
    ("scores", "reference", "words"),
    [
        ({4: np.ones((5, 9))}, None, "at least two ranks"),
        ({0: np.ones((5, 9)), 4: np.ones((5, 9))}, None, "each >= 1"),
        ({2: np.ones((5, 9)), 4: np.ones((5, 8))}, None, "same examples"),
        ({2: np.ones((1, 9)), 4: np.ones((5, 9))}, None, r"\[2\] have one"),
        ({2: np.ones((5, 9)), 4: np.ones((5, 9))}, 3, r"one of the ranks \[2, 4\], but is 3"),
        ({2: np.ones((5, 9)), 4: np.full((5, 9), np.nan)}, None, r"`scores\[4\]` must be finite"),
    ],
)
def test_wrong_input_is_named(
    scores: dict[int, np.ndarray], reference: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        rank_trend(scores, reference=reference)


# --- any score


def answers(*name: str | int, by: float = 0.0) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Predicted classes [5, 150] by rank and the labels, a third of them 1; by > 0: larger ranks are right more often."""
    draw = stream(83, *name)
    labels = (draw.random(150) < 1 / 3).astype(np.int64)
    easy = draw.normal(size=150)
    found: dict[int, np.ndarray] = {}
    for r in (1, 2, 8):
        right = 0.8 + by * math.log2(r) + easy + 0.5 * draw.normal(size=(5, 150)) > 0
        found[r] = np.where(right, labels, 1 - labels)
    return found, labels


def test_the_trend_of_accuracy_is_that_of_right_and_wrong() -> None:
    outputs, labels = answers("accuracy", by=0.2)
    found = rank_trend_scores("accuracy", outputs, labels, reference=2, resamples=2)
    oracle = rank_trend({r: o == labels for r, o in outputs.items()}, reference=2, resamples=2)
    for key in ("slope", "low", "high", "p_value", "equivalence_p", "detectable"):
        assert getattr(found, key) == pytest.approx(getattr(oracle, key)), key
    assert (found.verdict, found.n, found.reference) == (oracle.verdict, 150, 2)
    for one, other in zip(found.points, oracle.points, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("matthews_correlation", metrics.matthews_corrcoef), ("f1", metrics.f1_score)],
)
def test_the_slope_of_a_score_is_least_squares_on_its_means(name: str, oracle: Any) -> None:
    outputs, labels = answers(name, by=0.3)
    found = rank_trend_scores(name, outputs, labels, resamples=50)
    means = [np.mean([oracle(labels, row) for row in o]) for o in outputs.values()]
    assert found.slope == pytest.approx(np.polyfit(np.log2(list(outputs)), means, 1)[0])
    assert [p.value for p in found.points] == pytest.approx(means)
    pair = compare_scores(name, outputs[1], outputs[8], labels, resamples=50)
    assert found.contrasts.members[1].comparison == pair
    assert found.verdict == "better" and "pseudo-values" in found.how


@pytest.mark.slow
def test_false_positives_of_a_scores_slope_are_near_five_percent() -> None:
    """600 nulls; three standard errors of a share of 0.05 are 0.027."""
    hits = 0
    for i in range(600):
        outputs, labels = answers("null", i)
        hits += (
            rank_trend_scores("matthews_correlation", outputs, labels, resamples=2).p_value < 0.05
        )
    assert 0.05 - 0.027 <= hits / 600 <= 0.05 + 0.027


def test_wrong_outputs_are_named() -> None:
    outputs, labels = answers("wrong")
    with pytest.raises(ValueError, match=r"`outputs\[8\]` must be \[seeds, 150\]"):
        rank_trend_scores("f1", {**outputs, 8: outputs[8][:, :9]}, labels)
    with pytest.raises(ValueError, match="at least two ranks"):
        rank_trend_scores("f1", {2: outputs[2]}, labels)
    with pytest.raises(ValueError, match="one of the ranks"):
        rank_trend_scores("f1", outputs, labels, reference=3)
    with pytest.raises(ValueError, match="have one"):
        rank_trend_scores("f1", {**outputs, 8: outputs[8][:1]}, labels)


# --- effective rank


def test_equal_singular_values_count_fully() -> None:
    for k in (1, 3, 8):
        found = effective_rank(np.full(k, 0.37))
        assert (found.entropy, found.stable) == pytest.approx((k, k))


def test_known_values() -> None:
    found = effective_rank([3.0, 1.0, 0.0])
    assert found.entropy == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert found.stable == pytest.approx(10 / 9)


def test_stable_rank_is_frobenius_over_spectral() -> None:
    draw = stream(82, "stable")
    for _ in range(20):
        update = draw.normal(size=(30, 4)) @ draw.normal(size=(4, 20))
        found = effective_rank(np.linalg.svd(update, compute_uv=False))
        expected = np.linalg.norm(update) ** 2 / np.linalg.norm(update, 2) ** 2
        assert found.stable == pytest.approx(expected)
        assert 1 <= found.stable <= found.entropy + 1e-9 <= 4 + 1e-6


def test_size_and_order_do_not_matter() -> None:
    s = stream(83, "scale").random(6)
    for scale in (1e-200, 1.0, 1e200):
        found = effective_rank(s[::-1] * scale)
        assert (found.entropy, found.stable) == pytest.approx(
            (effective_rank(s).entropy, effective_rank(s).stable)
        )
    assert effective_rank([0.0, 0.0]) == effective_rank([0.0])
    assert effective_rank([0.0]).entropy == 0.0


@pytest.mark.parametrize("wrong", [[], [-1.0], [math.nan], [[1.0]]])
def test_wrong_singular_values_are_named(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="finite and >= 0"):
        effective_rank(wrong)
