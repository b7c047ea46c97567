"""Who is told about a run while it trains: a screen or plain lines."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fleetune.cohort.train import Event
from fleetune.live.lines import Lines
from fleetune.live.screen import Screen
from fleetune.live.state import State, plan_of
from fleetune.study.prepare import Prepared
from fleetune.study.stage import Watch


@contextmanager
def in_terminal(prepared: Prepared, folder: Path, device: str = "cpu") -> Generator[Watch]:
    """A live view on stderr where that is a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    state = State(plan_of(prepared, folder, device))
    if console.is_terminal and not console.is_dumb_terminal:
        with Screen(state, console) as screen:
            yield screen.watch
    else:
        yield Lines(state).watch


def everyone(*watches: Watch) -> Watch:
    """One function that tells them all, in this order."""

    def watch(event: Event) -> None:
        for one in watches:
            one(event)

    return watch


def in_lines(prepared: Prepared, folder: Path, device: str = "cpu") -> Watch:
    """Plain lines on stderr, also in a terminal."""
    return Lines(State(plan_of(prepared, folder, device))).watch
