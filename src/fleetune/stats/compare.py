"""Method against method: is B better than A, over new trainings and new examples?

Notation: S seeds (trainings), n examples; scores [S, n], for accuracy a boolean array "was it right". The two sides may have
different numbers of seeds, never different examples.

Why not the usual tests, at a nominal 5 % when both methods are equally good: McNemar on one training each finds a difference in
15 to 50 % of studies, a t-test over seeds alone in 5 to 75 %, since neither sees both sources of chance (docs/statistics.md has
the table, and the command that prints it). numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fleetune.stats.bootstrap import (
    RESAMPLES,
    crossed_differences,
    mean_scorer,
    percentile,
    same_side,
)
from fleetune.stats.crossed import Floats, checked_pair, contrast
from fleetune.stats.power import detectable_difference
from fleetune.stats.verdict import MIN_SEEDS, Verdict, decide, in_words

MARGIN = 0.01
LEVEL = 0.95
NO_VARIATION = "nothing varies, no interval and no test"
ALL_AGREE = "exact bound over examples only, since all trainings agree on every one"
# Pseudo-values are differences of numbers n times as large as themselves, n up to a few ten thousand.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known about the difference of two methods, B minus A, in the unit of the score."""

    difference: float
    low: float | None
    """Lower end of the interval of the difference; None where nothing varies, for then there is none."""
    high: float | None
    p_value: float
    """Two-sided, of the difference being 0; 1 where a side has one training, for then no test exists."""
    standard_error: float
    degrees_of_freedom: float
    detectable: float | None
    """The smallest true difference that this many seeds and examples find in 80 % of studies, tested two-sided at 1 - level.

    None below five seeds, where no verdict is given, and where nothing varies."""
    probability_better: float
    """That a training of B scores above one of A on these examples; ties count half."""
    bootstrap_low: float | None
    """The same interval by the crossed bootstrap, as a check."""
    bootstrap_high: float | None
    bootstrap_agrees: bool
    """Whether both intervals say the same about 0; True where there are none."""
    equivalence_p: float
    """Of the difference being at least `margin`, either way (two one-sided tests); 1 where nothing varies."""
    margin: float
    level: float
    value_a: float
    """Mean score of A over seeds and examples."""
    value_b: float
    seeds_a: int
    seeds_b: int
    n: int
    verdict: Verdict
    """Of B against A."""
    reason: str
    """Why this verdict, in one sentence."""
    how: str
    """How interval and p-value were computed, in words."""
    metric: str = ""
    """By which metric, where its name is known."""
    optimistic: bool = False
    """Whether a side chose its epoch or setting on these same examples (protocol "paper")."""
    optimistic_of: str = ""
    """Which: "A", "B" or "A and B"."""

    def __str__(self) -> str:
        return in_words(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An interval of a difference and the tests that go with it."""

    low: float | None
    high: float | None
    p_value: float
    equivalence_p: float
    standard_error: float
    freedom: float


def compare(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two methods by the mean of a score over seeds and examples.

    correct_a, correct_b: [S_A, n] and [S_B, n], booleans or finite numbers; column i is the same example on both sides.
    margin: differences below it do not matter, for the verdict "equivalent"; in the unit of the score. level: of the interval;
    1 - level is the error rate of every test. resamples, seed: of the bootstrap check.

    Formula: d = mean_B - mean_A, Var d = s2_A / S_A + s2_B / S_B + s2_examples / n - (r_A / S_A + r_B / S_B) / n, t with
    Satterthwaite's degrees of freedom (stats/crossed.py). Equivalence: two one-sided t tests (Schuirmann 1987), made cautious.
    probability_better: U / (S_A S_B) of Mann and Whitney over the trainings' means (Bouthillier et al. 2021, arXiv:2103.03098).
    Assumes: the settings of both methods were chosen with equal budgets, on other examples; examples are independent.
    Misleads: with fewer than five seeds a side the spread of trainings is hardly known, so the verdict is "cannot tell"; with
    one, the interval is about these trainings on new examples, not about methods, and `how` says so. With very unequal numbers
    of seeds and wild trainings it finds a difference in about 8 % of null studies. A method that was picked as the best of
    several on these examples wins by luck: compare it on others.
    Raises ValueError for arrays that are not [S, n], not finite, or of different examples, for one example, for a margin or
    level out of range.
    """
    a, b = checked_pair(correct_a, correct_b)
    check_settings(margin, level)
    binary = _is_binary(a) and _is_binary(b)
    found = contrast((a, b), (-1.0, 1.0))
    difference = float(found.value)
    if nothing_varies((a, b), (-1.0, 1.0)):
        test = _without_variation(difference, a.shape[1], level, binary=binary)
        method = f"{100 * level:g}% {ALL_AGREE}" if binary else NO_VARIATION
    else:
        test = t_test(difference, float(found.variance), float(found.freedom), margin, level)
        if of_two_values((a, b)):
            test = cautious(test, (a, b), (-1.0, 1.0), difference, margin)
        over = over_what(len(a), len(b))
        method = f"{100 * level:g}% crossed t over {over}, Satterthwaite"
    draws = crossed_differences(
        mean_scorer(np.concatenate([a, b])),
        len(a),
        len(b),
        a.shape[1],
        resamples=resamples,
        seed=seed,
    )
    return assemble(
        difference,
        test,
        (float(a.mean()), float(b.mean())),
        (a.mean(1), b.mean(1)),
        percentile(draws, level),
        n=a.shape[1],
        margin=margin,
        level=level,
        how=method,
    )


def check_settings(margin: float, level: float) -> None:
    """ValueError for a margin or level that no test can use."""
    if not 0.0 < margin < np.inf:
        raise ValueError(f"`margin > 0` must hold, but got {margin}.")
    if not 0.5 < level < 1.0:
        raise ValueError(f"`0.5 < level < 1` must hold, but got {level}; 0.95 is 95 %.")


def t_test(
    difference: float, variance: float, freedom: float, margin: float, level: float
) -> Outcome:
    """Interval, two-sided test and two one-sided tests of a difference whose variance is an estimate; none where that is 0."""
    if variance <= 0.0:
        return untested(freedom)
    error = variance**0.5
    half = t_half(error, freedom, level)
    p_value = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    equivalence = float(stats.t.sf((margin - abs(difference)) / error, freedom))
    return Outcome(difference - half, difference + half, p_value, equivalence, error, freedom)


def cautious(
    test: Outcome,
    groups: Sequence[Floats],
    weights: Sequence[float],
    difference: float,
    margin: float,
) -> Outcome:
    """The same outcome, with an equivalence that a few examples cannot feign.

    For scores of classes: groups [S_g, n] of right and wrong answers, or of what each adds to a score; weights: of the contrast,
    summing to 0. Where hardly an example tells the groups apart, the estimated variance is nearly 0, and a t test is sure of any
    margin. So two examples are added that differ as much as any can, one either way (after Agresti and Min 2005, who add to
    every cell of the table of pairs), and p is never below (1 - margin)^n, that of n examples that all agree.
    """
    if test.low is None:
        return test
    n = groups[0].shape[1]
    least = min(float(g.min()) for g in groups)
    reach = max(float(g.max()) for g in groups) - least
    size = sum(abs(w) for w in weights) / 2
    columns = [least + reach * np.array([w > 0, w < 0]) for w in weights]
    more = [
        np.column_stack([g, np.tile(c, (len(g), 1))]) for g, c in zip(groups, columns, strict=True)
    ]
    found = contrast(more, weights)
    error = float(found.variance) ** 0.5
    p = float(stats.t.sf((margin - abs(difference)) / error, float(found.freedom)))
    unseen = max(0.0, 1 - margin / (reach * size)) ** n
    return replace(test, equivalence_p=max(test.equivalence_p, p, unseen))


def over_what(seeds_a: int, seeds_b: int) -> str:
    """What an interval of a difference is over, in words."""
    if max(seeds_a, seeds_b) == 1:
        return "examples only, one training on a side"
    if min(seeds_a, seeds_b) == 1:
        return f"examples and the seeds of {'A' if seeds_a > 1 else 'B'}, one training on the other side"
    return "seeds and examples"


def untested(freedom: float) -> Outcome:
    """What is known where nothing varies: no interval, and no test that could find anything."""
    return Outcome(None, None, 1.0, 1.0, 0.0, freedom)


def t_half(error: float, freedom: float, level: float) -> float:
    """Half the width of the t interval."""
    return float(stats.t.isf((1 - level) / 2, freedom)) * error


def interval_at(found: Comparison, level: float) -> tuple[float, float] | None:
    """The interval of a comparison at another level; None where it has none."""
    if found.low is None:
        return None
    if found.standard_error == 0.0:
        return _exact(found.difference, found.n, level)
    half = t_half(found.standard_error, found.degrees_of_freedom, level)
    return found.difference - half, found.difference + half


def has_variation(low: float | None, error: float, difference: float) -> bool:
    """Whether there was any to go by: an interval, and more behind it than rows that all say the same."""
    return low is not None and (error > 0.0 or difference != 0.0)


def detectable(error: float, freedom: float, seeds: int, alpha: float) -> float | None:
    """What a test at `alpha` would find; None of too few seeds (the smaller side's) for a verdict, and without error."""
    if error == 0.0 or seeds < MIN_SEEDS:
        return None
    return detectable_difference(error, freedom, alpha=alpha)


def assemble(
    difference: float,
    test: Outcome,
    values: tuple[float, float],
    trainings: tuple[Floats, Floats],
    bootstrap: tuple[float, float],
    *,
    n: int,
    margin: float,
    level: float,
    how: str,
    metric: str = "",
) -> Comparison:
    """The record of a comparison, with its verdict. trainings: the score of each training of A, and of B."""
    seeds = tuple(len(side) for side in trainings)
    alone = min(seeds) == 1
    p_value, equivalence_p = (1.0, 1.0) if alone else (test.p_value, test.equivalence_p)
    verdict, reason = decide(
        difference,
        p_value,
        equivalence_p,
        alpha=1 - level,
        seeds=min(seeds),
        margin=margin,
        varies=has_variation(test.low, test.standard_error, difference),
    )
    check = (None, None) if test.low is None else bootstrap
    return Comparison(
        difference=difference,
        low=test.low,
        high=test.high,
        p_value=p_value,
        standard_error=test.standard_error,
        degrees_of_freedom=test.freedom,
        detectable=detectable(test.standard_error, test.freedom, min(seeds), 1 - level),
        probability_better=probability_better(*trainings),
        bootstrap_low=check[0],
        bootstrap_high=check[1],
        bootstrap_agrees=test.low is None
        or test.high is None
        or same_side(test.low, test.high, *bootstrap),
        equivalence_p=equivalence_p,
        margin=margin,
        level=level,
        value_a=values[0],
        value_b=values[1],
        seeds_a=seeds[0],
        seeds_b=seeds[1],
        n=n,
        verdict=verdict,
        reason=reason,
        how=how,
        metric=metric,
    )


def probability_better(trainings_a: Floats, trainings_b: Floats) -> float:
    """The share of pairs of one training of each side in which B scores higher; ties count half."""
    # Means of the same counts may differ in the last bit; such a tie must stay one.
    gap = np.round(trainings_b[None, :] - trainings_a[:, None], 12)
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def of_two_values(groups: Sequence[Floats]) -> bool:
    """Whether scores are of the kind of right and wrong answers, in whatever unit."""
    return len(np.unique(np.concatenate([g.ravel() for g in groups]))) <= 2


def _is_binary(scores: NDArray[np.float64]) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def nothing_varies(groups: Sequence[Floats], weights: Sequence[float]) -> bool:
    """Whether trainings of a group [S_g, n] agree on every example, and the contrast is the same everywhere, up to rounding."""
    least = _ROUNDING * max(float(np.abs(g).max()) for g in groups)
    gap = sum((w * g[0] for w, g in zip(weights, groups, strict=True)), np.zeros(1))
    return bool(np.ptp(gap) <= least and all((np.ptp(g, axis=0) <= least).all() for g in groups))


def _without_variation(difference: float, n: int, level: float, *, binary: bool) -> Outcome:
    """The exact statement where every example showed the same difference, in every training.

    Of right and wrong: a share q of other examples that do differ goes unseen in n with probability (1 - q)^n ("rule of
    three"; Hanley and Lippman-Hand 1983), which bounds how far the mean may lie from what was seen. It knows nothing of
    trainings that would differ: a few that all gave one constant answer are no sign that the next one will, so nothing is
    equivalent. Of other scores nothing can be said.
    """
    if not binary:
        return untested(float(n - 1))
    p_value = 1.0 if difference == 0 else min(1.0, 2 * 0.5**n)
    low, high = _exact(difference, n, level)
    return Outcome(low, high, p_value, 1.0, 0.0, float(n - 1))


def _exact(difference: float, n: int, level: float) -> tuple[float, float]:
    """The interval of a difference that was -1, 0 or 1 on every example."""
    unseen = 1 - ((1 - level) / 2) ** (1 / n)
    # An example may turn a difference of 0 into one of 1, and one of 1 into -1.
    reach = unseen * (1 if difference == 0 else 2)
    return max(-1.0, difference - reach), min(1.0, difference + reach)
