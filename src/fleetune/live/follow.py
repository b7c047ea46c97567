"""Who is told about a run while it trains: a screen or plain lines, and the writers of `report_to`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fleetune.cohort.events import Event
from fleetune.live.lines import Lines
from fleetune.live.screen import Screen
from fleetune.live.state import State, plan_of
from fleetune.live.writers import reported
from fleetune.study.prepare import Prepared
from fleetune.study.stage import Watch


@contextmanager
def in_terminal(
    prepared: Prepared, folder: Path, device: str = "cpu", report_to: Sequence[str] = ()
) -> Generator[Watch]:
    """A live view on stderr where that is a terminal, plain lines elsewhere; and the writers that are named."""
    console = Console(stderr=True)
    state = State(plan_of(prepared, folder, device))
    with reported(folder, report_to) as told:
        if console.is_terminal and not console.is_dumb_terminal:
            with Screen(state, console) as screen:
                yield everyone(screen.watch, told)
        else:
            yield everyone(Lines(state).watch, told)


@contextmanager
def in_python(
    prepared: Prepared,
    folder: Path,
    device: str = "cpu",
    *,
    report_to: Sequence[str] = (),
    progress: bool = False,
    watch: Callable[[Event], object] | None = None,
) -> Generator[Watch]:
    """The writers that are named, a function of the caller's, and plain lines on stderr where they are wanted."""
    lines = [Lines(State(plan_of(prepared, folder, device))).watch] if progress else []
    with reported(folder, report_to) as told:
        yield everyone(*lines, *([watch] if watch else []), told)


def everyone(*watches: Callable[[Event], object]) -> Watch:
    """One function that tells them all, in this order."""

    def watch(event: Event) -> None:
        for one in watches:
            one(event)

    return watch
