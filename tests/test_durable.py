"""Whatever happens in the middle of a write, the old content or the new one is there; the long form is `make torture`."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetune import durable
from fleetune.durable import BEFORE, HALF, RENAMED, SWAPPED, WRITTEN
from tests.runs import on_disk, tree


class Cut(BaseException):
    """Stands for whatever ends a write in its middle."""


def cut_at(point: str, error: BaseException) -> Callable[[str, Path], None]:
    def observe(passed: str, _: Path) -> None:
        if passed == point:
            raise error

    return observe


def write_folder(path: Path, content: bytes) -> None:
    with durable.new_folder(path) as staging:
        durable.put(staging / "a", content)
        (staging / "inner").mkdir()
        durable.put(staging / "inner" / "b", content * 2)


@pytest.mark.parametrize("point", [BEFORE, HALF, WRITTEN, RENAMED])
@pytest.mark.parametrize("error", [Cut(), OSError(errno.ENOSPC, "full")], ids=["cut", "full"])
def test_a_file_is_old_or_new_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch, point: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    durable.write_bytes(path, b"old old old")
    monkeypatch.setattr(durable, "observer", cut_at(point, error))
    with pytest.raises(type(error)):
        durable.write_bytes(path, b"new")
    assert tree(tmp_path) == {"file": b"new" if point == RENAMED else b"old old old"}


@pytest.mark.parametrize("point", [BEFORE, HALF, WRITTEN, SWAPPED, RENAMED])
@pytest.mark.parametrize("error", [Cut(), OSError(errno.EIO, "broken")], ids=["cut", "broken"])
def test_a_folder_is_old_or_new(
    tmp_path: Path, monkeypatch, point: str, error: BaseException
) -> None:
    path = tmp_path / "folder"
    write_folder(path, b"old")
    before = tree(path)
    monkeypatch.setattr(durable, "observer", cut_at(point, error))
    with pytest.raises(type(error)):
        write_folder(path, b"new")
    monkeypatch.setattr(durable, "observer", None)
    assert tree(path) == ({"a": b"new", "inner/b": b"newnew"} if point == RENAMED else before)
    durable.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_flushed_then_named_and_then_its_folder_is_flushed(
    tmp_path: Path, monkeypatch
) -> None:
    done = on_disk(monkeypatch)
    durable.write_bytes(tmp_path / "file", b"content")
    (first, temporary), *rest = done
    assert first == "flush" and temporary.name.startswith(durable.TEMPORARY)
    assert rest == [("name", tmp_path / "file"), ("flush", tmp_path)]


def test_all_of_a_folder_is_flushed_before_it_is_named_and_its_own_folder_after(
    tmp_path: Path, monkeypatch
) -> None:
    for content in (b"new", b"replaced"):
        with monkeypatch.context() as patch:
            done = on_disk(patch)
            write_folder(tmp_path / "folder", content)
        at = done.index(("name", tmp_path / "folder"))
        flushed = [path.parts for kind, path in done[:at] if kind == "flush"]
        (staging,) = {parts[: len(tmp_path.parts) + 1] for parts in flushed}
        inner = {Path(*parts[len(staging) :]).as_posix() for parts in flushed}
        assert inner == {".", "a", "inner", "inner/b"}
        assert ("flush", tmp_path) in done[at:]


def test_a_write_that_takes_a_part_goes_on_with_the_rest(tmp_path: Path, monkeypatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:7]))
    durable.write_bytes(tmp_path / "file", bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


def test_a_folder_whose_writer_died_between_the_renames_comes_back(tmp_path: Path) -> None:
    """A dead process tidies up nothing, so what it leaves is made here by a child that kills itself."""
    path = tmp_path / "folder"
    write_folder(path, b"old")
    before = tree(path)
    child = os.fork()
    if child == 0:

        def observe(point: str, _: Path) -> None:
            if point == SWAPPED:
                os.kill(os.getpid(), signal.SIGKILL)

        durable.observer = observe
        write_folder(path, b"new")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not path.exists()
    durable.remove_leftovers(tmp_path)
    assert tree(tmp_path) == {f"folder/{name}": content for name, content in before.items()}


def a_dead_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def left(process: int, name: str) -> str:
    """The name under which a process was writing another."""
    return f"{durable.TEMPORARY}{process:06x}123abc-{name}"


def test_leftovers_of_others_are_left_until_they_are_old(tmp_path: Path) -> None:
    """Where other machines may be writing, nobody knows which processes live."""
    dead = a_dead_process()
    young, old = left(dead, "young"), left(dead, "old")
    for name in (young, old):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / old, (0, 0))
    durable.remove_leftovers(tmp_path, older_than=durable.STALE)
    assert [p.name for p in tmp_path.iterdir()] == [young]
    durable.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    """A report is written into a run's folder while the run is opened."""
    other = tmp_path / left(os.getppid(), "report.html")
    other.write_bytes(b"half")
    with durable.new_file(tmp_path / "file") as mine, durable.new_folder(tmp_path / "folder"):
        mine.write_bytes(b"content")
        durable.remove_leftovers(tmp_path)
        assert other.exists()
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "folder").is_dir()
    os.utime(other, (0, 0))
    durable.remove_leftovers(tmp_path)
    assert not other.exists(), "a number that a new process has by now keeps nothing for ever"


def test_what_a_user_called_so_is_not_touched(tmp_path: Path) -> None:
    """An exported folder may stand in a folder of the user's own."""
    (tmp_path / ".tmp-mine").mkdir()
    for name in (".tmp-mine/thesis.txt", ".tmp-notes.txt"):
        (tmp_path / name).write_text("mine")
    for name in (".tmp-mine", ".tmp-notes.txt"):
        os.utime(tmp_path / name, (0, 0))
    write_folder(tmp_path / "exported", b"new")
    durable.remove_leftovers(tmp_path)
    assert sorted(tree(tmp_path)) == [
        ".tmp-mine/thesis.txt", ".tmp-notes.txt", "exported/a", "exported/inner/b",
    ]  # fmt: skip


@pytest.mark.parametrize("point", [HALF, SWAPPED])
@pytest.mark.parametrize("name", ["old-model", "m" * 250])
def test_any_name_survives_a_writer_that_dies(tmp_path: Path, name: str, point: str) -> None:
    """Half a folder takes nobody's place, whatever it is called, and what it should replace comes back."""
    path = tmp_path / name
    write_folder(path, b"old")
    before = tree(tmp_path)
    child = os.fork()
    if child == 0:
        durable.observer = lambda seen, _: os._exit(0) if seen == point else None
        write_folder(path, b"new")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert tree(tmp_path) != before
    durable.remove_leftovers(tmp_path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["c++", "a+"])
def test_half_a_folder_whose_name_ends_in_a_plus_is_no_old_one(tmp_path: Path, name: str) -> None:
    half = tmp_path / left(a_dead_process(), name)
    half.mkdir()
    (half / "config.json").write_text("{}")
    durable.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        durable.write_bytes(tmp_path / "file", b"content")
        write_folder(tmp_path / "folder", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "folder/a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_error_names_the_file_that_was_meant(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    monkeypatch.setattr(durable, "observer", cut_at(HALF, OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError) as error:
        durable.write_bytes(path, b"content")
    assert error.value.filename == str(path)
    monkeypatch.setattr(durable, "observer", None)
    with pytest.raises(FileNotFoundError) as missing, durable.new_folder(tmp_path / "folder"):
        (tmp_path / "elsewhere").read_bytes()
    assert missing.value.filename == str(tmp_path / "elsewhere")


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    durable.write_bytes(path, b"content")
    assert path.read_bytes() == b"content"


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    durable.write_bytes(path, b"content")
    assert os.read(reader, 100) == b"content" and path.is_fifo()
    os.close(reader)
    # A link in a run's folder leads nowhere: it is replaced by a file.
    (tmp_path / "link").symlink_to(path)
    durable.write_bytes(tmp_path / "link", b"content")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_bytes() == b"content"
    before = os.stat("/dev/null").st_mode
    durable.write_bytes(Path("/dev/null"), b"content")
    assert os.stat("/dev/null").st_mode == before


def test_folders_above_are_made_and_flushed(tmp_path: Path, monkeypatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", flushed.append)
    durable.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and flushed == [tmp_path, tmp_path / "a"]


def test_nothing_in_the_package_sets_the_observer() -> None:
    source = Path(durable.__file__).parent
    setters = [p for p in source.rglob("*.py") if "durable.observer" in p.read_text("utf-8")]
    assert setters == [] and durable.observer is None
