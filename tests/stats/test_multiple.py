"""Families: Holm against closed testing, Wilcoxon against scipy and all sign flips, replicability against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from scipy import stats

from fleetune.seeds import stream
from fleetune.stats.compare import Comparison, compare
from fleetune.stats.multiple import across_tasks, holm, holm_family, replicability, signed_rank_p


def closed(p: list[float]) -> list[float]:
    """A hypothesis falls when every set of hypotheses that holds it falls by Bonferroni (Marcus et al. 1976)."""
    places = range(len(p))
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(places, size)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in places]


def test_holm_equals_closed_testing() -> None:
    draw = stream(50, "holm")
    for _ in range(500):
        p = draw.random(int(draw.integers(1, 7))) ** 2
        if len(p) > 2:
            p[1] = p[0]
        np.testing.assert_allclose(holm(p.tolist()), closed(p.tolist()), rtol=1e-12)


def test_holm_keeps_the_order_given_and_does_not_need_one() -> None:
    draw = stream(51, "order")
    p = draw.random(9)
    places = draw.permutation(9)
    np.testing.assert_allclose(np.array(holm(p.tolist()))[places], holm(p[places].tolist()))
    assert holm([]) == ()
    for wrong in ([-0.1], [1.1], [float("nan")]):
        with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
            holm(wrong)


def comparison(*name: str | int, seeds: int = 5, by: float = 0.0) -> Comparison:
    a, b = simulate(stream(52, *name), 1, (seeds, seeds), 300, NOISES["calm"], difference=by)
    return compare(a[0], b[0], resamples=2)


def test_verdicts_of_a_family_follow_the_adjusted_p() -> None:
    made = {f"c{i}": comparison("family", i, by=0.02 * (i % 5)) for i in range(12)}
    found = holm_family(made, family="all settings against the reference")
    adjusted = holm([c.p_value for c in made.values()])
    for member, p in zip(found.members, adjusted, strict=True):
        assert member.p_holm == p >= member.comparison.p_value
        assert (member.verdict in ("better", "worse")) == (p < 0.05)
        assert member.simultaneous_low <= member.comparison.low
        assert member.simultaneous_high >= member.comparison.high
    lost = [m for m in found.members if m.verdict != m.comparison.verdict]
    assert lost and {m.verdict for m in lost} == {"cannot tell"}
    assert "Holm over 12 comparisons: all settings" in found.how


def test_a_family_of_one_changes_nothing() -> None:
    c = comparison("alone", by=0.1)
    member = holm_family({"x": c}, family="one").members[0]
    assert (member.p_holm, member.verdict) == (c.p_value, c.verdict)
    assert (member.simultaneous_low, member.simultaneous_high) == pytest.approx((c.low, c.high))


def test_a_family_does_not_lift_the_bar_of_five_seeds() -> None:
    few = holm_family({"x": comparison("few", seeds=4, by=0.28)}, family="one").members[0]
    assert few.p_holm < 0.05 and few.verdict == "cannot tell"


def test_an_empty_or_mixed_family_is_refused() -> None:
    a, b = (x[0] for x in simulate(stream(53, "mixed"), 1, (5, 5), 50, NOISES["calm"]))
    with pytest.raises(ValueError, match="one level"):
        holm_family({}, family="none")
    with pytest.raises(ValueError, match="one level"):
        holm_family(
            {"a": compare(a, b, resamples=2), "b": compare(a, b, resamples=2, level=0.9)},
            family="two",
        )


def test_a_family_of_nulls_is_wrong_five_times_in_a_hundred_as_a_whole() -> None:
    """400 families of 8 independent true nulls, straight from uniform p-values."""
    draw = stream(54, "family-wise")
    wrong = np.mean([min(holm(draw.random(8).tolist())) < 0.05 for _ in range(4000)])
    # 1 - (1 - 0.05 / 8)^8 = 4.9 %, standard error 0.34 %.
    assert wrong == pytest.approx(0.0489, abs=0.011)


def test_signed_rank_equals_scipys_exact_p() -> None:
    draw = stream(55, "wilcoxon")
    for _ in range(500):
        d = draw.normal(0.3, 1, int(draw.integers(1, 25)))
        assert signed_rank_p(d.tolist()) == pytest.approx(
            stats.wilcoxon(d, method="exact").pvalue, rel=1e-10
        )


def test_signed_rank_with_ties_equals_all_sign_flips() -> None:
    draw = stream(56, "ties")
    for _ in range(60):
        d = draw.integers(-3, 5, int(draw.integers(2, 9))).astype(float)
        kept = d[d != 0]
        if len(kept) == 0:
            assert signed_rank_p(d.tolist()) == 1.0
            continue
        ranks = stats.rankdata(np.abs(kept))
        flips = np.array(list(itertools.product([0, 1], repeat=len(kept)))) @ ranks
        seen = ranks[kept > 0].sum()
        tail = min((flips <= seen + 1e-9).mean(), (flips >= seen - 1e-9).mean())
        assert signed_rank_p(d.tolist()) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)


def test_signed_rank_equals_scipys_permutation_test() -> None:
    draw = stream(57, "permutation")
    for _ in range(5):
        d = draw.integers(1, 6, 7) * draw.choice([-1.0, 1.0], 7)

        def positive_ranks(x: np.ndarray, axis: int) -> np.ndarray:
            return (stats.rankdata(np.abs(x), axis=axis) * (x > 0)).sum(axis)

        oracle = stats.permutation_test(
            (d,), positive_ranks, permutation_type="samples", n_resamples=10_000
        )
        assert signed_rank_p(d.tolist()) == pytest.approx(oracle.pvalue, rel=1e-10)


def test_across_tasks_judges_all_pairs() -> None:
    draw = stream(58, "tasks")
    base = draw.random(8)
    scores = {
        "a": base,
        "b": base + 0.05 + 0.01 * draw.random(8),
        "c": base + 0.02 * draw.normal(size=8),
    }
    found = across_tasks(scores)
    assert [(f.a, f.b) for f in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    first = found[0]
    assert (first.wins, first.losses, first.ties, first.tasks) == (8, 0, 0, 8)
    assert first.p_value == pytest.approx(2 / 2**8)
    assert first.p_holm == holm([f.p_value for f in found])[0]
    assert first.verdict == "better" and found[2].verdict in ("worse", "cannot tell")
    against = across_tasks(scores, reference="b")
    assert [(f.a, f.b) for f in against] == [("b", "a"), ("b", "c")]
    assert against[0].verdict == "worse" and "Holm over 2 pairs" in against[0].how


def test_six_wins_of_six_are_the_least_that_counts() -> None:
    low, high = [0.5] * 6, [0.6, 0.61, 0.63, 0.66, 0.7, 0.75]
    found = across_tasks({"low": low, "high": high})[0]
    assert found.p_value == pytest.approx(0.03125) and found.verdict == "better"
    with pytest.raises(ValueError, match="at least 6 tasks are needed, but got 5"):
        across_tasks({"low": low[:5], "high": high[:5]})


@pytest.mark.parametrize(
    ("scores", "reference", "words"),
    [
        ({"a": [1.0] * 6}, None, "at least two methods"),
        ({"a": [1.0] * 6, "b": [1.0] * 7}, None, "same tasks"),
        ({"a": [1.0] * 6, "b": [1.0] * 6}, "z", '`reference` must be one of a, b, but is "z"'),
        ({"a": [1.0] * 6, "b": [float("nan")] * 6}, None, "must be finite"),
    ],
)
def test_wrong_tables_are_named(
    scores: dict[str, list[float]], reference: str | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        across_tasks(scores, reference=reference)


def test_replicability_equals_its_definition() -> None:
    """The largest u such that every "fewer than v tasks", v <= u, falls: p of v is (m - v + 1) p_(v)."""
    draw = stream(59, "replicability")
    for _ in range(500):
        p = draw.random(int(draw.integers(1, 9))) ** 4
        ordered, m = np.sort(p), len(p)
        count = 0
        while count < m and (m - count) * ordered[count] <= 0.05:
            count += 1
        found = replicability({f"t{i}": float(x) for i, x in enumerate(p)})
        assert (found.count, found.tasks) == (count, m)
        assert {int(name[1:]) for name in found.named} == set(
            np.argsort(p, kind="stable")[:count].tolist()
        )


def test_replicability_claims_too_much_at_most_five_times_in_a_hundred() -> None:
    """Three true effects among eight tasks: the count may exceed 3 in at most 5 % of studies."""
    draw, claimed = stream(60, "count"), 0
    for _ in range(2000):
        p = draw.random(8)
        p[:3] *= 1e-4
        claimed += replicability({str(i): float(x) for i, x in enumerate(p)}).count > 3
    # 1 - (1 - 0.05 / 5)^5 = 4.9 %, standard error 0.5 %.
    assert claimed / 2000 == pytest.approx(0.049, abs=0.015)
