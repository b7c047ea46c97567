"""The one way in which anything that must last is written.

A file is written under a temporary name in its own folder, flushed to the disk, renamed into place, and the folder
flushed: after a cut at any moment there is the old content or the new one, never half. A folder is made the same way
under a temporary name and renamed when complete; whoever fills it writes its manifest last. File modes follow the umask.
An OSError names the file that was meant, and never a temporary one.

Points: every write passes named points (`BEFORE`, `HALF`, `WRITTEN`, `SWAPPED`, `RENAMED`). Where `observer` is set it is
told of each, and may raise an error or end the process there. Only tests set it; nothing in the package does.

Limits: a file system that loses what fsync has acknowledged is not helped. Between the two renames that replace a folder
the name is missing for a moment; `remove_leftovers` puts the old folder back after a cut just there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
# Six hexadecimal digits of the writer's process and six of chance, then "-" and the name that is meant; with "+" it is a folder
# in which a replaced one waits under its own name.
_OURS = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{6}})[0-9a-f]{{6}}([-+]).*", re.DOTALL)
# What threads of this process are writing.
_open: set[Path] = set()
# The longest name that a file may have on common file systems is 255 bytes.
_LONGEST_NAME = 200
BEFORE, HALF, WRITTEN, SWAPPED, RENAMED = "before", "half", "written", "swapped", "renamed"
"""Nothing is written; a part is; all is, and flushed; a folder's old content is out of its place; the name is there, and
its folder not yet flushed."""
observer: Callable[[str, Path], None] | None = None
"""Told of each point and of the path that is written, in tests."""
# Nobody still writes what was begun so many seconds ago.
STALE = 86_400.0


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file so that it is there whole or not at all. A pipe or a device is written as it is, and not replaced.

    sync: False where a further write into the same folder follows, which flushes the folder for both.
    """
    if _is_stream(path):
        with _naming(path), open(path, "wb") as stream:
            stream.write(content)
        return
    with new_file(path, sync=sync) as temporary:
        put(temporary, content)


def check_place(path: Path) -> None:
    """OSError where `write_bytes` could not make this file, so that it is told before there is anything to write."""
    if _is_stream(path):
        return
    if path.name in ("", "..") or path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; NaN and infinity are refused, since JSON has none."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """A value as indented JSON with a last newline."""
    return f"{json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


@contextmanager
def new_file(path: Path, *, sync: bool = True) -> Generator[Path]:
    """A temporary path to be filled, by `put` or a writer of another library; it gets its name when the block ends well."""
    if path.name in ("", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    make_folder(path.parent)
    temporary = _temporary(path)
    with _naming(path):
        try:
            _at(BEFORE, path)
            yield temporary
            _sync(temporary)
            _at(WRITTEN, path)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        finally:
            _open.discard(temporary)
        _at(RENAMED, path)
        if sync:
            sync_folder(path.parent)


def put(path: Path, content: bytes) -> None:
    """Fill a new file that lies under a temporary name, or in a folder that does; whoever renames that flushes it."""
    half = len(content) // 2
    with _naming(path), open(path, "xb", buffering=0) as file:
        _write_all(file.fileno(), content[:half])
        _at(HALF, path)
        _write_all(file.fileno(), content[half:])


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A folder that appears under its name only when the block ends well; one that was there is replaced."""
    make_folder(path.parent)
    remove_leftovers(path.parent, older_than=STALE)
    temporary = _temporary(path)
    aside: Path | None = None
    with _naming(path):
        try:
            _at(BEFORE, path)
            temporary.mkdir()
            yield temporary
            for inner in sorted(temporary.rglob("*"), reverse=True):
                _sync(inner)
            _sync(temporary)
            _at(WRITTEN, path)
            if path.exists():
                aside = _temporary(path, "+")
                aside.mkdir()
                os.rename(path, aside / path.name)
                _at(SWAPPED, path)
            os.rename(temporary, path)
        except BaseException:
            if aside is not None and aside.exists():
                _remove_folder(aside)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            _open.difference_update((temporary, aside))
        _at(RENAMED, path)
        sync_folder(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def append(handle: int, path: Path, content: bytes) -> None:
    """Add to the end of an open file in one write, and flush it. On an error a part may stand there: cut it off."""
    with _naming(path):
        _at(BEFORE, path)
        half = 0
        if observer is not None:
            half = os.write(handle, content[: len(content) // 2])
            _at(HALF, path)
        if os.write(handle, content[half:]) != len(content) - half:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _at(WRITTEN, path)
        os.fsync(handle)
        _at(RENAMED, path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that they last; nothing where it is there."""
    missing: list[Path] = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def remove_leftovers(folder: Path, *, older_than: float = 0.0) -> None:
    """Delete what a cut writer left under temporary names, and put back a folder that was cut between its two renames.

    What a process that still runs is writing stays, as does what is named otherwise. older_than: seconds, for a folder that
    other machines may be writing into, of whose processes nothing is known here.
    """
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f"{TEMPORARY}*")):
            if not _is_left(path, older_than):
                continue
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
            else:
                _remove_folder(path)


def _is_left(path: Path, older_than: float) -> bool:
    """Whether nobody writes under a temporary name any more."""
    named = _OURS.fullmatch(path.name)
    if named is None or path in _open:
        return False
    try:
        age = time.time() - path.lstat().st_mtime
    except OSError:
        return False  # its writer has just renamed it
    if older_than:
        return age >= older_than
    # A number that another process has by now keeps nothing for ever.
    return age >= STALE or not _runs(int(named[1], 16))


def _runs(process: int) -> bool:
    """Whether another process of this number is there."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return True


def _remove_folder(aside: Path) -> None:
    """Delete a temporary folder; if it is one for what was replaced, and nothing took its place, that comes back first."""
    named = _OURS.fullmatch(aside.name)
    if named is not None and named[2] == "+":
        for old in list(aside.iterdir()):
            if not os.path.lexists(aside.parent / old.name):
                os.rename(old, aside.parent / old.name)
    shutil.rmtree(aside, ignore_errors=True)


def plain_mode() -> int:
    """The mode that an ordinary new file has here."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def read_file(path: Path) -> bytes:
    """The content of a file that may come from anybody. OSError where it is a pipe, a device or the like: such have no end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no file with an end to it", str(path))
    return path.read_bytes()


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the file system knows how to and the folder may be opened."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _is_stream(path: Path) -> bool:
    """Whether a path is a pipe or a device: /dev/stdout, a FIFO. A link to one is, where it stands in /dev."""
    try:
        mode = os.stat(path).st_mode if path.parent == Path("/dev") else os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or path.parent == Path("/dev")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _temporary(path: Path, kind: str = "-") -> Path:
    """A name beside the path that nobody else uses. kind: "-" for what will take the path's name, "+" for what had it."""
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST_NAME and kind == "-" else ""
    own = f"{os.getpid() & 0xFFFFFF:06x}{uuid.uuid4().hex[:6]}"
    found = path.with_name(f"{TEMPORARY}{own}{kind}{name}")
    _open.add(found)
    return found


def _at(point: str, path: Path) -> None:
    if observer is not None:
        observer(point, path)


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """Let an OSError say which file was meant."""
    try:
        yield
    except OSError as error:
        if error.filename is None or TEMPORARY in str(error.filename):
            error.filename = str(path)
        raise
