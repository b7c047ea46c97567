"""Rows that a Python program holds are kept in the folder of their run, so that the run can be resumed and done again."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fleetune.durable import write_bytes
from fleetune.errors import DataError, FleetuneError, RefusedError
from fleetune.study.folder import GIVEN, STUDY, locked, refuse_foreign

_TOLD: dict[str, str] = dict(zip(GIVEN, ("the rows given", "the test rows given"), strict=True))


@contextmanager
def kept_rows(folder: Path, rows: Mapping[str, bytes]) -> Generator[bool]:
    """Put rows into a run's folder, or find them there, and hold it until the run has ended: else another program could put
    others there before these are read. Whether there are any, and so whether the folder is held.

    rows: JSON Lines (data/memory.py) by name, one of `folder.GIVEN`. RefusedError where the run has others, the folder is no
    run, or another command works in it; DataError names the rows where they cannot be used. Where a run was refused before it
    began, for these rows or for a setting, they are taken out again.
    """
    refuse_foreign(folder)  # before minutes are spent on data
    if not rows:
        yield False
        return
    with locked(folder):
        others = [name for name, content in rows.items() if not _holds(folder / name, content)]
        if others and (folder / STUDY).exists():
            raise RefusedError(
                f"{folder}: holds a run on other rows; give another output_dir, or the same rows to go on"
            )
        for name in others:
            write_bytes(folder / name, rows[name])
        try:
            yield True
        except FleetuneError as error:
            if not (folder / STUDY).exists():
                for unused in others:
                    (folder / unused).unlink()
            of = error.where if isinstance(error, DataError) else None
            name = next((name for name in rows if of == str(folder / name)), None)
            if name is None or not isinstance(error, DataError):
                raise
            raise DataError(_TOLD[name], [_of_rows(p) for p in error.problems]) from None


def _of_rows(problem: str) -> str:
    """The caller gave rows and knows of no file: each is a line there."""
    return f"row {problem.removeprefix('line ')}" if problem.startswith("line ") else problem


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
