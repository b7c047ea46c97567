"""Who trains next: what a cohort asks whenever a place is free, and whenever a trial has done an epoch.

A schedule decides by epoch numbers and scores, never by the clock, so the same answers lead to the same trials.
Not covered: searching (study/search.py), which is a schedule of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

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


class Resumable(Schedule, Protocol):
    """A schedule that can go on after a cut, and that is told every epoch, a trial's last one too."""

    def given(self, ident: str) -> TrialInput:
        """A trial that `next` has named."""
        ...

    def observe(self, ident: str, result: EpochResult) -> None:
        """An epoch's result, before `parks` and `left` are asked about it."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        ...


class FixedList:
    """All of these trials in this order, each to its end."""

    def __init__(self, inputs: Sequence[TrialInput]) -> None:
        self._inputs = {given.spec.id: given for given in inputs}
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

    def given(self, ident: str) -> TrialInput:
        return self._inputs[ident]

    def observe(self, ident: str, result: EpochResult) -> None:
        del ident, result

    def state(self) -> dict[str, Any]:
        return {"waiting": [given.spec.id for given in self._waiting]}

    def restore(self, state: dict[str, Any]) -> None:
        self._waiting = deque(self._inputs[ident] for ident in state["waiting"])
