"""What must hold for a text file before it is parsed: it is there, is UTF-8 and has no NUL byte.

A byte offset counts from 0, a line from 1. Lines end with LF, CRLF or CR.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO

from fleetune.errors import DataError, did_you_mean

File = Path | Traversable
"""A file on disk or inside the package: it has `name`, `open` and `is_file`."""

MAX_PROBLEMS = 1000
"""Reading stops after so many: a file that is wrong everywhere is not read to its end."""

_CHUNK = 1 << 20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_exists(path: Path) -> None:
    """Raise DataError unless this is a file that can be opened."""
    try:
        if path.is_dir():
            raise DataError(
                str(path), ["this is a folder, but a file is needed; name a file inside it"]
            )
        if not path.exists():
            raise DataError(str(path), [f"there is no such file{_near(path)}"])
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(str(path), [f"the file cannot be opened: {error.strerror}"]) from error


def _near(path: Path) -> str:
    """A question about the file of a similar name beside it."""
    near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, near) if near else ""
    return hint if hint.startswith(", did") else ""


def text_problem(file: File) -> str | None:
    """What keeps the file from being read as UTF-8, or None. Reads it once, in chunks."""
    return _problem(lambda: file.open("rb"))


def decoded(content: bytes, where: str) -> str:
    """What came over a stream as text, without a byte order mark; DataError as for a file. where: the stream's name."""
    problem = _problem(lambda: io.BytesIO(content))
    if problem is not None:
        raise DataError(where, [problem])
    return content.decode("utf-8-sig")


def _problem(opened: Callable[[], IO[bytes]]) -> str | None:
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    done = 0
    with opened() as handle:
        while True:
            chunk = handle.read(_CHUNK)
            if done == 0 and chunk.startswith(_UTF16):
                return "line 1, byte 0: this is UTF-16; save it as UTF-8"
            if done == 0 and (packed := _packed(chunk)) is not None:
                return f"line 1, byte 0: {packed}"
            nul = chunk.find(b"\0")
            part = chunk if nul < 0 else chunk[:nul]
            try:
                # What stands before a NUL is checked first, so that the first problem is the one
                # reported.
                decoder.decode(part, final=not chunk or nul >= 0)
            except UnicodeDecodeError as error:
                held_back = len(error.object) - len(part)
                at = done - held_back + error.start
                byte = f"0x{error.object[error.start]:02x}"
                remedy = "save it as UTF-8, e.g. with `iconv -f WINDOWS-1252 -t UTF-8`"
                return f"{_place(opened, at)}: not UTF-8 ({byte}); {remedy}"
            if nul >= 0:
                return (
                    f"{_place(opened, done + nul)}: a NUL byte; text must not hold any, remove it"
                )
            if not chunk:
                return None
            done += len(chunk)


def _packed(start: bytes) -> str | None:
    """What is to be done with a file that begins so, where it is none of text."""
    if start.startswith(b"\x1f\x8b"):
        return "this is compressed by gzip; unpack it first, e.g. with `gunzip`"
    if start.startswith(b"PK\x03\x04"):
        return (
            "this is a zip archive, as spreadsheets (.xlsx) are too; unpack it, or save it as CSV"
        )
    return None


def _place(opened: Callable[[], IO[bytes]], offset: int) -> str:
    with opened() as handle:
        before = handle.read(offset)
    line = before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
    return f"line {line}, byte {offset}"
