"""The journal of a run: what happened, one event a line, never rewritten.

Each line is `{"crc":"...","event":{...}}`; the CRC-32 is over the event's own bytes. An event is appended with one
write and flushed to the disk before anybody relies on it; an append that fails or is interrupted leaves nothing behind. A
torn last line (power loss, a full disk) is cut off when the journal is opened for writing, and told; a damaged line before
the last is an error, since what followed may rest on it.

Limit: a CRC finds accidents, every changed bit among them, and not a forger; what an event may hold is checked by events.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

from fleetune.durable import append as append_to
from fleetune.durable import read_file, sync_folder
from fleetune.errors import DataError, RefusedError
from fleetune.study.events import wrong_fields
from fleetune.study.history import Event, History

NAME = "journal.jsonl"
_START, _MIDDLE, _END = b'{"crc":"', b'","event":', b"}\n"
_CRC = slice(len(_START), len(_START) + 8)
_BODY = len(_START) + 8 + len(_MIDDLE)


class Journal:
    """A journal open for appending, and what it tells so far: `history`.

    `repaired` says how many bytes of a torn tail were cut, `found` how many events stood.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        new = not path.exists()
        events, self._length = ([], 0) if new else _read(path)
        self.history = History(events)
        self.found = len(events)
        self.repaired = 0 if new else path.stat().st_size - self._length
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._failed: OSError | None = None
        if self.repaired:
            self._cut()
        if new:
            sync_folder(path.parent)

    def append(self, kind: str, **facts: Any) -> Event:
        """Write one event; when this returns, it lasts. OSError where it does not, and for every append after that.

        RefusedError as `check_place`.
        """
        if self._failed is not None:
            raise self._failed
        self.check_place()
        event = {"kind": kind, "time": round(time.time(), 3), **facts}
        line = _line(event)
        # A signal may have ended an append before this one in its middle.
        if os.fstat(self._handle).st_size != self._length:
            self._cut()
        try:
            append_to(self._handle, self.path, line)
        except OSError as error:
            # What the disk holds now is not known (a failed fsync may have dropped pages): nothing more is added.
            self._failed = error
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self._length += len(line)
        self.history.add(event)
        return event

    def check_place(self) -> None:
        """RefusedError where the file has been moved, deleted or replaced since it was opened.

        Its lock went with it, so another command may be working where this one would write.
        """
        mine = os.fstat(self._handle)
        with contextlib.suppress(OSError):
            if os.path.samestat(mine, os.stat(self.path)):
                return
        raise RefusedError(
            f"{self.path.parent}: was moved, deleted or begun anew while this command worked in it, so nothing more is "
            "written there; where it was moved, the same command with its new place goes on"
        )

    def _cut(self) -> None:
        """Drop what stands behind the last event."""
        os.ftruncate(self._handle, self._length)
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


def read(path: Path) -> History:
    """What a journal tells, without changing it; a torn tail is passed over. DataError for a damaged line."""
    return History(_read(path)[0])


def _line(event: dict[str, Any]) -> bytes:
    body = json.dumps(event, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
    return b"".join((_START, b"%08x" % zlib.crc32(body), _MIDDLE, body, _END))


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events, and the length in bytes up to which all is well."""
    content = read_file(path)
    events: list[dict[str, Any]] = []
    good = 0
    while good < len(content):
        end = content.find(b"\n", good) + 1 or len(content)
        line = content[good:end]
        event = _event(line)
        if event is None:
            # Two lines that lost the end between them are not one torn line.
            if end < len(content) or line.count(_START) > 1:
                raise DataError(
                    str(path),
                    [
                        f"line {len(events) + 1}: damaged (its checksum does not match); restore the file from a copy, "
                        "or start the run anew in another folder"
                    ],
                )
            break
        wrong = wrong_fields(event)
        if wrong:
            where = f"line {len(events) + 1}"
            raise DataError(str(path), [f"{where}, {p}; restore it from a copy" for p in wrong])
        events.append(event)
        good = end
    return events, good


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a whole, undamaged line. Nothing is parsed whose checksum does not match."""
    body = line[_BODY : -len(_END)]
    whole = line[: len(_START)] == _START and line[_CRC.stop : _BODY] == _MIDDLE
    if not (whole and line.endswith(_END) and line[_CRC] == b"%08x" % zlib.crc32(body)):
        return None
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None
