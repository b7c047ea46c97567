"""The journal where an append fails or is interrupted. Torn tails and flipped bits: tests/torture/damage.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fleetune import durable
from fleetune.errors import DataError
from fleetune.study import journal
from fleetune.study.journal import Journal
from tests.runs import on_disk


def kinds(path: Path) -> list[str]:
    return [e["kind"] for e in journal.read(path)]


@pytest.mark.parametrize("point", [durable.BEFORE, durable.HALF, durable.WRITTEN])
def test_an_append_that_fails_leaves_nothing_and_is_the_last(
    tmp_path: Path, monkeypatch, point: str
) -> None:
    path = tmp_path / journal.NAME
    opened = Journal(path)
    opened.append("first")

    def observe(passed: str, _: Path) -> None:
        if passed == point:
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(durable, "observer", observe)
    with pytest.raises(OSError) as error:
        opened.append("second")
    assert error.value.filename == str(path)
    monkeypatch.setattr(durable, "observer", None)
    # What a failed fsync has left on the disk is not known to anybody.
    with pytest.raises(OSError):
        opened.append("third")
    opened.close()
    assert kinds(path) == ["first"] and [e["kind"] for e in opened.history] == ["first"]


@pytest.mark.parametrize("point", [durable.HALF, durable.WRITTEN])
def test_after_an_interrupted_append_the_next_one_stands_on_whole_lines(
    tmp_path: Path, monkeypatch, point: str
) -> None:
    path = tmp_path / journal.NAME
    opened = Journal(path)
    opened.append("first")

    def observe(passed: str, _: Path) -> None:
        if passed == point:
            raise KeyboardInterrupt

    monkeypatch.setattr(durable, "observer", observe)
    with pytest.raises(KeyboardInterrupt):
        opened.append("second")
    monkeypatch.setattr(durable, "observer", None)
    opened.append("stopped")
    opened.close()
    assert kinds(path) == ["first", "stopped"]


def test_an_append_that_writes_a_part_is_an_error(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / journal.NAME
    opened = Journal(path)
    opened.append("first")
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:7]))
    with pytest.raises(OSError, match="No space left"):
        opened.append("second")
    opened.close()
    assert kinds(path) == ["first"]


def test_an_event_its_file_and_what_was_cut_are_flushed_at_once(
    tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / journal.NAME
    done = on_disk(monkeypatch)
    opened = Journal(path)
    assert done == [("flush", tmp_path)]
    opened.append("first")
    assert done[1:] == [("flush", path)]
    opened.close()
    path.write_bytes(path.read_bytes() + b"torn")
    Journal(path).close()
    assert done[2:] == [("flush", path)]


def test_a_torn_tail_is_cut_and_counted(tmp_path: Path) -> None:
    path = tmp_path / journal.NAME
    opened = Journal(path)
    opened.append("first")
    opened.close()
    whole = path.read_bytes()
    # Power losses leave blocks of zeros too.
    for tail in (b'{"crc":"0000', b"\0" * 4096, b"\n"):
        path.write_bytes(whole + tail)
        opened = Journal(path)
        opened.close()
        assert opened.repaired == len(tail) and path.read_bytes() == whole


def test_two_lines_without_their_end_are_damage_and_no_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / journal.NAME
    opened = Journal(path)
    for kind in ("first", "second", "third"):
        opened.append(kind)
    opened.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].rstrip() + lines[2])
    with pytest.raises(DataError, match="line 2: damaged"):
        journal.read(path)
