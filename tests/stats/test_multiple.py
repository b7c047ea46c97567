"""Families: Holm against closed testing, Wilcoxon against scipy and all sign flips, replicability against its definition."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from scipy import stats

from fleetune.seeds import stream
from fleetune.stats.compare import Comparison, compare
from fleetune.stats.multiple import (
    Member,
    across_tasks,
    holm,
    holm_family,
    replicability,
    signed_rank_p,
)
from fleetune.stats.power import power


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
        mine, alone = interval_of(member), (member.comparison.low, member.comparison.high)
        assert alone[0] is not None and alone[1] is not None
        assert mine[0] <= alone[0] + 1e-12 and mine[1] >= alone[1] - 1e-12
    lost = [m for m in found.members if m.verdict != m.comparison.verdict]
    assert lost and {m.verdict for m in lost} == {"cannot tell"}
    assert "Holm over 12 comparisons: all settings" in found.how


def interval_of(member: Member) -> tuple[float, float]:
    assert member.simultaneous_low is not None and member.simultaneous_high is not None
    return member.simultaneous_low, member.simultaneous_high


def known(number: int, difference: float, freedom: float = 40.0, seeds: int = 5) -> Comparison:
    """A comparison with a standard error of 1 and this difference."""
    found = comparison("any", number, seeds=seeds)
    p = 2 * float(stats.t.sf(abs(difference), freedom))
    return replace(
        found, difference=difference, standard_error=1.0, degrees_of_freedom=freedom, p_value=p, equivalence_p=1.0,
        low=difference - stats.t.isf(0.025, freedom), high=difference + stats.t.isf(0.025, freedom),
    )  # fmt: skip


def test_no_interval_of_a_family_contradicts_its_verdict() -> None:
    """Also not where Holm finds what Bonferroni's interval leaves open, as some of these families have it."""
    draw, like = stream(55, "coherent"), known(0, 0.0)
    sharper = 0
    for _ in range(100):
        m = int(draw.integers(1, 8))
        family = {}
        for i, t in enumerate(draw.normal(0.0, 1.0, m) + draw.choice([-9.0, 0.0, 2.5], m)):
            p = 2 * float(stats.t.sf(abs(t), 40.0))
            family[str(i)] = replace(like, difference=float(t), p_value=p)
        for member in holm_family(family, family="drawn").members:
            low, high = interval_of(member)
            assert (low > 0 or high < 0) == (member.verdict in ("better", "worse"))
            assert low < member.comparison.difference < high
            half = float(stats.t.isf(0.025 / m, 40.0))
            bonferroni = member.comparison.difference + np.array([-half, half])
            stepped = not np.allclose((low, high), bonferroni)
            assert stepped == (member.p_holm < 0.05 <= m * member.comparison.p_value)
            # The far end stays where it was.
            assert np.isclose((low, high), bonferroni).sum() >= 1
            sharper += stepped
    assert sharper > 4


def test_the_ends_by_hand() -> None:
    """Of p = 0.001, 0.02 and 0.04 Holm finds all: the second at 2.5 %, the third at 5 %; Bonferroni's intervals hold 0."""
    t = [float(stats.t.isf(p / 2, 40.0)) for p in (0.001, 0.02, 0.04)]
    members = holm_family({str(i): known(i, d) for i, d in enumerate(t)}, family="all").members
    assert [m.verdict for m in members] == ["better"] * 3
    half = float(stats.t.isf(0.025 / 3, 40.0))
    steps = [half, float(stats.t.isf(0.0125, 40.0)), float(stats.t.isf(0.025, 40.0))]
    for member, difference, step in zip(members, t, steps, strict=True):
        assert interval_of(member) == pytest.approx((difference - step, difference + half))
        assert difference - step > 0
    assert t[2] < t[1] < half


def test_intervals_of_a_family_hold_all_at_once() -> None:
    """150 families of five truths, all nulls or all of two standard errors, where directions are often stepped for."""
    draw, like = stream(56, "at once"), known(0, 0.0)
    for truth in (0.0, 2.0):
        held = 0
        for _ in range(150):
            family = {
                str(i): replace(like, difference=float(d), p_value=2 * float(stats.t.sf(abs(d), 40.0)))
                for i, d in enumerate(truth + stats.t.rvs(40.0, size=5, random_state=draw))
            }  # fmt: skip
            ends = [interval_of(m) for m in holm_family(family, family="five").members]
            held += all(low <= truth <= high for low, high in ends)
        # 95 % of 150 has a standard error of 1.8 %.
        assert held / 150 > 0.9


def test_what_a_family_can_see_is_larger() -> None:
    """Of eight comparisons each is tested at 5 % / 8."""
    family = {str(i): comparison("seen", i) for i in range(8)}
    for member in holm_family(family, family="eight").members:
        c = member.comparison
        assert c.detectable is not None and member.detectable is not None
        assert member.detectable > 1.2 * c.detectable
        found = power(member.detectable, c.standard_error, c.degrees_of_freedom, alpha=0.05 / 8)
        assert found == pytest.approx(0.8, abs=1e-6)


def test_below_five_seeds_nothing_is_detectable() -> None:
    """No verdict is ever given there, so no difference is found in 80 % of studies."""
    few = comparison("few", seeds=4, by=0.28)
    assert few.detectable is None and few.standard_error > 0
    assert holm_family({"x": few}, family="one").members[0].detectable is None


def test_an_exact_interval_widens_with_the_family() -> None:
    """All wrong against all right on eight examples: found alone, p = 2 / 256, and not among seven such."""
    c = compare(np.zeros((5, 8)), np.ones((5, 8)), resamples=2)
    assert c.verdict == "better" and c.low is not None and c.low > 0
    for m, verdict in ((6, "better"), (7, "cannot tell")):
        member = holm_family({str(i): c for i in range(m)}, family="all").members[0]
        low, high = interval_of(member)
        assert (member.verdict, low > 0, high) == (verdict, verdict == "better", 1.0)


def test_a_family_of_one_changes_nothing() -> None:
    c = comparison("alone", by=0.1)
    member = holm_family({"x": c}, family="one").members[0]
    assert (member.p_holm, member.verdict) == (c.p_value, c.verdict)
    assert (member.simultaneous_low, member.simultaneous_high) == pytest.approx((c.low, c.high))


def test_a_family_does_not_lift_the_bar_of_five_seeds() -> None:
    few = holm_family({"x": comparison("few", seeds=4, by=0.28)}, family="one").members[0]
    assert few.p_holm < 0.05 and few.verdict == "cannot tell"


def test_equivalences_of_a_family_are_adjusted_too() -> None:
    draw = stream(61, "equivalences")
    right = draw.random((6, 4000)) < 0.8
    alike = compare(right, right ^ (draw.random((6, 4000)) < 0.01), resamples=2)
    one = replace(alike, p_value=0.9, equivalence_p=0.04)
    assert holm_family({"x": one}, family="one").members[0].verdict == "equivalent"
    members = holm_family({"x": one, "y": one}, family="two").members
    assert [m.equivalence_p_holm for m in members] == pytest.approx([0.08, 0.08])
    assert [m.verdict for m in members] == ["cannot tell"] * 2


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


def test_points_and_shares_are_one_thing() -> None:
    """Floats of equal differences are not equal: as shares these had other ranks, and another verdict."""
    a = np.array([70, 89, 70, 79, 85, 82, 67, 78])
    b = np.array([68, 91, 72, 81, 88, 81, 70, 79])
    (of_points,) = across_tasks({"a": a, "b": b})
    (of_shares,) = across_tasks({"a": a / 100, "b": b / 100})
    assert of_shares.p_value == of_points.p_value == signed_rank_p((b / 100 - a / 100).tolist())
    assert of_shares.verdict == of_points.verdict == "cannot tell"
    (same,) = across_tasks({"a": np.full(6, 0.3), "b": [0.1 + 0.2] * 6})
    assert (same.ties, same.wins) == (6, 0)


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


def test_across_tasks_judges_by_the_adjusted_p() -> None:
    """Six wins of six have p = 1/32: enough for one pair, and not for one of three."""
    scores = {"a": [0.5] * 6, "b": [0.6, 0.61, 0.63, 0.66, 0.7, 0.75]}
    (alone,) = across_tasks(scores)
    among = across_tasks({**scores, "c": [0.5] * 6})[0]
    assert (alone.verdict, among.verdict) == ("better", "cannot tell")
    assert among.p_value < 0.05 < among.p_holm


def test_six_wins_of_six_are_the_least_that_counts() -> None:
    low, high = [0.5] * 6, [0.6, 0.61, 0.63, 0.66, 0.7, 0.75]
    found = across_tasks({"low": low, "high": high})[0]
    assert found.p_value == pytest.approx(0.03125) and found.verdict == "better"
    with pytest.raises(ValueError, match="at least 6 tasks are needed, but got 5"):
        across_tasks({"low": low[:5], "high": high[:5]})


def test_ties_do_not_turn_wins_into_a_loss() -> None:
    """The test drops tasks without a difference; where they are most, the middle of all pairs of tasks is 0."""
    wins = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    for ties in (0, 14, 15, 30):
        (found,) = across_tasks({"a": [0.0] * (6 + ties), "b": wins + [0.0] * ties})
        assert (found.verdict, found.wins, found.losses, found.ties) == ("better", 6, 0, ties)
        (other,) = across_tasks({"a": wins + [0.0] * ties, "b": [0.0] * (6 + ties)})
        assert other.verdict == "worse"


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
