"""The time of a cohort, divided among its trials."""

from __future__ import annotations

from collections.abc import Sequence

from fleetune.cohort.passes import Passed
from fleetune.cohort.trial import Trial


def work_in(passed: Sequence[Passed]) -> list[tuple[Trial, float]]:
    """What each pass took, divided among its parts by their tokens."""
    found: list[tuple[Trial, float]] = []
    for one in passed:
        tokens = sum(part.tokens for part in one.parts)
        found += [(part.trial, one.seconds * part.tokens / tokens) for part in one.parts]
    return found


def charge(seconds: float, work: Sequence[tuple[Trial, float]]) -> None:
    """Divide time among trials by what was done for each."""
    total = sum(amount for _, amount in work)
    for trial, amount in work:
        trial.seconds += seconds * amount / total
