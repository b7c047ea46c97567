"""`compare`: what it says under a null and an effect, what leaves it unchanged, and what it does at the edges."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from scipy import stats

from fleetune.records import as_json
from fleetune.seeds import stream
from fleetune.stats.bootstrap import crossed_differences, mean_scorer
from fleetune.stats.compare import Comparison, compare
from fleetune.stats.multiple import holm_family

NUMBERS = (
    "low",
    "high",
    "p_value",
    "degrees_of_freedom",
    "detectable",
    "probability_better",
    "equivalence_p",
)


def one(
    name: str, seeds: tuple[int, int] = (6, 6), n: int = 60, *, by: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    a, b = simulate(stream(7, name), 1, seeds, n, NOISES["calm"], difference=by)
    return a[0], b[0]


# --- rates


def rate(
    noise: str, seeds: int, n: int, studies: int, *, difference: float = 0.0
) -> tuple[float, float]:
    """Share of studies that find a difference, and whose interval holds the true one."""
    draw = stream(8, noise, seeds, n, int(1000 * difference))
    found = covered = 0
    for _ in range(studies // 50):
        a, b = simulate(draw, 50, (seeds, seeds), n, NOISES[noise], difference=difference)
        for one_a, one_b in zip(a, b, strict=True):
            c = compare(one_a, one_b, resamples=2)
            found += c.verdict in ("better", "worse")
            covered += c.low <= difference <= c.high
    return found / studies, covered / studies


@pytest.mark.parametrize("noise", ["calm", "noisy"])
def test_false_positives_are_near_five_percent(noise: str) -> None:
    """300 nulls; the 2,000 of each regime are marked slow."""
    found, covered = rate(noise, 5, 277, 300)
    # 5 % of 300 is 15 with a standard deviation of 3.8: three of them either way.
    assert 0.012 <= found <= 0.088
    assert covered == pytest.approx(1 - found)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["calm", "noisy"])
@pytest.mark.parametrize("n", [277, 872])
@pytest.mark.parametrize("seeds", [5, 10])
def test_false_positives_over_2000_nulls(noise: str, seeds: int, n: int) -> None:
    found, covered = rate(noise, seeds, n, 2000)
    assert 0.035 <= found <= 0.065
    assert 0.935 <= covered <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["calm", "noisy"])
@pytest.mark.parametrize("seeds", [5, 10])
def test_coverage_of_a_true_difference_over_2000_studies(noise: str, seeds: int) -> None:
    _, covered = rate(noise, seeds, 277, 2000, difference=0.03)
    assert 0.935 <= covered <= 0.975


# --- what must not matter


def test_swapping_the_sides_turns_everything_round() -> None:
    turned = {
        "better": "worse",
        "worse": "better",
        "equivalent": "equivalent",
        "cannot tell": "cannot tell",
    }
    verdicts: set[str] = set()
    for i in range(40):
        a, b = one(f"swap{i}", (5, 7), 300, by=0.002 * i)
        forth, back = compare(a, b, resamples=50), compare(b, a, resamples=50)
        verdicts.add(forth.verdict)
        assert back.verdict == turned[forth.verdict]
        # The variances of A and B are added in another order.
        assert (back.difference, back.low, back.high) == pytest.approx(
            (-forth.difference, -forth.high, -forth.low), rel=1e-11
        )
        assert back.p_value == pytest.approx(forth.p_value, rel=1e-11)
        assert back.equivalence_p == pytest.approx(forth.equivalence_p, rel=1e-11)
        assert back.probability_better == pytest.approx(1 - forth.probability_better)
        assert (back.value_a, back.seeds_a) == (forth.value_b, forth.seeds_b)
    assert {"better", "cannot tell"} <= verdicts


def same(one: Comparison, other: Comparison) -> None:
    for name in ("difference", *NUMBERS):
        # Sums in another order: the last digits of numbers of size one.
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-7, abs=1e-10), name
    assert one.verdict == other.verdict


def test_order_of_seeds_and_examples_does_not_matter() -> None:
    draw = stream(9, "permute")
    for i in range(20):
        a, b = one(f"order{i}", (5, 8), 100, by=0.05)
        examples = draw.permutation(100)
        moved = compare(
            draw.permutation(a)[:, examples], draw.permutation(b)[:, examples], resamples=2
        )
        same(compare(a, b, resamples=2), moved)


def test_a_constant_on_both_sides_does_not_matter() -> None:
    for i in range(20):
        a, b = one(f"constant{i}", by=0.05)
        same(compare(a, b, resamples=2), compare(a + 3.25, b + 3.25, resamples=2))


def test_the_unit_does_not_matter() -> None:
    a, b = one("unit", by=0.05)
    fractions, percents = compare(a, b), compare(100.0 * a, 100.0 * b, margin=1.0)
    assert percents.verdict == fractions.verdict
    assert percents.p_value == pytest.approx(fractions.p_value, rel=1e-9)
    assert percents.equivalence_p == pytest.approx(fractions.equivalence_p, rel=1e-9)
    assert percents.bootstrap_low == pytest.approx(100 * fractions.bootstrap_low, rel=1e-9)
    assert percents.detectable == pytest.approx(100 * fractions.detectable, rel=1e-9)


def test_booleans_and_numbers_are_the_same() -> None:
    a, b = one("kinds")
    assert compare(a, b) == compare(a.astype(np.float32), b.astype(np.int8))


def test_the_same_seed_gives_the_same_record_and_another_one_another_check() -> None:
    a, b = one("seeded")
    assert compare(a, b) == compare(a, b)
    other = compare(a, b, seed=1)
    assert other.bootstrap_low != compare(a, b).bootstrap_low
    assert other.p_value == compare(a, b).p_value


# --- the fields


def test_probability_better_is_mann_whitney_over_trainings() -> None:
    draw = stream(10, "mann")
    for i in range(100):
        a, b = one(f"mann{i}", tuple(draw.integers(2, 9, 2).tolist()), 20)
        u = stats.mannwhitneyu(b.sum(1), a.sum(1)).statistic
        found = compare(a, b, resamples=2).probability_better
        assert found == pytest.approx(u / (len(a) * len(b)), abs=1e-12)


def test_the_bootstrap_draws_trainings_of_the_two_sides_apart() -> None:
    """Two equal sides whose trainings differ: were one draw made for both, every difference would be 0."""
    side = np.repeat(np.linspace(0, 1, 5)[:, None], 40, axis=1)
    scorer = mean_scorer(np.concatenate([side, side]))
    draws = crossed_differences(scorer, 5, 5, 40, resamples=2000, seed=0)
    assert np.std(draws) == pytest.approx(side[:, 0].std() * (2 / 5) ** 0.5, rel=0.1)


def test_equivalence_is_two_one_sided_tests() -> None:
    """Where trainings agree, scipy's one-sided paired t-tests against -margin and margin."""
    draw = stream(11, "tost")
    for _ in range(100):
        a, b = draw.normal(size=40), draw.normal(size=40)
        margin = float(draw.uniform(0.05, 1))
        found = compare(np.tile(a, (5, 1)), np.tile(b, (5, 1)), margin=margin, resamples=2)
        upper = stats.ttest_rel(b - margin, a, alternative="less").pvalue
        lower = stats.ttest_rel(b + margin, a, alternative="greater").pvalue
        assert found.equivalence_p == pytest.approx(max(upper, lower), rel=1e-7)


def test_equivalence_needs_more_than_a_few_answers() -> None:
    """One wrong answer of 1,000 turned "know almost nothing" into "surely smaller than the margin"."""
    right = np.ones((10, 50), dtype=bool)
    wrong = right.copy()
    wrong[0, 0] = False
    for b in (right, wrong):
        found = compare(right, b, resamples=2)
        assert found.verdict == "cannot tell"
        assert found.equivalence_p >= 0.99**50
    assert compare(np.ones((5, 298)), np.ones((5, 298)), resamples=2).verdict == "cannot tell"
    many = np.ones((10, 2000), dtype=bool)
    few = many.copy()
    few[0, :2] = False
    assert compare(many, few, resamples=2).verdict == "equivalent"


@pytest.mark.parametrize(("seeds", "n", "share"), [(5, 300, 0.01), (10, 100, 0.01), (5, 408, 0.02)])
def test_false_equivalence_is_rare(seeds: int, n: int, share: float) -> None:
    """B is wrong on a share of the rows where A is right: a true difference of the margin or more, on few rows."""
    said = 0
    for i in range(200):
        draw = stream(14, "feigned", seeds, n, i)
        a = np.tile(draw.random(n) < 0.75, (seeds, 1))
        b = a & (draw.random(n) >= share / 0.75)
        said += compare(a, b, resamples=2).verdict == "equivalent"
    assert said / 200 <= 0.08


def test_equivalence_of_classes_by_hand() -> None:
    """t on the table with an example more on which only A is right, and one on which only B is; scipy's paired test does it
    where trainings agree. The difference stays the one that was seen."""
    draw = stream(15, "by hand")
    a, b = draw.random(1500) < 0.8, draw.random(1500) < 0.8
    found = compare(np.tile(a, (5, 1)), np.tile(b, (5, 1)), margin=0.05, resamples=2)
    gap = np.concatenate([b.astype(float) - a, [1.0, -1.0]])
    error = gap.std(ddof=1) / np.sqrt(1502)
    expected = stats.t.sf((0.05 - abs(found.difference)) / error, 1501)
    assert found.equivalence_p == pytest.approx(expected, rel=1e-9)


def test_one_training_against_many_says_whose_seeds_are_in_it() -> None:
    draw = stream(16, "one")
    one, ten = draw.random((1, 60)) < 0.8, draw.random((10, 60)) < 0.8
    assert "examples and the seeds of B, one training on the other side" in compare(one, ten).how
    assert "examples and the seeds of A" in compare(ten, one).how
    assert "over examples only, one training on a side" in compare(one, ten[:1]).how


def test_bootstrap_interval_is_scipys_over_examples() -> None:
    """Trainings that agree leave examples alone to draw from: scipy's paired percentile bootstrap."""
    draw = stream(12, "scipy")
    for i in range(3):
        a, b = draw.normal(size=80), draw.normal(0.3, 1, 80)
        found = compare(np.tile(a, (5, 1)), np.tile(b, (4, 1)), resamples=20_000)
        scipys = stats.bootstrap(
            (b - a,), np.mean, n_resamples=20_000, method="percentile", rng=stream(i, "oracle")
        ).confidence_interval
        # The quantile of 20,000 draws wavers by about 1.7 % of a standard error; both do.
        assert found.bootstrap_low == pytest.approx(scipys.low, abs=0.08 * found.standard_error)
        assert found.bootstrap_high == pytest.approx(scipys.high, abs=0.08 * found.standard_error)


def test_bootstrap_interval_is_scipys_over_seeds() -> None:
    """Scores that depend on the training alone leave seeds to draw from: scipy's two-sample bootstrap."""
    draw = stream(13, "scipy seeds")
    a, b = draw.normal(size=9), draw.normal(0.5, 1, 12)
    found = compare(np.tile(a[:, None], 5), np.tile(b[:, None], 5), resamples=20_000)
    scipys = stats.bootstrap(
        (b, a),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        n_resamples=20_000,
        method="percentile",
        rng=stream(0, "oracle"),
    ).confidence_interval
    assert found.bootstrap_low == pytest.approx(scipys.low, abs=0.08 * found.standard_error)
    assert found.bootstrap_high == pytest.approx(scipys.high, abs=0.08 * found.standard_error)


def test_bootstrap_check_disagrees_where_it_should() -> None:
    records = [compare(*one(f"check{i}", (5, 5), 200, by=0.06), resamples=400) for i in range(30)]
    for c in records:
        sides = [
            (low > 0) - (high < 0)
            for low, high in ((c.low, c.high), (c.bootstrap_low, c.bootstrap_high))
        ]
        assert c.bootstrap_agrees == (sides[0] == sides[1])
    assert {c.bootstrap_agrees for c in records} == {True, False}


def test_a_level_changes_interval_and_verdict_together() -> None:
    a, b = one("level", (8, 8), 400, by=0.04)
    for level in (0.8, 0.9, 0.95, 0.99, 0.999):
        c = compare(a, b, level=level, resamples=2)
        assert (c.verdict == "better") == (c.low > 0)


# --- the verdict


def test_large_effects_are_found_and_named() -> None:
    a, b = one("large", by=0.25)
    c = compare(a, b)
    assert c.verdict == "better" and c.low > 0 and c.bootstrap_agrees and c.probability_better > 0.9


def test_equal_methods_on_many_examples_are_equivalent() -> None:
    draw = stream(14, "equivalent")
    a, b = simulate(draw, 1, (10, 10), 20_000, NOISES["no seed effect"])
    c = compare(a[0], b[0], resamples=10)
    assert c.verdict == "equivalent" and c.low > -0.015 and c.high < 0.015


def test_a_real_difference_below_the_margin_is_better_and_called_small() -> None:
    draw = stream(15, "small")
    a, b = simulate(draw, 1, (10, 10), 3000, NOISES["no seed effect"], difference=0.03)
    c = compare(a[0], b[0], margin=0.2, resamples=10)
    assert c.verdict == "better"
    assert "surely smaller than the margin of 0.2" in c.reason


@pytest.mark.parametrize("seeds", [(4, 4), (4, 20), (20, 4), (2, 2), (1, 10), (1, 1)])
def test_fewer_than_five_seeds_never_give_a_verdict(seeds: tuple[int, int]) -> None:
    a, b = one("few", seeds, 300, by=0.29)
    c = compare(a, b, resamples=20)
    assert c.verdict == "cannot tell"
    assert f"{min(seeds)} training" in c.reason and "run more seeds" in c.reason


def test_one_training_has_an_interval_over_examples_and_no_test() -> None:
    a, b = one("single", (1, 1), 200, by=0.1)
    c = compare(a, b, resamples=20)
    paired = stats.ttest_rel(b[0].astype(float), a[0].astype(float)).confidence_interval(0.95)
    assert (c.low, c.high) == pytest.approx((paired.low, paired.high))
    assert (c.p_value, c.equivalence_p, c.detectable) == (1.0, 1.0, None)
    assert "examples only, one training on a side" in c.how


# --- degenerate input


def test_all_right_everywhere_is_bounded_by_what_could_hide() -> None:
    """872 examples without a difference: a share of 0.35 % or more that differ would have shown."""
    many = compare(np.ones((5, 872), bool), np.ones((6, 872), bool), resamples=2)
    assert (1 - many.high) ** 872 == pytest.approx(0.025)
    assert many.low == -many.high and many.p_value == 1.0
    assert "over examples only" in many.how


def test_trainings_that_all_gave_the_same_answers_are_not_equivalent() -> None:
    """Five that collapsed to one answer say nothing of one that would not."""
    same = np.tile(np.random.default_rng(0).random(5000) < 0.5, (5, 1))
    c = compare(same, same, resamples=20)
    several = holm_family({"a": c, "b": c}, family="both")
    for found in (c, *several.members):
        assert found.verdict == "cannot tell"
        assert found.reason.startswith("nothing varies over these trainings and examples")
    assert c.equivalence_p == 1.0


def test_collapsed_trainings_are_rarely_called_equivalent_falsely() -> None:
    """B beats A by two margins in expectation, but nine trainings of ten give one and the same answer, and all of A's."""
    draw = np.random.default_rng(0)
    right = np.zeros(872, bool)
    right[:444] = True
    said = 0
    for _ in range(100):
        a, b = (np.tile(right, (5, 1)) for _ in range(2))
        b[draw.random(5) < 0.1, 444:618] = True  # 20 points more, once in ten
        said += compare(a, b, resamples=2).verdict == "equivalent"
    assert said <= 5


def test_all_right_against_all_wrong() -> None:
    c = compare(np.zeros((5, 50), bool), np.ones((5, 50), bool), resamples=2)
    assert c.verdict == "better" and c.high == 1.0 and 0.8 < c.low < 1.0
    assert c.p_value == pytest.approx(2 * 0.5**50)


def test_numbers_that_never_vary_give_no_verdict() -> None:
    c = compare(np.full((5, 9), 0.5), np.full((5, 9), 0.7), resamples=2)
    assert c.verdict == "cannot tell" and c.p_value == 1.0 and c.detectable is None


def test_identical_predictions_that_vary_over_examples() -> None:
    a, _ = one("identical", (5, 5), 277)
    c = compare(a, a, resamples=20)
    assert c.difference == 0.0 and c.p_value == 1.0 and c.low < 0 < c.high
    assert c.verdict == "cannot tell"


@pytest.mark.parametrize("pattern", ["checkerboard", "two examples", "one differs", "two seeds"])
def test_strange_tables_give_finite_numbers(pattern: str) -> None:
    board = np.indices((6, 8)).sum(0) % 2 == 0
    differs = np.ones((5, 8), bool)
    differs[0, 0] = False
    a, b = {
        "checkerboard": (board, ~board),
        "two examples": (board[:, :2], board[::-1, :2]),
        "one differs": (np.ones((5, 8), bool), differs),
        "two seeds": (board[:2], ~board[:2]),
    }[pattern]
    c = compare(a, b, resamples=20)
    for field in dataclasses.fields(c):
        value = getattr(c, field.name)
        assert not isinstance(value, float) or math.isfinite(value), field.name
    assert c.low <= c.difference <= c.high
    assert c.verdict in ("cannot tell", "equivalent")


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones((5, 8)), np.ones((5, 9)), "A has 8 and B has 9"),
        (
            np.ones(8),
            np.ones((5, 8)),
            r"\[seeds, examples\] and not empty, but its shape is \(8,\)",
        ),
        (np.ones((5, 8)), np.ones((0, 8)), "`correct_b` must be"),
        (np.ones((5, 1)), np.ones((5, 1)), "at least 2 examples"),
        (np.ones((5, 8)), np.full((5, 8), np.nan), "`correct_b` must be finite, but 40"),
        (np.full((5, 8), np.inf), np.ones((5, 8)), "`correct_a` must be finite"),
        (np.full((5, 8), "yes"), np.ones((5, 8)), "booleans or numbers"),
        (np.full((5, 8), 1j), np.ones((5, 8)), "booleans or numbers"),
    ],
)
def test_wrong_arrays_are_named(a: np.ndarray, b: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(a, b)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"margin": 0.0}, "`margin > 0`"),
        ({"margin": math.nan}, "`margin > 0`"),
        ({"level": 95}, "0.95 is 95 %"),
        ({"level": 1.0}, "`0.5 < level < 1`"),
        ({"resamples": 0}, "`resamples >= 1`"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(*one("settings"), **settings)


def test_a_record_is_json() -> None:
    told = json.loads(json.dumps(as_json(compare(*one("json"), resamples=20)), allow_nan=False))
    assert told["verdict"] in ("better", "worse", "equivalent", "cannot tell")
    assert told["n"] == 60


def test_ten_thousand_resamples_are_quick() -> None:
    a, b = one("speed", (10, 10), 872)
    compare(a, b, resamples=10)
    began = time.process_time()
    compare(a, b)
    # About 0.3 s of processor time; a Python loop over resamples takes 20.
    assert time.process_time() - began < 2.0
