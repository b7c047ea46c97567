"""C1 and C2: killed at any moment, and at every point of every durable write, a command ends with the same numbers."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from fleetune import durable
from fleetune.study import journal
from tests.torture.row import Row
from tests.torture.workshop import WHOLE, Workshop, kill_at, kinds, record

KILLED = -9


def at_random_moments(folder: Path, count: int) -> Iterator[str]:
    """SIGKILL somewhere in the time that the whole study takes; every fifth run is killed three times."""
    shop, draw = Workshop.sized(folder, count), random.Random(6)
    took = shop.seconds()
    for case in range(count):
        run = folder / f"run-{case}"
        for _ in range(3 if case % 5 == 4 else 1):
            command = shop.start(run)
            time.sleep(draw.uniform(0.0, took))
            command.process.kill()
            command.process.join()
        told = shop.check(run)
        yield f"case {case}: {told}" if told else ""


def at_every_point(folder: Path, count: int) -> Iterator[str]:
    """SIGKILL at points of the writes of a study: first one of each kind, then others at random."""
    shop = Workshop.sized(folder, count)
    points = shop.points()
    for case, number in enumerate(chosen(points, count)):
        run = folder / f"run-{case}"
        ended = shop.start(run, kill_at, number).wait()
        told = "" if ended.code == KILLED else f"exit {ended.code}, and not killed"
        told = told or shop.check(run)
        yield f"{points[number]}: {told}" if told else ""


def with_what_was_not_flushed_lost(folder: Path, count: int) -> Iterator[str]:
    """A power cut, as far as it can be played: killed, and then what no fsync had acknowledged is dropped at random."""
    shop, draw = Workshop.sized(folder, count), random.Random(7)
    points = shop.points()
    own = [n for n, point in enumerate(points) if is_of_the_run(point) and "before" not in point]
    for case in range(count):
        run, notes, number = folder / f"run-{case}", folder / f"notes-{case}", draw.choice(own)
        ended = shop.start(run, record_and_kill_at, (str(notes), number)).wait()
        told = "" if ended.code == KILLED else f"exit {ended.code}, and not killed"
        dropped = drop_unflushed(notes.read_text().splitlines(), draw)
        told = told or shop.check(run, damaged=True)
        yield f"{points[number]}, {dropped} lost: {told}" if told else ""


def record_and_kill_at(given: tuple[str, int]) -> None:
    notes, number = given
    record(notes)
    recording = durable.observer
    kill_at(number)
    killing = durable.observer
    assert recording is not None and killing is not None

    def observe(point: str, path: Path) -> None:
        recording(point, path)
        killing(point, path)

    durable.observer = observe


def drop_unflushed(lines: list[str], draw: random.Random) -> list[str]:
    """Lose some of what a power cut at the last of these points may lose; what was lost."""
    seen = [(line.partition("\t")[0], Path(line.partition("\t")[2])) for line in lines]
    point, path = seen[-1]
    if path.name == journal.NAME:
        # The part of a line that was written is there, is not, or is zeros.
        content = path.read_bytes()
        good = content.rindex(b"\n", 0, -1) + 1 if content.count(b"\n") > 1 else 0
        if point in (durable.HALF, durable.WRITTEN):
            kept = draw.randrange(len(content) - good + 1)
            zeros = draw.choice((0, len(content) - good - kept))
            path.write_bytes(content[: good + kept] + bytes(zeros))
            return [f"{len(content) - good - kept} bytes of {path.name}"]
        return []
    names: list[Path] = []
    for passed, where in reversed(seen):
        if passed != durable.RENAMED or where.name == journal.NAME:
            continue
        # A rename lasts once its folder was flushed: after each write but those of a snapshot's files.
        if where != path and where.suffix != ".safetensors":
            break
        names.append(where)
    lost = [name for name in names if name.is_file() and draw.random() < 0.5]
    for name in lost:
        name.unlink()
    return [name.name for name in lost]


def at_every_point_of_other_commands(folder: Path, count: int) -> Iterator[str]:
    """SIGKILL in report, predict, export: what was there before stands or the new is whole, and the command again writes it."""
    shop = Workshop.small(folder)
    run, tried = shop.whole(), 0
    outputs = {
        "report": ["report", str(run), "--output"],
        "predict": ["predict", str(run), "--input", str(shop.folder / "test.csv"), "--output"],
        "export": ["export", str(run), "--format", "hf", "--output"],
        "optuna": ["export", str(run), "--format", "optuna", "--output"],
    }
    cases: list[tuple[str, int, str]] = []
    for name, words in outputs.items():
        points = recorded(shop, [*words, str(folder / f"{name}-whole")])
        cases += [(name, n, points[n]) for n in chosen(points, len(points))]
    while tried < count:
        name, number, point = cases[tried % len(cases)]
        tried += 1
        output = folder / f"{name}-{tried}"
        words = [*outputs[name], str(output)]
        ended = shop.command(words, kill_at, number).wait()
        told = "" if ended.code == KILLED else f"exit {ended.code}, and not killed"
        if output.exists() and not told:
            told = unlike(output, folder / f"{name}-whole", name)
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        if not told:
            ended = shop.command(words).wait()
            told = f"exit {ended.code}: {ended.err[-300:]}" if ended.code else ""
        told = told or unlike(output, folder / f"{name}-whole", name)
        yield f"{name}, {point}: {told}" if told else ""


def unlike(found: Path, expected: Path, name: str) -> str:
    """How an output differs from that of a command that was not killed; of a database only whether it is whole."""
    if name == "optuna":
        import sqlite3

        told = sqlite3.connect(found).execute("pragma integrity_check").fetchone()[0]
        return "" if told == "ok" else told
    if found.is_dir():
        names = sorted(p.name for p in found.iterdir())
        if names != sorted(p.name for p in expected.iterdir()):
            return f"holds {names}"
        return "".join(unlike(found / n, expected / n, name) for n in names)
    return "" if found.read_bytes() == expected.read_bytes() else f"{found.name} differs"


def recorded(shop: Workshop, words: list[str]) -> list[str]:
    """Each point that a command passes, as a kind of point: numbers and temporary names left out."""
    notes = shop.folder / "points-of-a-command"
    notes.unlink(missing_ok=True)
    ended = shop.command(words, record, str(notes)).wait()
    assert ended.code == 0, ended.err
    return kinds(notes)


def is_of_the_run(point: str) -> bool:
    """Whether a point of an uncut study belongs to its own folder, and not to the token cache."""
    return f"/{WHOLE}/" in point


def chosen(points: list[str], count: int) -> list[int]:
    """Numbers of points, in their order: one of each kind where there is room, then others at random."""
    first = {kind: number for number, kind in reversed(list(enumerate(points)))}
    draw = random.Random(6)
    kinds, rest = list(first.values()), list(range(len(points)))
    draw.shuffle(kinds)
    draw.shuffle(rest)
    return sorted(list(dict.fromkeys([*kinds, *rest]))[:count])


ROWS = [
    Row("C1 SIGKILL at random moments of a 24-trial study", 50, at_random_moments),
    Row("C2 SIGKILL at points of a study's writes", 100, at_every_point, short=1),
    Row("C2b SIGKILL at points of report, predict, export", 60, at_every_point_of_other_commands),
    Row("C2c what no fsync has acknowledged is lost", 20, with_what_was_not_flushed_lost),
]
