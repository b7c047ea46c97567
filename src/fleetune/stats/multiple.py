"""Many comparisons at once: Holm over a declared family, Wilcoxon across tasks, and on how many tasks an effect holds.

A family is every comparison that a reader could have been shown as the finding, declared before the numbers are seen; leaving
one out of it afterwards is how false findings are made.

Sources: Holm 1979 (Scand. J. Statist. 6); Wilcoxon 1945; Demsar 2006 (JMLR 7) for tests across data sets, and Benavoli et al.
2016 (arXiv:1505.02288) on why not mean ranks over all methods: they change with the pool. Dror et al. 2017 (arXiv:1709.09500) for
replicability. Not covered: resampling-based families (Westfall and Young), which would win a little where tests are correlated.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fleetune.stats.compare import Comparison, detectable, has_variation, interval_at
from fleetune.stats.verdict import Verdict, decide

ALPHA = 0.05
# With 5 tasks the smallest two-sided p is 1/16: no result could ever count.
MIN_TASKS = 6
# 0.82 - 0.81 and 0.71 - 0.7 are one difference, which floats would give two ranks.
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Member:
    """One comparison of a family, judged with the others in view."""

    name: str
    comparison: Comparison
    p_holm: float
    equivalence_p_holm: float
    simultaneous_low: float | None
    """The interval that goes with the verdict: it leaves 0 out exactly where that is "better" or "worse" (of five seeds or more).
    None where nothing varies. At level 1 - (1 - level) / m, so that all m hold their truth at once with probability `level`
    (Bonferroni); only where Holm finds a direction that this leaves open, the end near 0 is that of Holm's own step."""
    simultaneous_high: float | None
    detectable: float | None
    """As of the comparison, at (1 - level) / m."""
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Family:
    """A declared family of comparisons after Holm."""

    name: str
    members: tuple[Member, ...]
    how: str


@dataclass(frozen=True, slots=True)
class AcrossTasks:
    """B against A over tasks: one difference a task, Wilcoxon's signed-rank test, Holm over the pairs."""

    a: str
    b: str
    median_difference: float
    wins: int
    """Tasks on which B scores higher."""
    losses: int
    ties: int
    p_value: float
    p_holm: float
    tasks: int
    verdict: Verdict
    how: str


@dataclass(frozen=True, slots=True)
class Replicability:
    """On how many tasks an effect holds, and on which this can be said."""

    count: int
    """At least so many tasks have the effect, with confidence 1 - alpha."""
    tasks: int
    named: tuple[str, ...]
    """Tasks on which the effect holds, all at once with confidence 1 - alpha (Holm)."""
    how: str


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the given order: reject where they are below alpha, and the family's error is alpha.

    With p sorted, p_(i) becomes the largest of (m - j + 1) p_(j) over j <= i, at most 1. Valid for any dependence.
    Raises ValueError for a p outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be a list of numbers in [0, 1], but got {p_values}.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(
        1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    )
    return tuple(adjusted.tolist())


def holm_family(comparisons: Mapping[str, Comparison], *, family: str) -> Family:
    """Judge all comparisons of a family together, at the error rate that each was made for.

    comparisons: by name, all of one level. family: what was declared, in words. Differences and equivalences are adjusted each
    among themselves.
    Misleads: a verdict "cannot tell" here with "better" outside the family is no contradiction; the family asks more questions
    and so needs more evidence for each. The chance that some "better" or "worse" is false is 1 - level, and that some
    "equivalent" is false is 1 - level too: two errors, not one. Holm finds more than simultaneous intervals of one width can show
    (Strassburger and Bretz 2008): where it does, the interval's end near 0 holds at the level of Holm's step alone, and all
    intervals together hold a little less often than `level` (docs/statistics.md).
    """
    levels = {c.level for c in comparisons.values()}
    if len(levels) != 1:
        raise ValueError(
            f"a family needs one level, shared by at least one comparison, but has {sorted(levels)}."
        )
    level, m = levels.pop(), len(comparisons)
    found = list(comparisons.values())
    adjusted = holm([c.p_value for c in found])
    equivalent = holm([c.equivalence_p for c in found])
    alpha = 1 - level
    members: list[Member] = []
    for name, c, p, e in zip(comparisons, found, adjusted, equivalent, strict=True):
        seeds = min(c.seeds_a, c.seeds_b)
        verdict, reason = decide(
            c.difference,
            p,
            e,
            alpha=alpha,
            seeds=seeds,
            margin=c.margin,
            varies=has_variation(c.low, c.standard_error, c.difference),
        )
        low, high = _simultaneous(c, p, alpha, m, found=verdict in ("better", "worse"))
        seen = detectable(c.standard_error, c.degrees_of_freedom, seeds, alpha / m)
        members.append(Member(name, c, p, e, low, high, seen, verdict, reason))
    how = f"Holm over {m} comparison{'s' * (m > 1)}: {family}"
    if m > 1:
        how += f"; intervals and detectable simultaneous over the {m}"
    return Family(family, tuple(members), how)


def _simultaneous(
    c: Comparison, p_holm: float, alpha: float, m: int, *, found: bool
) -> tuple[float, float] | tuple[None, None]:
    """Bonferroni's interval, and where Holm found a direction that it leaves open its end near 0 from Holm's step.

    Holm multiplies p by m at most, and by less once others are decided: at alpha p / p_holm the interval leaves out 0 exactly
    where p_holm < alpha. An undecided comparison has p >= alpha / m, so that Bonferroni's interval holds 0.
    """
    wide = interval_at(c, 1 - alpha / m)
    if wide is None:
        return None, None
    low, high = wide
    if found and low <= 0.0 <= high:
        step = interval_at(c, 1 - alpha * c.p_value / p_holm)
        assert step is not None
        low, high = (step[0], high) if c.difference > 0 else (low, step[1])
    return low, high


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided exact p of Wilcoxon's signed-rank test; zeros are dropped, ties (up to rounding) get midranks.

    The distribution over all sign flips is built by adding one rank after another, so ties cost no approximation. 1 where all
    are 0.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(d).all():
        raise ValueError(f"differences must be finite, but got {list(differences)}.")
    d = np.round(d, _DIGITS)
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    # Midranks are halves; doubled they are whole, and sums of them can index an array.
    ranks = np.rint(2 * stats.rankdata(np.abs(d))).astype(np.intp)
    ways = np.zeros(int(ranks.sum()) + 1)
    ways[0] = 1.0
    for rank in ranks:
        ways[rank:] = 0.5 * (ways[rank:] + ways[: len(ways) - rank])
        ways[:rank] *= 0.5
    above = int(ranks[d > 0].sum())
    tail = min(ways[: above + 1].sum(), ways[above:].sum())
    return float(min(1.0, 2 * tail))


def across_tasks(
    scores: Mapping[str, Sequence[float]], *, alpha: float = ALPHA, reference: str | None = None
) -> tuple[AcrossTasks, ...]:
    """Compare methods over six tasks or more: all pairs, or each against `reference`.

    scores: for each method one mean score a task, tasks in one order. A difference of a point must mean the same on each task.
    Assumes: tasks are a sample of those that matter, and their differences are symmetric about their median.
    Misleads: GLUE's tasks are no random sample, and three of them are the same kind of inference; per-task intervals always
    belong beside this. It never gives "equivalent": no margin over tasks is agreed on.
    Raises ValueError for fewer than 6 tasks, since 5 cannot reach a two-sided 5 % at all, and for numbers of tasks that differ.
    """
    lengths = {len(values) for values in scores.values()}
    if len(lengths) != 1 or len(scores) < 2:
        raise ValueError(
            f"at least two methods scored on the same tasks are needed, but got {len(scores)} with {sorted(lengths)} tasks."
        )
    tasks = lengths.pop()
    if tasks < MIN_TASKS:
        raise ValueError(
            f"at least {MIN_TASKS} tasks are needed, but got {tasks}; compare the methods on each task instead."
        )
    if reference is not None and reference not in scores:
        raise ValueError(f'`reference` must be one of {", ".join(scores)}, but is "{reference}".')
    pairs = (
        list(itertools.combinations(scores, 2))
        if reference is None
        else [(reference, name) for name in scores if name != reference]
    )
    gaps = [np.round(np.subtract(scores[b], scores[a]), _DIGITS) for a, b in pairs]
    p_values = [signed_rank_p(gap.tolist()) for gap in gaps]
    found: list[AcrossTasks] = []
    for (a, b), gap, p, p_holm in zip(pairs, gaps, p_values, holm(p_values), strict=True):
        wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
        verdict: Verdict = "cannot tell"
        if p_holm < alpha:
            # By the test's own statistic: the plain median may be 0, or of the other sign.
            verdict = "better" if _rank_sum(gap) > 0 else "worse"
        how = f"exact Wilcoxon signed-rank over {tasks} tasks, Holm over {len(pairs)} pairs"
        median = float(np.median(gap))
        found.append(
            AcrossTasks(
                a, b, median, wins, losses, tasks - wins - losses, p, p_holm, tasks, verdict, how
            )
        )
    return tuple(found)


def _rank_sum(gap: np.ndarray) -> float:
    """The ranks of the differences that are not 0, each with its sign."""
    d = gap[gap != 0]
    return float(np.sign(d) @ stats.rankdata(np.abs(d)))


def replicability(p_values: Mapping[str, float], *, alpha: float = ALPHA) -> Replicability:
    """On at least how many tasks does the effect hold?

    p_values: by task, one-sided for the effect asked about (for a two-sided p of the right sign, half of it). For each u, the
    hypothesis "fewer than u tasks have it" has p (m - u + 1) p_(u), made monotone; the count is the largest u below alpha.
    Valid however tasks depend on one another (Bonferroni's form in Dror et al. 2017; Fisher's needs independence).
    Misleads: counting tasks with p < 0.05 each, as is usual, overstates the count; this does not, and may understate it.
    """
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    m = len(adjusted)
    # Holm's adjusted p is this partial-conjunction p, made monotone.
    count = sum(p < alpha for p in adjusted.values())
    named = tuple(name for name, p in adjusted.items() if p < alpha)
    return Replicability(count, m, named, f"partial conjunction over {m} tasks, Bonferroni")
