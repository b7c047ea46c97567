"""The journal of a run: what happened, one event a line, never rewritten.

Each line is `{"crc": ..., "event": {...}}`; the CRC-32 is over the event's own bytes. An event is appended with one
write and flushed to the disk before anybody relies on it. A torn last line (power loss, a full disk) is cut off when the
journal is opened for writing, and told; a damaged line before the last is an error, since what followed may rest on it.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleetune.durable import sync_folder
from fleetune.errors import DataError

NAME = "journal.jsonl"
_START = b'{"crc":"'


class Journal:
    """A journal open for appending. `repaired` says how many bytes of a torn tail were cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        new = not path.exists()
        self.events, good = _read(path) if not new else ([], 0)
        self.repaired = 0 if new else path.stat().st_size - good
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if self.repaired:
            os.ftruncate(self._handle, good)
            os.fsync(self._handle)
        if new:
            sync_folder(path.parent)

    def append(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Write one event; when this returns, it lasts."""
        event = {"kind": kind, "time": round(time.time(), 3), **facts}
        line = _line(event)
        before = os.fstat(self._handle).st_size
        if os.write(self._handle, line) != len(line):
            # A full disk took a part: what comes next must not stand behind half a line.
            os.ftruncate(self._handle, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._handle)
        self.events.append(event)
        return event

    def close(self) -> None:
        os.close(self._handle)


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a journal, without changing it; a torn tail is passed over."""
    return _read(path)[0]


def _line(event: dict[str, Any]) -> bytes:
    body = json.dumps(event, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f'{{"crc":"{zlib.crc32(body.encode()):08x}","event":{body}}}\n'.encode()


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events, and the length in bytes up to which all is well."""
    content = path.read_bytes()
    events: list[dict[str, Any]] = []
    good = 0
    for number, line in _lines(content):
        event = _event(line)
        if event is None:
            # Two lines that lost the end between them are not one torn line.
            if good + len(line) < len(content) or line.count(_START) > 1:
                raise DataError(
                    str(path),
                    [
                        f"line {number}: damaged (its checksum does not match); restore the file from a copy, "
                        "or start the run anew in another folder"
                    ],
                )
            break
        events.append(event)
        good += len(line)
    return events, good


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    yield from enumerate(content.splitlines(keepends=True), start=1)


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a whole, undamaged line."""
    if not line.endswith(b"\n") or len(line) < 30:
        return None
    try:
        record = json.loads(line)
        body = line[line.index(b'"event":') + 8 : -2]
        ok = record["crc"] == f"{zlib.crc32(body):08x}"
        return record["event"] if ok else None
    except (ValueError, KeyError, TypeError):
        return None
