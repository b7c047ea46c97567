"""The best score to expect from a budget of k trials, for each k up to the trials that were run.

Notation: n trials with scores sorted v_1 <= ... <= v_n, a budget of k of them.

    with replacement (Dodge et al. 2019, arXiv:1909.03004):   E_k = sum_i v_i ((i / n)^k - ((i - 1) / n)^k)
    unbiased (Tang et al. 2020, arXiv:2004.13705):            E_k = sum_i v_i C(i - 1, k - 1) / C(n, k)

The first is the expected best of k draws from the trials seen, which is too low for k near n, since no draw beats the best seen;
the second is the mean best over all subsets of k, without bias. Dodge et al. 2021 (arXiv:2110.00613) found that the unbiased one
has the highest variance and that biased ones give fewer wrong conclusions about which of two methods is better, so the first is
the default; its bias is alike for methods with the same number of trials, which is what a study gives them. That depends on the
scores: where they crowd at the top, as on a plateau of good settings, the unbiased one had less variance too (docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fleetune.seeds import stream
from fleetune.stats.bootstrap import Floats

Estimator = Literal["with replacement", "unbiased"]
RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class BudgetCurve:
    """Expected best score by budget, in the unit of the score."""

    budgets: tuple[int, ...]
    """In trials."""
    expected: tuple[float, ...]
    low: tuple[float, ...]
    """Pointwise interval."""
    high: tuple[float, ...]
    n: int
    """Trials that were run."""
    how: str


def budget_weights(n: int, budgets: Sequence[int], estimator: Estimator) -> Floats:
    """What each of n sorted scores counts for in the expected best of each budget: [budgets, n], rows sum to 1."""
    place, k = np.arange(1, n + 1, dtype=np.float64), np.asarray(budgets, dtype=np.float64)[:, None]
    if estimator == "with replacement":
        return (place / n) ** k - ((place - 1) / n) ** k
    # In logarithms: C(400, 200) does not fit a float64's integers, and C of too few things is exp(-inf) = 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        above = _log_choose(place - 1, k - 1) - _log_choose(np.full_like(place, n), k)
    return np.where(place >= k, np.exp(above), 0.0)


def _log_choose(things: Floats, taken: Floats) -> Floats:
    return (
        special.gammaln(things + 1)
        - special.gammaln(taken + 1)
        - special.gammaln(things - taken + 1)
    )


def expected_best(
    scores: ArrayLike,
    budgets: Sequence[int] | None = None,
    *,
    estimator: Estimator = "with replacement",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> BudgetCurve:
    """The expected best selection score of k random trials, with a pointwise percentile bootstrap band over trials.

    scores: [n], higher is better, of all trials that were run, failed ones at the score that they earned. budgets: each from 1 to
    n, by default all.
    Assumes: trials are independent draws from the search space, as random search gives them.
    Misleads: for TPE or halving, whose later trials depend on earlier ones, it is a description and no forecast. It is the best
    *selection* score, optimistic by construction; test scores belong beside it. The band is too narrow at large k, where all
    hangs on the few best trials, and it is pointwise: curves may cross within it. Two methods are compared only at budgets
    that both have.
    Raises ValueError for no scores, scores that are not finite, or a budget outside 1..n: nothing is extrapolated.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"`scores` must be finite numbers [n], n >= 1, but their shape is {values.shape}; give a trial that "
            "failed the score it earned."
        )
    n = len(values)
    chosen = tuple(range(1, n + 1)) if budgets is None else tuple(budgets)
    wrong = [k for k in chosen if not 1 <= k <= n]
    if wrong or not chosen:
        raise ValueError(
            f"budgets must lie in 1..{n}, the trials that were run, but got {list(chosen)}."
        )
    if estimator not in ("with replacement", "unbiased"):
        raise ValueError(f'`estimator` is "with replacement" or "unbiased", but got "{estimator}".')
    weights = budget_weights(n, chosen, estimator)
    draw = stream(seed, "bootstrap", "budget", n)
    drawn = np.sort(values[draw.integers(0, n, (resamples, n))], axis=1) @ weights.T
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    how = f"expected best of k trials, {estimator}; {100 * level:g}% pointwise bootstrap over {n} trials"
    expected = weights @ values
    return BudgetCurve(
        chosen, tuple(expected.tolist()), tuple(low.tolist()), tuple(high.tolist()), n, how
    )
