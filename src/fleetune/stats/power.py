"""How small a difference a study can see, and how many seeds or examples a wanted difference needs.

Power of the two-sided t test of a difference d with standard error se and df degrees of freedom: the noncentral t distribution
with noncentrality d / se. Planning: the variance components of a pilot, put into the formula of stats/crossed.py at another
number of seeds or examples; degrees of freedom after Satterthwaite at those numbers.

Source: Cohen, "Statistical Power Analysis" (1988); for tests over seeds and examples Card et al. 2020 (arXiv:2010.06595).
Misleads: components come from a pilot and are as uncertain as it was; with five seeds the variance between seeds may be off by
a factor of two either way. Power of a comparison already made, at the difference it saw, says nothing beyond its p-value
(Hoenig and Heisey 2001); the detectable difference does not depend on the difference seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from fleetune.stats.crossed import Components, Floats
from fleetune.stats.verdict import MIN_SEEDS

POWER = 0.8
ALPHA = 0.05
# Beyond this t and normal quantiles agree to four digits.
_NORMAL_FROM = 1e4
# Gauss and Legendre on the probabilities of the estimated error; agrees with scipy's noncentral t to 1e-5 (tests).
_X, _W = np.polynomial.legendre.leggauss(200)
_NODES, _WEIGHTS = (_X + 1) / 2, _W / 2
# Nobody trains more; a wanted difference that needs more is out of reach.
MOST_SEEDS = 10_000
MOST_EXAMPLES = 100_000_000


def power(
    difference: float, standard_error: float, degrees_of_freedom: float, *, alpha: float = ALPHA
) -> float:
    """The probability that a two-sided test at `alpha` finds a true difference of this size, of either sign."""
    if standard_error <= 0:
        raise ValueError(f"`standard_error > 0` must hold, but got {standard_error}.")
    shift = abs(difference) / standard_error
    if degrees_of_freedom > _NORMAL_FROM:
        return _power_at(shift, np.full_like(_NODES, float(stats.norm.isf(alpha / 2))))
    limit = float(stats.t.isf(alpha / 2, degrees_of_freedom))
    return _power_at(shift, limit * _relative_errors(degrees_of_freedom))


def _relative_errors(degrees_of_freedom: float) -> Floats:
    """Estimated over true standard error at the nodes of the quadrature."""
    return np.sqrt(stats.chi2.ppf(_NODES, degrees_of_freedom) / degrees_of_freedom)


def _power_at(shift: float, limits: Floats) -> float:
    """The noncentral t's two tails: the mean over the estimated error of the normal tails beyond that many true errors.

    scipy's own is not used: its noncentral t gives nan from noncentralities of about 17 at few degrees of freedom.
    """
    return float(_WEIGHTS @ (special.ndtr(shift - limits) + special.ndtr(-shift - limits)))


def detectable_difference(
    standard_error: float,
    degrees_of_freedom: float,
    *,
    wanted_power: float = POWER,
    alpha: float = ALPHA,
) -> float:
    """The smallest true difference that a two-sided test at `alpha` finds with `wanted_power`; 0 where nothing varies."""
    if not alpha < wanted_power < 1:
        raise ValueError(f"`{alpha} < wanted_power < 1` must hold, but got {wanted_power}.")
    if standard_error == 0.0:
        return 0.0

    # Beyond _NORMAL_FROM the same with an error that is known.
    known = degrees_of_freedom > _NORMAL_FROM
    quantile = stats.norm.isf(alpha / 2) if known else stats.t.isf(alpha / 2, degrees_of_freedom)
    errors = np.ones_like(_NODES) if known else _relative_errors(degrees_of_freedom)
    limits = float(quantile) * errors

    def lack(shift: float) -> float:
        return _power_at(shift, limits) - wanted_power

    high = 1.0
    while lack(high) < 0:
        high *= 1.5
    root: Any = optimize.brentq(lack, 0.0, high, xtol=1e-10)
    return float(root) * standard_error


def planned(found: Components, seeds: int, examples: int) -> tuple[float, float]:
    """Standard error and degrees of freedom to expect of a comparison with `seeds` a side and `examples`.

    The expected mean squares of stats/crossed.py are put together as the estimator does, so that planning and test agree.
    """
    residual = (found.residual_a + found.residual_b) / (seeds * examples)
    over_examples = found.examples / examples + residual
    variance, spread = over_examples - residual, over_examples**2 / (examples - 1)
    for seed, rest in (
        (found.seed_a, found.residual_a),
        (found.seed_b, found.residual_b),
    ):
        between = seed / seeds + rest / (seeds * examples)
        variance += between
        own = rest / (seeds * examples)
        spread += between**2 / (seeds - 1) + own**2 / ((seeds - 1) * (examples - 1))
    if variance == 0.0:
        return 0.0, float(examples - 1)
    return math.sqrt(variance), max(variance**2 / spread, 1.0)


def seeds_needed(
    found: Components,
    difference: float,
    *,
    examples: int | None = None,
    wanted_power: float = POWER,
    alpha: float = ALPHA,
) -> int | None:
    """The fewest seeds a side that find `difference` with `wanted_power`; None where no number of seeds does.

    examples: of the test set, by default the pilot's. More seeds do not help against a small test set: then the answer is
    None, and `examples_needed` says what would. At least 5, since no verdict is given below. Of one comparison; of m, give
    alpha / m.
    """
    rows = found.n if examples is None else examples
    _check_plan(difference, rows, "examples")

    def enough(seeds: int) -> bool:
        error, freedom = planned(found, seeds, rows)
        needed = detectable_difference(error, freedom, wanted_power=wanted_power, alpha=alpha)
        return needed <= abs(difference)

    return _fewest(enough, MIN_SEEDS, MOST_SEEDS)


def examples_needed(
    found: Components,
    difference: float,
    *,
    seeds: int | None = None,
    wanted_power: float = POWER,
    alpha: float = ALPHA,
) -> int | None:
    """The fewest test examples that find `difference` with `wanted_power`; None where no number of them does.

    seeds: a side, by default the smaller of the pilot's two; at least 5, since no verdict is given below. Of one comparison;
    of m, give alpha / m.
    """
    trainings = max(min(found.seeds_a, found.seeds_b), MIN_SEEDS) if seeds is None else seeds
    _check_plan(difference, trainings, "seeds", MIN_SEEDS)

    def enough(examples: int) -> bool:
        error, freedom = planned(found, trainings, examples)
        needed = detectable_difference(error, freedom, wanted_power=wanted_power, alpha=alpha)
        return needed <= abs(difference)

    return _fewest(enough, 2, MOST_EXAMPLES)


def _check_plan(difference: float, number: int, name: str, least: int = 2) -> None:
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(
            f"`difference` must be a finite number other than 0, but got {difference}; no study finds a difference of 0."
        )
    if number < least:
        raise ValueError(f"`{name} >= {least}` must hold, but got {number}.")


def _fewest(enough: Callable[[int], bool], least: int, most: int) -> int | None:
    """The smallest number from `least` to `most` for which `enough` holds, which must stay true once it is."""
    if not enough(most):
        return None
    low, high = least - 1, least
    while not enough(high):
        low, high = high, min(high * 2, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
