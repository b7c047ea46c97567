"""Progress on stderr: a bar for each trial in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from fleetune.cohort.train import (
    Advanced,
    EpochDone,
    Event,
    Started,
    TrialDone,
    TrialFailed,
    TrialStopped,
)
from fleetune.cohort.trial import Trial, TrialInput

Watch = Callable[[Event], None]
# Bars beyond this many would scroll the terminal.
MAX_BARS = 24


@contextmanager
def progress(inputs: Sequence[TrialInput], total: int | None = None) -> Generator[Watch]:
    """A function to be told every event of a run. total: how many trials there will be, where a search makes them."""
    console = Console(stderr=True)
    total = len(inputs) if total is None else total
    if console.is_terminal and not console.is_dumb_terminal and total <= MAX_BARS:
        with _Bars(console) as bars:
            yield bars.watch
    else:
        yield _Lines(total).watch


class _Speed:
    """Examples per second over the last rounds, and the time that is left at that speed."""

    def __init__(self) -> None:
        self.rounds: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=50)

    def add(self, rows: int) -> None:
        self.rounds.append((time.monotonic(), rows))

    @property
    def examples(self) -> float:
        took = self.rounds[-1][0] - self.rounds[0][0]
        return sum(rows for _, rows in list(self.rounds)[1:]) / took if took > 0 else 0.0

    def left(self, trials: Sequence[Trial]) -> float:
        """Seconds until the trials now training have ended."""
        to_do = sum(
            (t.last_step - t.step)
            * t.given.settings.gradient_accumulation_steps
            * t.given.settings.per_device_train_batch_size
            for t in trials
        )
        return to_do / self.examples if self.examples else 0.0


class _Bars:
    def __init__(self, console: Console) -> None:
        self.speed = _Speed()
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[told]}", markup=False),
            TimeRemainingColumn(),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def watch(self, event: Event) -> None:
        if isinstance(event, Started):
            trial = event.trial
            if trial.id not in self.tasks:  # else it was parked, and goes on
                self.tasks[trial.id] = self.bars.add_task(
                    trial.id, total=trial.last_step, completed=trial.step, told=""
                )
        elif isinstance(event, Advanced):
            self.speed.add(event.rows)
            for trial in event.trials:
                self.bars.update(self.tasks[trial.id], completed=trial.step, told=_told(trial))
        elif isinstance(event, TrialFailed):
            self.bars.console.print(Text(f"{event.trial.id} failed: {event.reason}"))
            self.bars.update(self.tasks[event.trial.id], told="failed")
        elif isinstance(event, TrialDone):
            self.bars.update(
                self.tasks[event.trial.id],
                completed=event.trial.last_step,
                told=_told(event.trial),
            )
        elif isinstance(event, TrialStopped):
            self.bars.update(self.tasks[event.trial.id], told=f"stopped, {_told(event.trial)}")


class _Lines:
    def __init__(self, total: int) -> None:
        self.speed = _Speed()
        self.total = total
        self.ended = 0
        self.active: Sequence[Trial] = ()

    def watch(self, event: Event) -> None:
        if isinstance(event, Advanced):
            self.speed.add(event.rows)
            self.active = event.trials
        elif isinstance(event, EpochDone):
            left = _clock(self.speed.left(self.active))
            self._say(
                f"{event.trial.id}: {_told(event.trial)}; {self.speed.examples:.0f} examples/s, {left} left"
            )
        elif isinstance(event, TrialFailed):
            self.ended += 1
            self._say(f"{event.trial.id}: failed, {event.reason}")
        elif isinstance(event, TrialDone):
            self.ended += 1
            self._say(
                f"{event.trial.id}: done, best epoch {event.trial.best_epoch} ({self.ended}/{self.total} trials)"
            )
        elif isinstance(event, TrialStopped):
            self.ended += 1
            self._say(
                f"{event.trial.id}: stopped after epoch {len(event.trial.results)} ({self.ended}/{self.total} trials)"
            )

    def _say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _told(trial: Trial) -> str:
    """Epoch, loss and metric of a trial in a few words."""
    epochs = trial.last_step / trial.given.settings.steps_per_epoch(trial.rows)
    at = trial.step / trial.given.settings.steps_per_epoch(trial.rows)
    told = f"epoch {at:.1f}/{epochs:g}"
    running = trial.loss_sum / trial.rows_seen if trial.rows_seen else None
    loss = running if running is not None else (trial.results[-1].loss if trial.results else None)
    if loss is not None:
        told += f" loss {loss:.4f}"
    if trial.results and trial.results[-1].selection:
        metric = trial.given.best_metric
        best = trial.results[trial.best_epoch - 1].selection[metric]
        told += f" {metric} {trial.results[-1].selection[metric]:.4f} (best {best:.4f})"
    return told


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
