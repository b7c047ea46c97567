"""The results of one benchmark: a JSON file that is rewritten whole after each finished cell.

A cut costs the cell that was running. The same command goes on where the last one stopped, as long as the code that is
measured and the setup are the same; otherwise the old file is set aside. The code counts by its text and not by its commit:
a commit that changes a document spoils nothing, an edit that is not committed does.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What a measurement depends on; commands, reports, tables and pictures may change without spoiling it.
PACKAGE = (
    "*.py",
    "data/*.py",
    "backbone/*.py",
    "methods/*.py",
    "cohort/*.py",
    *(f"study/{name}.py" for name in ("prepare", "rows", "settings", "space")),
)
MEASURING = ("adapterhub", "backbones", "processes", "rate", "side", "trainer_loop", "trials")


def fingerprint(root: Path = ROOT) -> str:
    """A hash of the code that measurements depend on."""
    package = root / "src" / "fleetune"
    files = sorted(file for pattern in PACKAGE for file in package.glob(pattern))
    files += [root / "bench" / f"{name}.py" for name in MEASURING]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """A results file. setup: what must be equal for cells to stand side by side."""

    def __init__(self, path: Path, setup: dict[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        self.told: dict[str, Any] = {"setup": setup, "cells": {}}
        self.set_aside: Path | None = None
        old = read(path)
        if old is None:
            return
        if not fresh and old.get("setup") == setup:
            self.told = old
            return
        self.set_aside = path.with_suffix(".before.json")
        os.replace(path, self.set_aside)

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """What was found, by the cell's key; a failed one holds "failed"."""
        return self.told["cells"]

    def done(self, key: str) -> bool:
        """Whether a cell needs no measuring; a failed one is tried again by the next command."""
        return key in self.cells and "failed" not in self.cells[key]

    def add(self, key: str, found: dict[str, Any]) -> None:
        """Keep a cell, on the disk too."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.cells[key] = {**found, "at": stamp}
        self.write()

    def set(self, **values: Any) -> None:
        """Keep what belongs to the whole."""
        self.told.update(values)
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.told, indent=1) + "\n")
        os.replace(part, self.path)


def read(path: Path) -> dict[str, Any] | None:
    """A results file; None where there is none, ValueError for one that is not whole."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be a results file, but is not JSON: {error}.") from None
