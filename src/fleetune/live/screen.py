"""The live view of a run in a terminal: what trains, the best so far, speed and time left.

It is drawn between rounds by the thread that trains, at most twice a second, and never for more than a fiftieth of the time.
Names are put in as plain text with control characters escaped: nothing of a user's is read as markup. When it ends, by itself
or by Ctrl-C, the view is wiped and one line stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fleetune.cohort.events import Event, TrialFailed
from fleetune.cohort.trial import Trial
from fleetune.errors import printable
from fleetune.live.state import Best, State, clock, epoch_of, loss_of, scores_of
from fleetune.study import saving

# A person reads no faster than this.
SECONDS_BETWEEN = 0.5
# And a slow terminal gets fewer pictures: drawing takes this share of the time at most.
SHARE_OF_TIME = 0.02
# Below these widths a column goes.
WIDE, MEDIUM = 76, 50
# Cells of a column of numbers with its gap, and the fewest of a name.
NUMBER, FEWEST = 10, 6
# More rows would push what was there before off a small terminal.
MOST_TRIALS, MOST_BESTS = 12, 8


class Screen:
    """The view while a run trains; use it as a context manager."""

    def __init__(self, state: State, console: Console) -> None:
        self.state = state
        self.console = console
        self.live = Live(
            View(state), console=console, auto_refresh=False, transient=True, redirect_stdout=False
        )
        self.due = 0.0
        self._writes = False

    def __enter__(self) -> Screen:
        saving.tellers.append(self._wait)
        self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        saving.tellers.remove(self._wait)
        self.live.stop()
        if self.state.task:
            self.console.print(Text(_summary(self.state)), soft_wrap=True)

    def watch(self, event: Event) -> None:
        """Take an event in, and draw if it is time."""
        self._writes = True
        try:
            self._take(event)
        finally:
            self._writes = False

    def _take(self, event: Event) -> None:
        self.state.follow(event)
        if isinstance(event, TrialFailed):
            self.console.print(Text(printable(f"{event.trial.id} failed: {event.reason}")))
        for sentence in self.state.news(event):
            self.console.print(Text(printable(sentence)))
        now = self.state.clock()
        if now >= self.due:
            self.live.refresh()
            took = self.state.clock() - now
            self.due = now + max(SECONDS_BETWEEN, took / SHARE_OF_TIME)

    def _wait(self) -> None:
        """A signal has come, and training ends after its step. It may have come while something was being written."""
        self.state.stopping = True
        self.due = 0.0
        if not self._writes:
            # What goes wrong with a picture must not end what is about to be saved.
            with contextlib.suppress(Exception):
                self.live.refresh()


class View:
    """The picture of a state, as wide and high as the console is."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        yield picture(self.state, width, height)


def picture(state: State, width: int, height: int) -> RenderableType:
    """Head, trials, bests and foot; the trials give way first where the console is low, then the bests."""
    foot = _foot(state, width)
    # Head, the trials' own, one trial, how many more there are, and the line above the bests.
    bests = list(state.bests.items())[: max(min(MOST_BESTS, height - len(foot) - 6), 0)]
    taken = 2 + (len(bests) + 1 if bests else 0) + len(foot)
    room = max(min(MOST_TRIALS, height - taken - 2), 1)
    parts: list[RenderableType] = [_head(state, width), _trials(state.active, room, width)]
    if len(state.active) > room:
        parts.append(Text(f"and {len(state.active) - room} more", style="dim"))
    if bests:
        rows = "test rows, OPTIMISTIC" if state.plan.optimistic else "selection rows"
        parts += [_one_line(Text(f"best so far on the {rows}", style="dim")), _bests(bests, width)]
    return Group(*parts, *foot)


def _head(state: State, width: int) -> Text:
    told = f"cohort of {len(state.active)}"
    if state.parked:
        told += f", {len(state.parked)} waiting"
    if state.task:
        told = f", {state.phase}: {told}"
        told = f"{_cut(state.task, width - len(told))}{told}"
    return _one_line(Text(told, style="bold"))


def _trials(active: Sequence[Trial], room: int, width: int) -> Table:
    numbers = ["epoch", *["loss"] * (width >= MEDIUM), *["score"] * (width >= WIDE), "best"]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text("trial"), no_wrap=True)
    for name in numbers:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for trial in active[:room]:
        at, of = epoch_of(trial)
        loss, scores = loss_of(trial), scores_of(trial)
        cells = {
            "epoch": f"{at:.1f}/{of:g}",
            "loss": "" if loss is None else f"{loss:.4f}",
            "score": "" if scores is None else f"{scores[0]:.4f}",
            "best": "" if scores is None else f"{scores[1]:.4f}",
        }
        name = _cut(trial.id, width - NUMBER * len(numbers))
        table.add_row(Text(name), *(Text(cells[n]) for n in numbers))
    return table


def _bests(found: Sequence[tuple[tuple[str, str], Best]], width: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "right", "left"):
        table.add_column(no_wrap=True, justify=justify)
    scores = [f"{best.metric} {best.value:.4f}" for _, best in found]
    room = width - max(map(len, scores)) - 4
    if width >= MEDIUM:
        room //= 2
    for ((_, method), best), score in zip(found, scores, strict=True):
        trial = [Text(_cut(best.trial, room))] if width >= MEDIUM else []
        table.add_row(Text(_cut(method, room)), Text(score, style="bold"), *trial)
    return table


def _foot(state: State, width: int) -> list[RenderableType]:
    left = state.seconds_left
    speed = f"{state.examples_per_second:.0f} examples/s"
    rest = "" if left is None else f"about {clock(left)} left"
    count = f"{state.ended}/{state.plan.trials} trials"
    if state.failed:
        count += f" ({state.failed} failed)"
    bar = Table.grid(padding=(0, 1, 0, 0))
    size = max(min(width, 40) - 6, 4)
    bar.add_row(
        ProgressBar(total=1.0, completed=state.share, width=size),
        Text(f"{100 * state.share:.0f} %"),
    )
    told = (count, ", ".join(p for p in (speed, rest) if p))
    lines = [", ".join(told)] if width >= WIDE else list(told)
    if state.stopping:
        lines.append("stopping after this step, to save; Ctrl-C again: at once")
    return [bar, *map(_one_line, map(Text, lines))]


def _cut(text: str, room: int) -> str:
    """A name in at most so many cells, and in a few where there is less room."""
    cut = Text(printable(text))
    cut.truncate(max(room, FEWEST), overflow="ellipsis")
    return cut.plain


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _summary(state: State) -> str:
    """What stays on the screen."""
    told = f"{state.ended}/{state.plan.trials} trials have ended, {clock(state.seconds)} in this command"
    return told + (f"; {state.failed} failed" if state.failed else "")
