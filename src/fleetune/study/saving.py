"""When a cohort's state is written to the disk, and how a signal waits for that.

A snapshot is due where an epoch ends, after so many seconds, and, where `save_steps` says so, after so many optimizer steps
of any trial. None of them changes a number. Ctrl-C or SIGTERM during training lets the running step end, writes a snapshot,
and then ends the command as it would have at once; a second signal does not wait, and neither does a step that takes longer
than `PATIENCE`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from fleetune.cohort.trial import Trial
from fleetune.errors import SettingsError

# A cut costs at most this much work. Writing a cohort's state takes well under a second.
SAVE_SECONDS = 300.0
# Schedulers that send SIGTERM send SIGKILL half a minute later.
PATIENCE = 20.0
_WAITING = (
    b"fleetune: stopping after this step, to save where the trials stand; once more stops at once\n"
)
Handler = Callable[[int, Any], Any]
tellers: list[Callable[[], None]] = []
"""Who says that the end is waited for, the last of them; without one a plain line does. Called while a signal is handled."""


def check_save_steps(steps: Any) -> None:
    """SettingsError for what is no number of steps; None is none."""
    if steps is not None and (
        isinstance(steps, bool) or not isinstance(steps, Integral) or int(steps) < 1
    ):
        rule = "must be a whole number, 1 or more, or None for none"
        raise SettingsError("save_steps", [f"{rule}, but got {steps!r}"])


class Saving:
    """When the next snapshot is due. steps: optimizer steps of a trial between snapshots; None: no matter how many."""

    def __init__(self, steps: int | None = None, seconds: float = SAVE_SECONDS) -> None:
        self.steps, self.seconds = steps, seconds
        self._at = time.monotonic()
        self._steps: dict[str, int] = {}

    def due(self, active: Sequence[Trial]) -> bool:
        """Whether the state of these trials should be written now."""
        if any(trial.at_epoch_end for trial in active):
            return True
        if self.steps is not None and any(
            trial.step - self._steps.get(trial.id, 0) >= self.steps for trial in active
        ):
            return True
        return bool(active) and time.monotonic() - self._at > self.seconds

    def saved(self, active: Sequence[Trial]) -> None:
        """Their state has been written, or was read."""
        self._at = time.monotonic()
        self._steps = {trial.id: trial.step for trial in active}


class Stop:
    """Whether a signal has asked for an end."""

    def __init__(self) -> None:
        self.wanted: int | None = None
        self.handlers: dict[int, Handler] = {}

    def check(self) -> None:
        """End as the signal would have at once; nothing where none came."""
        if self.wanted is not None:
            number, self.wanted = self.wanted, None
            self.handlers[number](number, None)


@contextmanager
def deferred() -> Generator[Stop]:
    """Let SIGINT and SIGTERM wait for `Stop.check`, where Python handles them; a second one does not wait."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    timers: list[threading.Timer] = []

    def handle(number: int, frame: Any) -> None:
        if timers:
            stop.wanted = None
            stop.handlers[number](number, frame)
            return
        stop.wanted = number
        timers.append(threading.Timer(PATIENCE, os.kill, (os.getpid(), number)))
        timers[0].daemon = True
        timers[0].start()
        if tellers:
            tellers[-1]()
            return
        # Not through sys.stderr, which the signal may have interrupted in the middle of a line.
        with contextlib.suppress(OSError):
            os.write(2, _WAITING)

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        if callable(before):
            stop.handlers[number] = before
            signal.signal(number, handle)
    try:
        yield stop
    finally:
        for timer in timers:
            timer.cancel()
        for number, before in stop.handlers.items():
            signal.signal(number, before)
    stop.check()
