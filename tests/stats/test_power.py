"""Power and planning: against scipy's noncentral t, against simulated studies, against counting up one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from scipy import stats

from fleetune.seeds import stream
from fleetune.stats.compare import compare
from fleetune.stats.crossed import Components, components, contrast
from fleetune.stats.power import (
    detectable_difference,
    examples_needed,
    planned,
    power,
    seeds_needed,
)

PILOT = Components(0.0004, 0.0009, 0.08, 0.05, 0.07, seeds_a=5, seeds_b=6, n=277)


def test_power_equals_scipys_noncentral_t() -> None:
    draw = stream(20, "nct")
    for _ in range(500):
        freedom, shift = float(draw.uniform(1, 60)), float(draw.uniform(0, 6))
        limit = stats.t.isf(0.025, freedom)
        oracle = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
        # The quadrature's error; a power is never read to more than three digits.
        assert power(shift, 1.0, freedom) == pytest.approx(oracle, abs=1e-5)


def test_power_at_no_difference_is_alpha_and_grows_to_one() -> None:
    for freedom in (1.0, 4.0, 30.0, 1e5):
        assert power(0.0, 0.01, freedom) == pytest.approx(0.05, abs=1e-5)
        assert power(0.05, 0.01, freedom) == power(-0.05, 0.01, freedom)
        rising = [power(d, 0.01, freedom) for d in np.linspace(0, 0.3, 20)]
        assert rising == sorted(rising)
    assert power(0.2, 0.01, 30) > 0.9999


@pytest.mark.parametrize("freedom", [1.0, 1.5, 4.0, 8.3, 100.0, 1e6])
def test_detectable_is_where_power_is_reached(freedom: float) -> None:
    for wanted in (0.5, 0.8, 0.95):
        found = detectable_difference(0.02, freedom, wanted_power=wanted)
        assert power(found, 0.02, freedom) == pytest.approx(wanted, abs=1e-8)


def test_detectable_of_many_degrees_is_the_sum_of_normal_quantiles() -> None:
    wanted = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    assert detectable_difference(1.0, 1e9) == pytest.approx(wanted, abs=1e-4)
    assert detectable_difference(0.0, 5.0) == 0.0


@pytest.mark.parametrize(("noise", "seeds"), [("calm", 10), ("noisy", 6)])
def test_simulated_studies_have_the_planned_power(noise: str, seeds: int) -> None:
    """Components of a large pilot, planned at another size: 400 studies of that size find what was planned for."""
    n = 200
    a, b = (x[0] for x in simulate(stream(21, noise), 1, (150, 150), 3000, NOISES[noise]))
    error, freedom = planned(components(a, b), seeds, n)
    wanted = detectable_difference(error, freedom)
    a, b = simulate(
        stream(22, noise), 400, (seeds, seeds), n, NOISES[noise], accuracy=0.66, difference=wanted
    )
    found = contrast((a.astype(float), b.astype(float)), (-1.0, 1.0))
    hits = np.abs(found.value) > stats.t.isf(0.025, found.freedom) * found.variance**0.5
    # 80 % of 400 has a standard error of 2 %; the pilot's components are known to about 5 %.
    assert hits.mean() == pytest.approx(0.8, abs=0.08)


def test_detectable_of_a_record_is_planned_from_its_own_components() -> None:
    """Planning at the size of the pilot gives back what the comparison itself says, as long as nothing was cut at 0."""
    for i in range(20):
        a, b = (x[0] for x in simulate(stream(23, i), 1, (8, 8), 100, NOISES["noisy"]))
        found, pilot = compare(a, b, resamples=2), components(a, b)
        if min(pilot.seed_a, pilot.seed_b, pilot.examples) > 0:
            error, freedom = planned(pilot, 8, 100)
            assert (error, freedom) == pytest.approx(
                (found.standard_error, found.degrees_of_freedom), rel=1e-9
            )


def test_seeds_needed_equals_counting_up() -> None:
    for wanted in (0.075, 0.08, 0.1, 0.15):
        count = 5  # below which no verdict is given
        while detectable_difference(*planned(PILOT, count, 277)) > wanted:
            count += 1
        assert seeds_needed(PILOT, wanted) == count
    assert seeds_needed(PILOT, 0.5) == 5
    assert seeds_needed(PILOT, -0.1) == seeds_needed(PILOT, 0.1)


def test_examples_needed_equals_counting_up() -> None:
    for wanted in (0.08, 0.1):
        count = 2
        while detectable_difference(*planned(PILOT, 6, count)) > wanted:
            count += 1
        assert examples_needed(PILOT, wanted, seeds=6) == count


def test_examples_are_planned_for_as_many_seeds_as_a_verdict_takes() -> None:
    """Of a pilot with fewer trainings, too."""
    pilot = Components(0.0001, 0.0001, 0.08, 0.05, 0.07, seeds_a=2, seeds_b=3, n=277)
    assert examples_needed(pilot, 0.05) == examples_needed(pilot, 0.05, seeds=5)


def test_a_small_test_set_cannot_be_helped_by_seeds() -> None:
    """Examples alone leave a standard error of sqrt(0.08 / 277): 4.8 points is what no number of seeds gets below."""
    floor = (stats.norm.isf(0.025) + stats.norm.isf(0.2)) * math.sqrt(0.08 / 277)
    assert seeds_needed(PILOT, 0.98 * floor) is None
    assert seeds_needed(PILOT, 1.05 * floor) is not None
    assert seeds_needed(PILOT, 0.98 * floor, examples=5000) is not None


def test_few_seeds_cannot_be_helped_by_examples() -> None:
    noisy = Components(0.01, 0.01, 0.08, 0.05, 0.05, seeds_a=5, seeds_b=5, n=277)
    assert examples_needed(noisy, 0.03) is None
    assert examples_needed(noisy, 0.03, seeds=400) is not None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: seeds_needed(PILOT, 0.0), "no study finds a difference of 0"),
        (lambda: seeds_needed(PILOT, 0.1, examples=1), "`examples >= 2`"),
        (lambda: examples_needed(PILOT, 0.1, seeds=4), "`seeds >= 5`"),
        (lambda: power(0.1, 0.0, 5), "`standard_error > 0`"),
        (lambda: detectable_difference(0.1, 5, wanted_power=1.0), "wanted_power"),
    ],
)
def test_wrong_arguments_are_named(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
