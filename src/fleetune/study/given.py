"""Rows that a Python program holds are kept in the folder of their run, so that the run can be resumed and done again."""

from __future__ import annotations

from pathlib import Path

from fleetune.durable import write_bytes
from fleetune.errors import RefusedError
from fleetune.study.folder import STUDY, locked, refuse_foreign


def keep_rows(folder: Path, name: str, content: bytes) -> Path:
    """Write rows into a run's folder, or find them there. RefusedError where the run has others, or the folder is no run.

    name: one of `folder.GIVEN`. content: JSON Lines (data/memory.py).
    """
    refuse_foreign(folder)
    with locked(folder):
        path = folder / name
        if (folder / STUDY).exists() and not (path.is_file() and path.read_bytes() == content):
            raise RefusedError(
                f"{folder}: holds a run on other rows; give another output_dir, or the same rows to go on"
            )
        write_bytes(path, content)
    return path
