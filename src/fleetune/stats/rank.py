"""Does rank matter? The slope of the score on log2 r, each rank against a reference, and how much rank an update uses.

Notation: ranks r_1 < ... < r_G, scores [S_g, n] of each, the same examples for all; x_g = log2 r_g.

The slope is a contrast of means, sum_g c_g mean_g with c_g = (x_g - mean x) / sum (x - mean x)^2, so its variance is that of
stats/crossed.py: trainings of different ranks are independent, examples are shared.
Sources: least squares with known design; Roy and Vetterli 2007 (EUSIPCO) for the entropy rank; Rudelson and Vershynin 2007
(arXiv:math/0503442) for the stable rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fleetune.stats.bootstrap import RESAMPLES
from fleetune.stats.compare import (
    LEVEL,
    MARGIN,
    NO_VARIATION,
    Comparison,
    cautious,
    check_settings,
    compare,
    detectable,
    nothing_varies,
    of_two_values,
    t_half,
    t_test,
)
from fleetune.stats.crossed import Floats, checked, contrast
from fleetune.stats.multiple import Family, holm_family
from fleetune.stats.scores import (
    checked_outputs,
    compare_scores,
    finite_scores,
    of_classes,
    pseudo_values,
)
from fleetune.stats.verdict import Verdict, decide
from fleetune.stats.weighted import Score, scorer_of


@dataclass(frozen=True, slots=True)
class RankPoint:
    """The mean score of one rank with its interval."""

    r: int
    value: float
    low: float | None
    """None where nothing varies."""
    high: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class RankTrend:
    """How the score changes with rank, in its unit for each doubling of r."""

    slope: float
    low: float | None
    """None where nothing varies."""
    high: float | None
    p_value: float
    degrees_of_freedom: float
    detectable: float | None
    """The smallest slope that such a study finds in 80 % of cases, at a two-sided 1 - level; None below five seeds."""
    equivalence_p: float
    """Of the change over the whole range of ranks being at least `margin`, either way."""
    margin: float
    points: tuple[RankPoint, ...]
    reference: int
    contrasts: Family
    """Each other rank against the reference, Holm over all of them."""
    n: int
    verdict: Verdict
    """Of larger ranks against smaller ones."""
    reason: str
    how: str


@dataclass(frozen=True, slots=True)
class EffectiveRank:
    """How many directions a matrix uses; both are 0 for a matrix of zeros and at most its rank."""

    entropy: float
    """exp of the entropy of the singular values' shares: small ones count a little."""
    stable: float
    """Sum of squares over the largest square: hardly moved by small ones."""


def rank_trend(
    scores: Mapping[int, ArrayLike],
    *,
    reference: int | None = None,
    margin: float = MARGIN,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RankTrend:
    """The trend of the score over ranks.

    scores: for each rank [S, n], booleans or numbers, at least two ranks and two seeds each. reference: the rank that the
    others are compared with, by default the smallest. margin: of the whole change from the smallest rank to the
    largest. resamples, seed: of the contrasts' bootstrap check.
    Assumes: one rule for alpha at all ranks, and a learning rate tuned at each rank or stated as fixed; else the slope is about
    them as much as about the rank.
    Misleads: a slope near 0 with a bow in between (rising, then falling) is not "no effect": look at the points and the
    contrasts. The rank with the highest mean is not "the best rank": among several equal ones some is always highest.
    Raises ValueError for fewer than two ranks, a rank below 1, an unknown reference, one seed, or different examples.
    """
    check_settings(margin, level)
    groups = _checked(scores)
    chosen = _reference(groups, reference)
    means = {r: float(g.mean()) for r, g in groups.items()}
    against = {
        r: compare(groups[chosen], g, margin=margin, level=level, resamples=resamples, seed=seed)
        for r, g in groups.items()
        if r != chosen
    }
    answers = of_two_values(list(groups.values()))
    return _trend(groups, means, chosen, against, margin, level, "", classes=answers)


def rank_trend_scores(
    score: Score,
    outputs: Mapping[int, ArrayLike],
    labels: ArrayLike,
    *,
    reference: int | None = None,
    margin: float = MARGIN,
    level: float = LEVEL,
    resamples: int | None = None,
    seed: int = 0,
) -> RankTrend:
    """The trend over ranks of any score of (outputs, labels): F1, Matthews, Pearson and others that are no mean.

    score, labels, resamples: as `compare_scores` has them. outputs: for each rank [S, n] or [S, n, C]. All else as `rank_trend`,
    which it equals for "accuracy": the variance is that of jackknife pseudo-values (stats/scores.py), the slope that of the
    scores themselves.
    Assumes and misleads: as `rank_trend` and `compare_scores`. Raises ValueError as they do.
    """
    check_settings(margin, level)
    if len(outputs) < 2 or min(outputs) < 1:
        raise ValueError(f"at least two ranks, each >= 1, are needed, but got {sorted(outputs)}.")
    named = {f"outputs[{r}]": outputs[r] for r in sorted(outputs)}
    sides, truth = checked_outputs(named, labels, named=isinstance(score, str))
    given = dict(zip(sorted(outputs), sides, strict=True))
    scorer = scorer_of(score, np.concatenate(sides), truth)
    whole = finite_scores(scorer, len(truth))
    pseudo = pseudo_values(scorer, whole, len(truth))
    ends = np.cumsum([len(side) for side in sides])[:-1]
    groups = _checked(dict(zip(given, np.split(pseudo, ends), strict=True)))
    means = {r: float(w.mean()) for r, w in zip(given, np.split(whole, ends), strict=True)}
    chosen = _reference(groups, reference)
    against = {
        r: compare_scores(
            score, given[chosen], side, truth, margin=margin, level=level, resamples=resamples, seed=seed,
        )
        for r, side in given.items()
        if r != chosen
    }  # fmt: skip
    of, classes = " of jackknife pseudo-values", of_classes(*sides)
    return _trend(groups, means, chosen, against, margin, level, of, classes=classes)


def _trend(
    groups: Mapping[int, Floats],
    means: Mapping[int, float],
    chosen: int,
    against: Mapping[int, Comparison],
    margin: float,
    level: float,
    of: str,
    *,
    classes: bool,
) -> RankTrend:
    """groups: what varies as the scores do, [S, n] by rank; means: the score of each rank; classes: whether it scores those."""
    x = np.log2(np.asarray(list(groups), dtype=np.float64))
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()
    values = list(groups.values())
    found, varies = contrast(values, weights.tolist()), not nothing_varies(values, weights.tolist())
    slope = float(weights @ np.asarray(list(means.values())))
    variance, freedom = float(found.variance), float(found.freedom)
    span = float(x[-1] - x[0])
    # The margin is about the whole change, slope times span.
    test = t_test(slope, variance if varies else 0.0, freedom, margin / span, level)
    if classes:
        test = cautious(test, values, weights.tolist(), slope, margin / span)
    seeds = min(len(g) for g in groups.values())
    verdict, reason = decide(
        slope, test.p_value, test.equivalence_p, alpha=1 - level, seeds=seeds, margin=margin,
        over=" over the whole range of ranks", varies=varies,
    )  # fmt: skip
    contrasts = {f"r={r} against r={chosen}": compared for r, compared in against.items()}
    return RankTrend(
        slope=slope,
        low=test.low,
        high=test.high,
        p_value=test.p_value,
        degrees_of_freedom=freedom,
        detectable=detectable(test.standard_error, freedom, seeds, 1 - level),
        equivalence_p=test.equivalence_p,
        margin=margin,
        points=tuple(_point(r, means[r], g, level) for r, g in groups.items()),
        reference=chosen,
        contrasts=holm_family(contrasts, family=f"every rank against r={chosen}"),
        n=groups[chosen].shape[1],
        verdict=verdict,
        reason=reason,
        how=f"{100 * level:g}% crossed t{of} of the least-squares slope on log2 r over seeds and examples, Satterthwaite"
        if varies
        else NO_VARIATION,
    )


def _reference(groups: Mapping[int, Floats], reference: int | None) -> int:
    chosen = min(groups) if reference is None else reference
    if chosen not in groups:
        raise ValueError(f"`reference` must be one of the ranks {list(groups)}, but is {chosen}.")
    return chosen


def _checked(scores: Mapping[int, ArrayLike]) -> dict[int, Floats]:
    if len(scores) < 2 or min(scores) < 1:
        raise ValueError(f"at least two ranks, each >= 1, are needed, but got {sorted(scores)}.")
    groups = {r: checked(f"scores[{r}]", scores[r]) for r in sorted(scores)}
    few = [r for r, g in groups.items() if len(g) < 2]
    if few:
        raise ValueError(f"every rank needs at least 2 seeds, but {few} have one; run more seeds.")
    sizes = {r: g.shape[1] for r, g in groups.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all ranks must be scored on the same examples, but have {sizes}.")
    return groups


def _point(r: int, value: float, scores: Floats, level: float) -> RankPoint:
    found = contrast((scores,), (1.0,))
    if nothing_varies((scores,), (1.0,)):
        return RankPoint(r, value, None, None, len(scores))
    half = t_half(float(found.variance) ** 0.5, float(found.freedom), level)
    return RankPoint(r, value, value - half, value + half, len(scores))


def effective_rank(singular_values: ArrayLike) -> EffectiveRank:
    """Entropy rank exp(-sum p_i log p_i), p_i = s_i / sum s, and stable rank sum s_i^2 / max s_i^2.

    singular_values: [k], at least 0. Of a LoRA update B A with r columns both are at most r.
    Misleads: an update may use few directions because little had to be learned; a low effective rank is not by itself a reason
    to train with a smaller r. Both ignore the size of the update.
    Raises ValueError for negative or not finite values, or none.
    """
    s = np.asarray(singular_values, dtype=np.float64)
    if s.ndim != 1 or len(s) == 0 or not np.isfinite(s).all() or (s < 0).any():
        raise ValueError(f"singular values must be [k], finite and >= 0, but got {s}.")
    largest = float(s.max())
    if largest == 0.0:
        return EffectiveRank(0.0, 0.0)
    # Divided by the largest first, so that squares neither overflow nor vanish.
    relative = s / largest
    share = relative[relative > 0] / relative.sum()
    return EffectiveRank(
        entropy=float(np.exp(-(share * np.log(share)).sum())),
        stable=float(np.square(relative).sum()),
    )
