"""C4 and C5: torn and flipped journals; missing, empty, halved and flipped files of a run. Never silently wrong."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fleetune.cohort.events import Event, TrialParked
from fleetune.errors import DataError, RefusedError
from fleetune.report.facts import run_facts
from fleetune.study import checkpoints, journal
from fleetune.study.file import read_study
from fleetune.study.history import Event as Told
from fleetune.study.prepare import Prepared, prepare
from fleetune.study.run import Run
from tests.torture.row import Row
from tests.torture.workshop import Workshop, difference, remove_set_aside

LOSSES = ("missing", "empty", "half", "1 bit")


def lose(path: Path, how: str, draw: random.Random) -> None:
    """Damage a file."""
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "1 bit":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content if how == "1 bit" else content[: len(content) // 2 * (how == "half")])


# --- the journal


def journal_of(folder: Path) -> tuple[bytes, list[Told]]:
    """Bytes and events of a journal as a study writes it; its last line is a long one."""
    whole = journal.Journal(folder / "whole.jsonl")
    for number in range(12):
        whole.append("one", id=f"lora-s{number}", epoch=number, selection={"loss": number / 3})
    whole.append("another", hyperparameters={f"name{i}": i / 7 for i in range(12)})
    whole.close()
    return (folder / "whole.jsonl").read_bytes(), list(whole.history)


def torn_at_every_byte(folder: Path, count: int) -> Iterator[str]:
    """Cut inside the last line: the earlier events are there, the journal goes on, and the next reader sees both."""
    content, events = journal_of(folder)
    last = content.rindex(b"\n", 0, -1) + 1
    path = folder / journal.NAME
    for offset in range(count):
        path.write_bytes(content[: last + offset % (len(content) - last)])
        if list(journal.read(path)) != events[:-1]:
            yield f"offset {offset}: reading gave other events"
            continue
        opened = journal.Journal(path)
        opened.append("run-done")
        opened.close()
        kept = [e["kind"] for e in journal.read(path)] == [
            *(e["kind"] for e in events[:-1]),
            "run-done",
        ]
        told = opened.repaired == offset % (len(content) - last)
        yield "" if kept and told else f"offset {offset}: {opened.repaired} bytes were told"


def flipped_bits(folder: Path, count: int) -> Iterator[str]:
    """One bit somewhere: refused with file and line, or, in the last line, cut off like a torn one."""
    content, events = journal_of(folder)
    path, draw = folder / journal.NAME, random.Random(8)
    for _ in range(count):
        bit = draw.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            yield (
                ""
                if list(journal.read(path)) == events[:-1]
                else f"bit {bit}: silently other events"
            )
        except DataError as error:
            line = content.count(b"\n", 0, bit // 8) + 1
            yield (
                ""
                if str(path) in str(error) and f"line {line}:" in str(error)
                else f"bit {bit}: {error}"
            )


# --- the files of a run


class _Cut(Exception):
    """Stands for the end of a process."""


def cut_study(shop: Workshop, prepared: Prepared) -> Path:
    """A run that was cut in its search, with two snapshots and a parked trial in both."""
    run, parked = shop.folder / "cut", 0

    def watch(event: Event) -> None:
        nonlocal parked
        parked += isinstance(event, TrialParked)
        if parked and len(checkpoints.snapshots(run / "checkpoints")) == checkpoints.KEPT:
            newer, older = checkpoints.snapshots(run / "checkpoints")
            if {f["name"] for f in newer.files.values()} & {
                f["name"] for f in older.files.values()
            }:
                raise _Cut

    try:
        # Places for two of six, so that some are parked while others train.
        Run(run, prepared, trials=2).train(watch)
    except _Cut:
        return run
    raise AssertionError("the study ended before it was cut")


def targets(run: Path) -> dict[str, Callable[[Path], Path]]:
    """Every kind of file that a resume reads."""
    newer, older = checkpoints.snapshots(run / "checkpoints")
    new, old = ({f["name"] for f in s.files.values()} for s in (newer, older))
    names = {
        "a trial's file in the newer snapshot": f"checkpoints/{min(new - old)}",
        "a trial's file in the older snapshot": f"checkpoints/{min(old - new)}",
        "a trial's file in both snapshots": f"checkpoints/{min(new & old)}",
        "the newer manifest": f"checkpoints/snapshot-{newer.number}.json",
        "the older manifest": f"checkpoints/snapshot-{older.number}.json",
        "environment.json": "environment.json",
        "study.toml": "study.toml",
        "journal.jsonl": journal.NAME,
    }
    return {kind: (lambda run, name=name: run / name) for kind, name in names.items()}


def damaged_files(folder: Path, count: int) -> Iterator[str]:
    """Each kind of file in each way. Either the numbers are those of the uncut study, and the damage was told; or refused."""
    shop, draw = Workshop.small(folder), random.Random(5)
    prepared = prepare(read_study(shop.study, ()))
    Run(folder / "reference", prepared, trials=2).train(lambda event: None)
    source = cut_study(shop, prepared)
    cases = [(kind, place, how) for how in LOSSES for kind, place in targets(source).items()]
    draw.shuffle(cases)
    for number in range(count):
        kind, place, how = cases[number % len(cases)]
        run = folder / f"run-{number}"
        shutil.copytree(source, run)
        damaged = place(run)
        lose(damaged, how, draw)
        told = after_damage(run, damaged, prepared, folder / "reference")
        shutil.rmtree(run)
        yield f"{kind}, {how}: {told}" if told else ""


def after_damage(run: Path, damaged: Path, prepared: Prepared, expected: Path) -> str:
    said: list[str] = []
    try:
        Run(run, prepared, trials=2, tell=said.append).train(lambda event: None)
    except (DataError, RefusedError) as error:
        named = damaged.name in str(error) or (
            damaged.name == "study.toml" and "other settings" in str(error)
        )
        return "" if named else f"refused without its name: {error}"
    number = damaged.name.removesuffix(".json").rpartition("-")[2]
    if not any(damaged.name in text or f"snapshot {number} " in text for text in said):
        return f"not told: {said}"
    remove_set_aside(run)
    run_facts(run)
    return difference(run, expected)


ROWS = [
    Row("C4 a journal cut at every byte of its last line", 300, torn_at_every_byte, short=300),
    Row("C4b a journal with one bit flipped", 400, flipped_bits, short=200),
    Row("C5 damaged files of a run", 32, damaged_files),
]
