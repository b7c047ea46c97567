"""What rows of the table share: a small study, commands in processes of their own, and a comparison to the last bit.

Each command runs in a process forked from a server that has already imported what is heavy (multiprocessing's forkserver):
real processes with real signals and files, at a tenth of a second each. Times are left out of every comparison.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from fleetune import durable
from fleetune.study import journal
from tests import runs
from tests.backbone.hub import save_tiny

STUDY = """
[data]
file = "{folder}/train.csv"
test_file = "{folder}/test.csv"

[backbone]
name = "{folder}/tiny"
dtype = "float32"

[training]
num_train_epochs = 3
per_device_train_batch_size = 8
gradient_accumulation_steps = 2
warmup_steps = 1
dropout = 0.1
metric_for_best_model = "loss"

[[methods]]
method = "bitfit"
learning_rate = [1e-3, 1e-2, 3e-2]

[[methods]]
method = "lora"
learning_rate = {{ low = 1e-3, high = 1e-1 }}
r = [1, 2]
lora_alpha = "4r"
lora_dropout = 0.1

[search]
trials_per_method = {trials}
sampler = "tpe"
batch = 3

[confirm]
seeds = {seeds}
"""
WHOLE = "whole"
"""The name of the run that was never cut."""
# Below so many cases a smaller study does.
FEW = 10
# A command on so little takes seconds; on a machine that does much else, many.
LONGEST = 300.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.torture.preload"])

Prepare = Callable[..., Any]
"""A module's function that changes a child before its command runs (sets an observer, slows a step); gets `given`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    """Negative: by that signal."""
    out: str
    err: str
    seconds: float


class Command:
    """A command line that runs in a process of its own."""

    def __init__(self, folder: Path, words: list[str], prepare: Prepare | None, given: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self.out, self.err = folder / f"{number}.out", folder / f"{number}.err"
        self.out.touch()
        cache = os.environ.get("FLEETUNE_CACHE", str(folder / "cache"))
        self.process: ForkServerProcess = _context.Process(
            target=_child, args=(words, self.out, self.err, cache, prepare, given)
        )
        self.began = time.monotonic()
        self.process.start()

    def send(self, number: int) -> None:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = LONGEST) -> Ended:
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"a command took more than {seconds:.0f} s: {self.err.read_text()}")
        code = self.process.exitcode
        assert code is not None
        return Ended(
            code, self.out.read_text(), self.err.read_text(), time.monotonic() - self.began
        )


def _child(
    words: list[str], out: Path, err: Path, cache: str, prepare: Prepare | None, given: Any
) -> None:
    """In the child: the command line with its streams in files."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ |= {"FLEETUNE_CACHE": cache, "HF_HUB_OFFLINE": "1", "FLEETUNE_WARNINGS": ""}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare is not None:
        prepare(given)
    from fleetune.cli import main

    sys.argv = ["fleetune", *words]
    try:
        main.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Workshop:
    """A folder with a tiny backbone, rows, and a study of 2 x (trials + seeds) trials."""

    def __init__(self, folder: Path, trials: int = 9, seeds: int = 3) -> None:
        self.folder = folder
        save_tiny(folder / "tiny")
        runs.write_csv(folder / "train.csv", 40)
        runs.write_csv(folder / "test.csv", 16, seed=7)
        self.study = folder / "study.toml"
        self.study.write_text(STUDY.format(folder=folder, trials=trials, seeds=seeds))

    @classmethod
    def sized(cls, folder: Path, count: int) -> Workshop:
        """24 trials; 8 where only a few cases are asked for."""
        return cls(folder) if count >= FEW else cls.small(folder)

    @classmethod
    def small(cls, folder: Path) -> Workshop:
        """8 trials; one workshop for all rows whose folders stand side by side, since its uncut run is the same for all."""
        return _small(folder.parent)

    def words(self, run: Path) -> list[str]:
        return ["study", str(self.study), "--output-dir", str(run)]

    def start(self, run: Path, prepare: Prepare | None = None, given: Any = None) -> Command:
        return self.command(self.words(run), prepare, given)

    def command(
        self, words: list[str], prepare: Prepare | None = None, given: Any = None
    ) -> Command:
        return Command(self.folder / "streams", words, prepare, given)

    def finish(self, run: Path) -> str:
        """The same command again, to its end; what went wrong."""
        ended = self.start(run).wait()
        return "" if ended.code == 0 else f"exit {ended.code}: {ended.err[-500:]}"

    def whole(self) -> Path:
        """The run that was never cut."""
        run = self.folder / WHOLE
        if not run.exists():
            ended = self.start(run, record, str(self.folder / "points")).wait()
            assert ended.code == 0, ended.err
        return run

    def points(self) -> list[str]:
        """Each point of a durable write that the run which was never cut has passed, in their order (see `kinds`)."""
        self.whole()
        return kinds(self.folder / "points")

    def seconds(self) -> float:
        """How long that run took."""
        times = [event["time"] for event in journal.read(self.whole() / journal.NAME)]
        return times[-1] - times[0]

    def check(self, run: Path, *, damaged: bool = False) -> str:
        """Finish a run that was cut, compare it with the one that was not, and remove it where they are equal.

        damaged: its snapshots may have been, and what was set aside then is no difference.
        """
        told = self.finish(run)
        if damaged and not told:
            remove_set_aside(run)
        told = told or difference(run, self.whole())
        if not told:
            shutil.rmtree(run)
        return told


@cache
def _small(folder: Path) -> Workshop:
    own = folder / "small"
    own.mkdir()
    return Workshop(own, trials=3, seeds=1)


def remove_set_aside(run: Path) -> None:
    """Delete the damaged parts of snapshots that a resume has put under other names."""
    for aside in (run / "checkpoints").glob("*.damaged"):
        aside.unlink()


def difference(found: Path, expected: Path) -> str:
    """What differs in models, predictions, metrics, rows and journal, times apart; empty where nothing does."""
    from tests.study.studies import facts
    from tests.study.test_run import assert_same_run

    try:
        assert_same_run(found, expected)
        mine, theirs = facts(found), facts(expected)
        differing = [k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)]
        assert not differing, differing
    except AssertionError as error:
        return f"differs: {str(error)[:400] or 'see assert_same_run'}"
    return ""


# --- failpoints, set in a child


def record(path: str) -> None:
    """Write down each point of each durable write."""

    def observe(point: str, where: Path) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{point}\t{where}\n")

    durable.observer = observe


def kinds(notes: Path) -> list[str]:
    """What `record` wrote down, as kinds of points: numbers and temporary names left out."""
    lines = notes.read_text().splitlines()
    return [re.sub(r"\.tmp-[0-9a-f]{12}[-+]|\d+", "", line).replace("\t", " ") for line in lines]


def kill_at(number: int) -> None:
    """SIGKILL to itself at the n-th point."""
    left = iter(range(number))

    def observe(point: str, where: Path) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    durable.observer = observe


def fail_from(given: tuple[int, int]) -> None:
    """From the n-th point on every write fails with an errno, as on a disk that stays as it is."""
    number, code = given
    left = iter(range(number))

    def observe(point: str, where: Path) -> None:
        if next(left, None) is None:
            raise OSError(code, os.strerror(code))

    durable.observer = observe
