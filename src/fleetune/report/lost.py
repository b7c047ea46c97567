"""Trainings whose predictions are gone: what the journal says of them stays, and nothing new can be computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetune.artifact import layout
from fleetune.errors import DataError
from fleetune.report.stored import is_of_another_run
from fleetune.report.trainings import Group, Saved


def lost_groups(folder: Path, groups: Sequence[Group], saved: Saved) -> list[dict[str, Any]]:
    """One record for each method and setting of which a training's predictions cannot be read.

    `trials` are all of its trainings, since a mean over those that happen to be left is no estimate; `files` says what is wrong.
    """
    found: list[dict[str, Any]] = []
    for group in groups:
        states = {_file(t): _state(folder / _file(t), t, saved) for t in group.done}
        files = {name: state for name, state in states.items() if state is not None}
        if files:
            found.append(
                {
                    "task": group.first["task"],
                    "method": group.first["method"],
                    "trials": [t["id"] for t in (*group.done, *group.failed)],
                    "files": files,
                }
            )
    return found


def _file(trial: dict[str, Any]) -> str:
    return f"trials/{trial['id']}/{layout.PREDICTIONS}"


def _state(path: Path, trial: dict[str, Any], saved: Saved) -> str | None:
    """What is wrong with a trial's file; None where it is the one that the journal knows."""
    try:
        saved.of(trial["id"])
    except DataError:
        return "damaged" if path.exists() else "missing"
    return "of another run" if is_of_another_run(path, trial["predictions"]) else None
