"""When snapshots are taken, and what a signal waits for. Commands in processes of their own: tests/torture/signals.py."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from fleetune.cohort.events import Advanced, EpochDone, Event
from fleetune.study import checkpoints
from fleetune.study.prepare import Prepared, prepare
from fleetune.study.run import Run
from fleetune.study.saving import deferred
from tests.runs import Made, on_disk, settings


@pytest.fixture(scope="module")
def prepared(made: Made) -> Prepared:
    given = settings(made.folder, made.backbone, ["lora", "head"], seeds=[0], gradient_accumulation_steps=2)  # fmt: skip
    return prepare(given)


def micro_steps(folder: Path) -> int:
    """Where the newest snapshot stands."""
    newest = checkpoints.snapshots(folder / "checkpoints")[0]
    (found,) = {numbers["micro_step"] for _, numbers in map(newest.state, newest.files)}
    return found


class Rounds:
    """Counts rounds, and does something after one of them."""

    def __init__(self, at: int, do) -> None:
        self.at, self.do, self.seen, self.micro_steps = at, do, 0, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced):
            self.seen, self.micro_steps = self.seen + 1, event.trials[0].micro_step
            if self.seen == self.at:
                self.do()


def raise_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_end_of_the_running_step(
    prepared: Prepared, tmp_path: Path, number: int, capfd
) -> None:
    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(number, end)
    try:
        rounds = Rounds(3, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as ended:
            Run(tmp_path / "run", prepared).train(rounds)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    # The signal comes after the third round was saved or not; the fourth is the one that it waits for at most.
    assert ended.value.code == 128 + number and rounds.seen in (3, 4)
    assert "once more stops at once" in capfd.readouterr().err


def test_a_snapshot_of_the_very_step_is_there_after_a_signal(
    prepared: Prepared, tmp_path: Path
) -> None:
    """A signal in the middle of a step: it is sent before the round ends."""
    from unittest import mock

    from fleetune.cohort import train

    real, calls = train.run_pass, iter(range(1, 100))

    def run_pass(*words):
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*words)

    rounds = Rounds(-1, raise_interrupt)
    with mock.patch.object(train, "run_pass", run_pass), pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "run", prepared).train(rounds)
    assert micro_steps(tmp_path / "run") == rounds.micro_steps > 0


def test_a_second_signal_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), deferred() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wanted == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was not heard")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_of_the_last_moment_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with deferred() as stop:
            seen.append((stop.handlers, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [({}, signal.default_int_handler)]


def test_save_steps_saves_within_an_epoch(prepared: Prepared, tmp_path: Path) -> None:
    for steps, last in ((None, 0), (1, 6), (2, 4), (3, 6), (4, 0)):
        folder = tmp_path / str(steps)
        with pytest.raises(KeyboardInterrupt):
            Run(folder, prepared, save_steps=steps).train(Rounds(3, raise_interrupt))
        # Two micro-batches are one step and one round, and the third round is within the first epoch of seven.
        if last:
            assert micro_steps(folder) == last
        else:
            assert checkpoints.snapshots(folder / "checkpoints") == []


def test_a_snapshot_lasts_once_it_is_written(tmp_path: Path, monkeypatch) -> None:
    """Its files are flushed before the list of them has its name, and the folder after."""
    done = on_disk(monkeypatch)
    checkpoints.write_all(tmp_path, {"a": ({"x": torch.zeros(1)}, {})}, note={"stage": "s"})
    assert done[-2:] == [("name", tmp_path / "snapshot-1.json"), ("flush", tmp_path)]
    names = [path.name for kind, path in done if kind == "name"]
    assert len(names) == 2 and names[0].endswith(".safetensors")


def test_two_snapshots_are_kept_and_nothing_else(prepared: Prepared, tmp_path: Path) -> None:
    folder, numbers = tmp_path / "run", []

    def watch(event: Event) -> None:
        if isinstance(event, Advanced | EpochDone):
            found = checkpoints.snapshots(folder / "checkpoints")
            numbers.append([s.number for s in found])
            needed = {f["name"] for s in found for f in s.files.values()}
            names = {p.name for p in (folder / "checkpoints").glob("*.safetensors")}
            assert names == needed

    Run(folder, prepared, save_steps=1).train(watch)
    assert max(map(len, numbers)) == checkpoints.KEPT
    assert [1] in numbers and [2, 1] in numbers and [3, 2] in numbers
    assert list((folder / "checkpoints").iterdir()) == []
