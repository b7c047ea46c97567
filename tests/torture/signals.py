"""C3, C6, C7: signals, disks that refuse, and two commands on one run; then the same command again, to the same numbers."""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleetune.study import journal
from tests.torture.kills import is_of_the_run
from tests.torture.row import Row
from tests.torture.workshop import LONGEST, Command, Workshop, fail_from

# What a cut process may take to save and go (C3), and one that is told twice.
SOON, AT_ONCE = 30.0, 2.0
TWICE = 0
"""Stands for a second Ctrl-C."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)


def slow_passes(seconds: float) -> None:
    """In a child: every pass takes so much longer."""
    from fleetune.cohort import train

    before: Any = train.run_pass

    def run_pass(*words: Any) -> Any:
        time.sleep(seconds)
        return before(*words)

    train.run_pass = run_pass  # pyright: ignore[reportPrivateUsage]


def by_signal(folder: Path, count: int) -> Iterator[str]:
    """SIGTERM and SIGINT ten times each, a second SIGINT three times."""
    shop, draw = Workshop.sized(folder, count), random.Random(3)
    shop.whole()
    kinds = [signal.SIGTERM, signal.SIGINT, TWICE] * 3 + [signal.SIGTERM, signal.SIGINT] * 7
    for case in range(count):
        kind = kinds[case % len(kinds)]
        run = folder / f"run-{case}"
        command = shop.start(run, slow_passes, 20.0 if kind == TWICE else 0.1)
        wait_for(command, run, "trial-started" if kind == TWICE else "epoch", draw.randint(1, 6))
        time.sleep(1.0 if kind == TWICE else draw.uniform(0.0, 0.3))
        told = stopped_by(command, kind, run) or shop.check(run)
        yield f"case {case}: {told}" if told else ""


def stopped_by(command: Command, kind: int, run: Path) -> str:
    """Send the signal; what is not as promised."""
    number = kind or signal.SIGINT
    command.send(number)
    if kind == TWICE:
        time.sleep(0.3)
        command.send(number)
    sent = time.monotonic()
    ended = command.wait()
    took, code = time.monotonic() - sent, 130 if number == signal.SIGINT else 143
    if ended.code != code:
        return f"exit {ended.code} and not {code}: {ended.err[-300:]}"
    if took > (AT_ONCE if kind == TWICE else SOON):
        return f"ended {took:.1f} s after the signal"
    if "Traceback" in ended.err or "goes on from here" not in ended.err:
        return f"said {ended.err[-300:]!r}"
    last = journal.read(run / journal.NAME)[-1]["kind"]
    return "" if last == "stopped" else f"the journal ends with {last}"


def wait_for(command: Command, run: Path, kind: str, number: int) -> None:
    """Until the journal holds so many events of a kind."""
    path = run / journal.NAME
    while command.process.is_alive():
        if path.exists() and sum(e["kind"] == kind for e in journal.read(path)) >= number:
            return
        time.sleep(0.02)


def by_a_disk_that_refuses(folder: Path, count: int) -> Iterator[str]:
    """From some point on every write fails, with each of four errors in turn."""
    shop, draw = Workshop.sized(folder, count), random.Random(4)
    points = shop.points()
    # The first points belong to the token cache, without which all works; only the run's own are counted here.
    first = next(i for i, point in enumerate(points) if is_of_the_run(point))
    for case in range(count):
        code, run = ERRORS[case % len(ERRORS)], folder / f"run-{case}"
        number = draw.randrange(first, len(points))
        ended = shop.start(run, fail_from, (number, code)).wait()
        told = ""
        if ended.code != 5:
            told = f"exit {ended.code} and not 5: {ended.err[-300:]}"
        elif "Traceback" in ended.err or str(run) not in ended.err or "bytes free" not in ended.err:
            told = f"said {ended.err[-300:]!r}"
        told = told or shop.check(run)
        yield f"{errno.errorcode[code]} at {points[number]}: {told}" if told else ""


def by_a_second_command(folder: Path, count: int) -> Iterator[str]:
    """A second command on a run that one works in is refused and changes nothing."""
    shop = Workshop.small(folder)
    run = folder / "run"
    first = shop.start(run, slow_passes, 10 * LONGEST)
    wait_for(first, run, "trial-started", 1)
    for _ in range(count):
        ended = shop.start(run).wait()
        told = "" if ended.code == 6 else f"exit {ended.code} and not 6: {ended.err[-300:]}"
        if "another fleetune command" not in ended.err or "Traceback" in ended.err:
            told = told or f"said {ended.err[-300:]!r}"
        begun = [e["kind"] for e in journal.read(run / journal.NAME)].count("run-started")
        if begun != 1 or not first.process.is_alive():
            told = told or "the first command was disturbed"
        yield told
    first.process.kill()
    first.process.join()


def by_a_lock_of_a_dead_process(folder: Path, count: int) -> Iterator[str]:
    """SIGKILL while the run is locked; the next command has it."""
    shop = Workshop.small(folder)
    shop.whole()
    for case in range(count):
        run = folder / f"run-{case}"
        command = shop.start(run, slow_passes, 0.2)
        wait_for(command, run, "trial-started", 1 + case % 4)
        command.process.kill()
        command.process.join()
        yield shop.check(run)


ROWS = [
    Row("C3 SIGTERM, SIGINT, a second SIGINT, then resumed", 23, by_signal),
    Row("C6 ENOSPC, EIO, EROFS, EACCES, then resumed", 40, by_a_disk_that_refuses),
    Row("C7 a second command on one run", 20, by_a_second_command, short=1),
    Row("C7b a lock that a killed command left", 10, by_a_lock_of_a_dead_process),
]
