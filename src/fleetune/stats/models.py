"""Two saved models on the same rows: which of these two files is better on new examples like these?

Notation: n examples; correct [n] booleans for each model. `only_a` examples that A alone gets right, `only_b` that B alone does.

Not a comparison of the methods that made the files: another seed gives other files. stats/compare.py compares methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fleetune.seeds import stream
from fleetune.stats.bootstrap import RESAMPLES, Floats, percentile
from fleetune.stats.compare import LEVEL, MARGIN, NO_VARIATION, check_settings
from fleetune.stats.scores import of_classes, tested
from fleetune.stats.verdict import Verdict, decide, in_words

ABOUT = "these two files, not the methods that made them"


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """What is known about the difference of two saved models, B minus A."""

    difference: float
    low: float | None
    """None, as `high`, where nothing varies over the examples: there is no interval."""
    high: float | None
    p_value: float
    """By accuracy exact McNemar, by another metric a t test over examples; two-sided."""
    only_a: int | None
    """Examples that A alone gets right; None by another metric than accuracy."""
    only_b: int | None
    value_a: float
    value_b: float
    equivalence_p: float
    margin: float
    level: float
    n: int
    verdict: Verdict
    """Of file B against file A."""
    reason: str
    how: str
    metric: str = "accuracy"
    about: str = ABOUT
    optimistic: bool = False
    """Whether a file's epoch or setting was chosen on these same rows (protocol "paper")."""
    optimistic_of: str = ""
    """Which: "A", "B" or "A and B"."""

    def __str__(self) -> str:
        return in_words(self)


def compare_models(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ModelComparison:
    """Compare two saved models on the same rows.

    correct_a, correct_b: boolean [n]. p: exact McNemar (1947), the binomial test of `only_b` out of `only_a + only_b` at one
    half; the interval: paired percentile bootstrap over examples, drawn as multinomial counts of the three kinds of examples,
    which is the same distribution, or where that is wider the interval that belongs to McNemar's test (Clopper and Pearson 1934,
    of the share of `only_b`), so that interval and p say the same about 0. Where no row tells the models apart: the exact bound
    on the share of rows that do and were not met (Hanley and Lippman-Hand 1983). Equivalence: the share of resamples at or beyond
    the margin on the worse side, with one added to both counts (Davison and Hinkley 1997), of rows to which one of each kind that
    differs is added, and never below the p of n rows that all agree: a few rows do not feign it.
    Assumes: rows are independent and neither model was chosen on them.
    Misleads: about methods. Two trainings of one method, compared so, differ "significantly" in 15 to 50 % of cases.
    Raises ValueError for arrays that are not boolean [n] of one length, or empty.
    """
    check_settings(margin, level)
    a, b = _checked("correct_a", correct_a), _checked("correct_b", correct_b)
    if len(a) != len(b):
        raise ValueError(
            f"both models must be scored on the same rows, but A has {len(a)} and B has {len(b)}."
        )
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    differ = only_a + only_b
    p_value = _mcnemar(only_a, only_b)
    difference = (only_b - only_a) / n
    draws = _resampled(only_a, only_b, n, resamples, seed)
    low, high = (
        _widest(percentile(draws, level), _of_mcnemar(only_b, differ, n, level))
        if differ
        else _nothing_seen(n, level)
    )
    equivalence_p = max(0.0, 1 - margin) ** n
    if differ:
        more = _resampled(only_a + 1, only_b + 1, n + 2, resamples, seed)
        equivalence_p = max(equivalence_p, _beyond(more, margin))
    verdict, reason = decide(
        difference, p_value, equivalence_p, alpha=1 - level, seeds=None, margin=margin
    )
    how = (
        f"exact McNemar; {100 * level:g}% paired bootstrap over examples or McNemar's, the wider"
        if differ
        else f"{100 * level:g}% exact bound over examples, since both files say the same of every one"
    )
    return ModelComparison(
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        only_a=only_a,
        only_b=only_b,
        value_a=float(a.mean()),
        value_b=float(b.mean()),
        equivalence_p=equivalence_p,
        margin=margin,
        level=level,
        n=n,
        verdict=verdict,
        reason=reason,
        how=f"{how}; about {ABOUT}",
    )


def compare_model_scores(
    score: str,
    outputs_a: ArrayLike,
    outputs_b: ArrayLike,
    labels: ArrayLike,
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
) -> ModelComparison:
    """Compare two saved models on the same rows by F1, Matthews, Pearson or Spearman.

    outputs_a, outputs_b: classes or values [n], or logits [n, C]; labels: [n]. p and interval: t with n - 1 degrees of freedom
    on the jackknife pseudo-values of each row (Tukey 1958; stats/scores.py), equivalence as cautious as there. Where no row alone
    changes the score of either model, though they differ: of classes exact McNemar on what is right, and no interval.
    Assumes and misleads: as `compare_models`, and for scores of few examples as `compare_scores`.
    Raises ValueError for shapes that do not fit, values that are not finite, or an unknown score.
    """
    sides = (np.asarray(outputs_a)[None], np.asarray(outputs_b)[None])
    found = tested(score, *sides, labels, margin, level)
    test, varies = found.test, found.varies
    how = f"{100 * level:g}% t over examples on jackknife pseudo-values" if varies else NO_VARIATION
    if not varies and found.difference and of_classes(*sides):
        # A perfect model against a constant one, say: no row changes either score. What is right tells them apart.
        a, b = (side[0] == np.asarray(labels) for side in sides)
        test = replace(test, p_value=_mcnemar(int((a & ~b).sum()), int((b & ~a).sum())))
        varies = True
        how = "no interval, since no row alone changes a score; exact McNemar on what is right"
    verdict, reason = decide(
        found.difference,
        test.p_value,
        test.equivalence_p,
        alpha=1 - level,
        seeds=None,
        margin=margin,
        varies=varies,
    )
    return ModelComparison(
        difference=found.difference,
        low=test.low,
        high=test.high,
        p_value=test.p_value,
        only_a=None,
        only_b=None,
        value_a=found.means[0],
        value_b=found.means[1],
        equivalence_p=test.equivalence_p,
        margin=margin,
        level=level,
        n=found.n,
        verdict=verdict,
        reason=reason,
        how=f"{how}; about {ABOUT}",
        metric=score,
    )


def _checked(name: str, correct: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(correct)
    if array.dtype != np.bool_ or array.ndim != 1 or len(array) == 0:
        raise ValueError(
            f"`{name}` must be a boolean array [n] of at least one row, but it is {array.dtype} {array.shape}; "
            "methods with several seeds are compared by `compare`."
        )
    return array


def _mcnemar(only_a: int, only_b: int) -> float:
    """The exact p of so many rows that one model alone gets right."""
    differ = only_a + only_b
    return float(stats.binomtest(only_b, differ).pvalue) if differ else 1.0


def _resampled(only_a: int, only_b: int, n: int, resamples: int, seed: int) -> Floats:
    draw = stream(seed, "bootstrap", "models", n)
    counts = draw.multinomial(n, [only_a / n, only_b / n, 1 - (only_a + only_b) / n], resamples)
    return (counts[:, 1] - counts[:, 0]) / n


def _of_mcnemar(only_b: int, differ: int, n: int, level: float) -> tuple[float, float]:
    """Differences that the exact test does not reject, of so many rows that differ."""
    share = stats.binomtest(only_b, differ).proportion_ci(level, method="exact")
    return (2 * float(share.low) - 1) * differ / n, (2 * float(share.high) - 1) * differ / n


def _widest(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return min(first[0], second[0]), max(first[1], second[1])


def _nothing_seen(n: int, level: float) -> tuple[float, float]:
    """The interval where no row tells the models apart: a larger share that does would have shown."""
    unseen = 1 - ((1 - level) / 2) ** (1 / n)
    return -unseen, unseen


def _beyond(draws: Floats, margin: float) -> float:
    worst = max(int((draws >= margin).sum()), int((draws <= -margin).sum()))
    return (worst + 1) / (len(draws) + 1)
