"""What a journal tells, by kind and by trial: every other part asks here, and nobody walks through all events for one.

A run that was cut may tell of a trial's beginning twice, and the first is taken; and of an epoch, and the last is taken: the
numbers are the same, except where the run went on on another machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

Event = Mapping[str, Any]
ENDINGS = ("trial-done", "trial-failed", "trial-stopped")


class History(Sequence[Event]):
    """The events of a run in their order."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events: list[Event] = []
        self._kinds: defaultdict[str, list[Event]] = defaultdict(list)
        self._epochs: defaultdict[str, dict[int, Event]] = defaultdict(dict)
        self._begun: dict[str, Event] = {}
        self._ends: dict[str, Event] = {}
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Take one more event in."""
        kind = event["kind"]
        self._events.append(event)
        self._kinds[kind].append(event)
        if kind == "trial-started":
            self._begun.setdefault(event["id"], event)
        elif kind == "epoch":
            self._epochs[event["id"]][event["epoch"]] = event
        elif kind in ENDINGS:
            self._ends.setdefault(event["id"], event)

    @property
    def begun(self) -> Mapping[str, Event]:
        """The "trial-started" of each trial, by its id."""
        return self._begun

    @property
    def ends(self) -> Mapping[str, Event]:
        """How each trial that has ended did so, by its id: one of `ENDINGS`."""
        return self._ends

    def epochs(self, ident: str) -> list[Event]:
        """The epochs of a trial in order of their numbers."""
        found = self._epochs.get(ident, {})
        return [found[number] for number in sorted(found)]

    def all(self, kind: str, **facts: Any) -> list[Event]:
        """The events of a kind that say these facts, in order."""
        return [e for e in self._kinds.get(kind, ()) if facts.items() <= e.items()]

    def first(self, kind: str, **facts: Any) -> Event | None:
        """The first event of a kind that says these facts."""
        return next(iter(self.all(kind, **facts)), None)

    def last_of(self, *kinds: str) -> Event | None:
        """The last event of some kinds."""
        return next((e for e in reversed(self._events) if e["kind"] in kinds), None)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self._events[index]

    def __len__(self) -> int:
        return len(self._events)
