"""From the numbers of a comparison to one of four words, and why.

The words are of B against A. "cannot tell" is an answer: the data are compatible with a difference that matters and with none.

Order: fewer than five seeds on a side never give more than "cannot tell"; a two-sided p below alpha gives "better" or "worse"
by the sign of the difference; an equivalence p (two one-sided tests) below alpha gives "equivalent". A difference can be real
and smaller than the margin at once; the verdict is then "better" or "worse", and the reason says that it is small.
"""

from __future__ import annotations

from typing import Literal, Protocol

from fleetune.errors import counted

Verdict = Literal["better", "worse", "equivalent", "cannot tell"]

# The sign-flip test over 5 pairs cannot reach 5 % at all; below that no claim about a method is worth its words.
MIN_SEEDS = 5


def decide(
    difference: float,
    p_value: float,
    equivalence_p: float,
    *,
    alpha: float,
    seeds: int | None,
    margin: float,
    over: str = "",
    varies: bool = True,
) -> tuple[Verdict, str]:
    """The verdict and the reason for it in one sentence.

    over: what the margin is about, where that is not the difference itself. seeds: the smaller number of trainings of the two
    sides; None where the claim is not about trainings (two saved models). varies: whether there was any variation to go by.
    """
    if seeds is not None and seeds < MIN_SEEDS:
        return (
            "cannot tell",
            f"{counted(seeds, 'training')} on a side, and no verdict is given below {MIN_SEEDS}: run more seeds",
        )
    if not varies:
        return (
            "cannot tell",
            "nothing varies over these trainings and examples, so there is nothing to test with",
        )
    close = equivalence_p < alpha
    if p_value < alpha:
        small = f"; the difference is real, but surely smaller than the margin of {margin:g}{over}"
        return (
            "better" if difference > 0 else "worse",
            f"p = {p_value:.2g} is below {alpha:g}{small if close else ''}",
        )
    if close:
        return "equivalent", f"the difference is surely smaller than the margin of {margin:g}{over}"
    return (
        "cannot tell",
        f"the data are compatible with no difference and with one beyond the margin of {margin:g}{over}",
    )


class Told(Protocol):
    """What every comparison knows."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def level(self) -> float: ...
    @property
    def p_value(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def reason(self) -> str: ...
    @property
    def how(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def optimistic_of(self) -> str: ...


def in_words(found: Told) -> str:
    """A comparison in a sentence: what B is against A, by how much, why, and how that was computed."""
    interval = "no interval"
    if found.low is not None and found.high is not None:
        interval = f"{100 * found.level:g}% [{found.low:+.4f}, {found.high:+.4f}]"
    by = f" by {found.metric}" if found.metric else ""
    return (
        f"B against A{by}: {found.verdict}; difference {found.difference:+.4f}, {interval}, p = {found.p_value:.2g}, "
        f"n = {found.n}; {found.reason} ({found.how}){_stamp(found.optimistic_of)}"
    )


def _stamp(sides: str) -> str:
    """Whose scores are higher than on new examples, and whether the two sides were measured alike."""
    if not sides:
        return ""
    chose = f'{sides} chose the epoch on these same examples (protocol "paper")'
    other = {"A": ", B did not", "B": ", A did not"}.get(sides, "")
    return f"; OPTIMISTIC: {chose}{other}"
