"""Progress as plain lines: for a pipe, a log file, and Python."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from fleetune.cohort.events import EpochDone, Event, Started, TrialDone, TrialFailed, TrialStopped
from fleetune.cohort.trial import Trial
from fleetune.errors import printable
from fleetune.live.state import State, clock, epoch_of, loss_of, scores_of


class Lines:
    """One line for each epoch and each end. write: takes a line; by default it goes to stderr."""

    def __init__(self, state: State, write: Callable[[str], None] | None = None) -> None:
        self.state = state
        self.write = write or _to_stderr
        self.told = ("", "")

    def watch(self, event: Event) -> None:
        """Say what there is to say about an event."""
        self.state.follow(event)
        if isinstance(event, Started):
            self._cohort()
        for sentence in self.state.news(event):
            self.write(printable(sentence))
        line = self._line(event)
        if line:
            self.write(printable(line))

    def _cohort(self) -> None:
        """Once, when a task or a phase begins."""
        now = (self.state.task, self.state.phase)
        if now != self.told:
            self.told = now
            self.write(printable(f"{now[0]}: {now[1]}"))

    def _line(self, event: Event) -> str:
        count = f"({self.state.ended}/{self.state.plan.trials} trials)"
        if isinstance(event, EpochDone):
            left = self.state.seconds_left
            rest = "" if left is None else f", about {clock(left)} left"
            speed = f"{self.state.examples_per_second:.0f} examples/s{rest}"
            return f"{event.trial.id}: {told(event.trial)}; {speed}"
        if isinstance(event, TrialFailed):
            return f"{event.trial.id}: failed, {event.reason} {count}"
        if isinstance(event, TrialDone):
            return f"{event.trial.id}: done, best epoch {event.trial.best_epoch} {count}"
        if isinstance(event, TrialStopped):
            epochs = len(event.trial.results)
            return f"{event.trial.id}: stopped after epoch {epochs} {count}"
        return ""


def told(trial: Trial) -> str:
    """Epoch, loss and metric of a trial in a few words."""
    at, of = epoch_of(trial)
    # Never past the end, as 1.88 of 1.875 rounded up would be, and at the end what stands there.
    here = f"{of:.4g}" if at >= of else f"{math.floor(10 * at + 1e-9) / 10:.1f}"
    words = f"epoch {here}/{of:.4g}"
    loss, scores = loss_of(trial), scores_of(trial)
    if loss is not None:
        words += f" loss {loss:.4f}"
    if scores is not None:
        words += f" {trial.given.best_metric} {scores[0]:.4f} (best {scores[1]:.4f})"
    return words


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
