"""Who trains next: what a cohort asks whenever a place is free, and whenever a trial has done an epoch.

A schedule decides by epoch numbers and scores, never by the clock, so the same answers lead to the same trials.
Not covered: searching (study/), which brings schedules of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from fleetune.cohort.trial import TrialInput
from fleetune.records import EpochResult


class Schedule(Protocol):
    """What a cohort asks, always in the order in which things happen."""

    def next(self) -> TrialInput | None:
        """The trial for a free place: a new one, or one that was parked; None where none may train now."""
        ...

    def parks(self, ident: str, result: EpochResult) -> bool:
        """Whether a trial leaves its place after this epoch, keeping its state until it is called again or dropped."""
        ...

    def left(self, ident: str, *, failed: bool) -> None:
        """A trial has ended by itself."""
        ...

    def dropped(self) -> Sequence[str]:
        """Parked trials that will not be called again; each is named once."""
        ...


class FixedList:
    """All of these trials in this order, each to its end."""

    def __init__(self, inputs: Sequence[TrialInput]) -> None:
        self._waiting = deque(inputs)

    def next(self) -> TrialInput | None:
        return self._waiting.popleft() if self._waiting else None

    def parks(self, ident: str, result: EpochResult) -> bool:
        del ident, result
        return False

    def left(self, ident: str, *, failed: bool) -> None:
        del ident, failed

    def dropped(self) -> Sequence[str]:
        return ()
