"""The crossed variance: against plain loops, against the tests it turns into at the edges, and unbiased."""

from __future__ import annotations

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from scipy import stats

from fleetune.seeds import stream
from fleetune.stats.compare import compare
from fleetune.stats.crossed import components, contrast

# The formulas agree term by term; only the order of sums differs.
EXACT = {"rtol": 1e-9, "atol": 1e-13}


def plain(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Difference, variance, degrees of freedom, written as sums over cells."""
    n = a.shape[1]
    variance, spread, least = 0.0, 0.0, 0.0
    for side in (a, b):
        seeds = len(side)
        grand = sum(sum(row) for row in side) / (seeds * n)
        rows = [sum(row) / n for row in side]
        columns = [sum(side[s][i] for s in range(seeds)) / seeds for i in range(n)]
        s2 = sum((r - grand) ** 2 for r in rows) / (seeds - 1)
        rest = sum(
            (side[s][i] - rows[s] - columns[i] + grand) ** 2 for s in range(seeds) for i in range(n)
        ) / ((seeds - 1) * (n - 1))
        variance += s2 / seeds - rest / (seeds * n)
        least += rest / (seeds * n)
        spread += (s2 / seeds) ** 2 / (seeds - 1)
        spread += (rest / (seeds * n)) ** 2 / ((seeds - 1) * (n - 1))
    gaps = [sum(b[:, i]) / len(b) - sum(a[:, i]) / len(a) for i in range(n)]
    d = sum(gaps) / n
    over = sum((g - d) ** 2 for g in gaps) / (n - 1) / n
    variance = max(variance + over, least)
    return d, variance, max(1.0, variance**2 / (spread + over**2 / (n - 1)))


def test_variance_equals_sums_over_cells() -> None:
    draw = stream(0, "plain")
    for _ in range(500):
        seeds_a, seeds_b, n = (*draw.integers(2, 5, 2).tolist(), int(draw.integers(2, 9)))
        a, b = draw.random((seeds_a, n)), draw.random((seeds_b, n))
        found = contrast((a, b), (-1.0, 1.0))
        got = (float(found.value), float(found.variance), float(found.freedom))
        np.testing.assert_allclose(got, plain(a, b), **EXACT)


def test_leading_axes_are_studies_of_their_own() -> None:
    draw = stream(1, "batch")
    a, b = draw.random((3, 2, 4, 7)), draw.random((3, 2, 5, 7))
    together = contrast((a, b), (-1.0, 1.0))
    for i in range(3):
        for j in range(2):
            alone = contrast((a[i, j], b[i, j]), (-1.0, 1.0))
            np.testing.assert_allclose(together.variance[i, j], alone.variance, **EXACT)
            np.testing.assert_allclose(together.freedom[i, j], alone.freedom, **EXACT)


def test_without_example_effects_it_is_welch() -> None:
    """Scores that depend on the training alone: Welch's test over seeds, 500 random inputs."""
    draw = stream(2, "welch")
    for _ in range(500):
        seeds_a, seeds_b = draw.integers(2, 12, 2).tolist()
        a, b = draw.normal(size=seeds_a), draw.normal(0.3, 2.0, seeds_b)
        found = contrast((np.tile(a[:, None], 6), np.tile(b[:, None], 6)), (-1.0, 1.0))
        welch = stats.ttest_ind(b, a, equal_var=False)
        t = float(found.value) / float(found.variance) ** 0.5
        np.testing.assert_allclose((t, found.freedom), (welch.statistic, welch.df), **EXACT)


def test_without_seed_effects_it_is_the_paired_t_test() -> None:
    """Trainings that all agree: the paired t-test over examples, 500 random inputs, through `compare`."""
    draw = stream(3, "paired")
    for _ in range(500):
        n = int(draw.integers(3, 30))
        a, b = draw.normal(size=n), draw.normal(0.2, 1.5, n)
        found = compare(np.tile(a, (6, 1)), np.tile(b, (5, 1)), resamples=2)
        paired = stats.ttest_rel(b, a)
        interval = paired.confidence_interval(0.95)
        np.testing.assert_allclose(
            (found.p_value, found.degrees_of_freedom, found.low, found.high),
            (paired.pvalue, paired.df, interval.low, interval.high),
            **EXACT,
        )


@pytest.mark.parametrize("name", ["calm", "noisy", "rest only"])
def test_variance_is_unbiased(name: str) -> None:
    """The mean estimate over 4,000 studies is the variance of the 4,000 differences; the naive sum's is not."""
    noise = NOISES[name]
    a, b = simulate(stream(4, name), 4000, (6, 6), 100, noise)
    found = contrast((a.astype(float), b.astype(float)), (-1.0, 1.0))
    truth = found.value.var(ddof=1)
    # The variance of 4,000 draws is known to 2.2 % (one standard error); the floor adds a little where all is rest.
    assert found.variance.mean() == pytest.approx(truth, rel=0.09 if name == "rest only" else 0.07)
    naive = (a.mean(2).var(1, ddof=1) + b.mean(2).var(1, ddof=1)) / 6
    naive = naive + (b.mean(1) - a.mean(1)).var(1, ddof=1) / 100
    if name == "rest only":
        assert naive.mean() > 1.5 * truth


def test_components_are_recovered() -> None:
    draw = stream(5, "components")
    seeds, n = 400, 3000
    easy = draw.normal(size=n)
    a = easy + draw.normal(0, 0.5, (seeds, 1)) + draw.normal(0, 1.5, (seeds, n))
    b = (
        easy
        + draw.normal(0, 0.8, n)
        + draw.normal(0, 0.2, (seeds, 1))
        + draw.normal(0, 1, (seeds, n))
    )
    found = components(a, b)
    got = (found.seed_a, found.seed_b, found.examples, found.residual_a, found.residual_b)
    # A variance from 400 draws has a standard error of 7 %.
    np.testing.assert_allclose(got, (0.25, 0.04, 0.64, 2.25, 1.0), rtol=0.22)


def test_components_are_never_negative() -> None:
    draw = stream(6, "negative")
    for _ in range(50):
        found = components(draw.random((3, 5)), draw.random((2, 5)))
        assert min(found.seed_a, found.seed_b, found.examples) >= 0
        assert min(found.residual_a, found.residual_b) > 0


def test_components_of_one_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds a side, but got 1 and 3"):
        components(np.ones((1, 4)), np.ones((3, 4)))
