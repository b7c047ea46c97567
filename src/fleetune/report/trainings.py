"""The trainings of one method with one setting, those that failed among them, and what they said on a test set.

No training is dropped: one that failed counts as one that learned nothing (stats/failed.py). Which sets and metrics there are is
known from a training of the same task that ended; where none has, nothing can be said of the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.report.stored import Predictions, read_predictions
from fleetune.stats.failed import with_failed
from fleetune.study.folder import trial_folder

Trial = dict[str, Any]
Outputs = tuple[NDArray[Any], NDArray[Any]]
"""Labels [n] and logits [S, n, C]."""


@dataclass(frozen=True, slots=True)
class Group:
    """The trainings of one method and setting whose test rows were, or would have been, opened."""

    judged: Trial
    """One of the same task that ended: its test sets and metrics are those of the group."""
    done: list[Trial] = field(default_factory=list[Trial])
    failed: list[Trial] = field(default_factory=list[Trial])

    @property
    def first(self) -> Trial:
        return (self.done or self.failed)[0]


def groups(trials: Sequence[Trial]) -> list[Group]:
    """All but those of a search, in the order of their first trainings; without the tasks of which no training has ended."""
    found: dict[str, Group] = {}
    judged: dict[str, Trial] = {}
    tested = [t for t in trials if t["phase"] != "search"]
    for trial in tested:
        if trial["status"] == "done":
            judged.setdefault(trial["task"], trial)
    for trial in tested:
        if trial["status"] in ("done", "failed") and trial["task"] in judged:
            group = found.setdefault(setting(trial), Group(judged[trial["task"]]))
            (group.done if trial["status"] == "done" else group.failed).append(trial)
    return list(found.values())


def setting(trial: Mapping[str, Any]) -> str:
    """What is the same in all seeds of one method and setting: its settings, and its name without the seed."""
    told = [trial["task"], trial["method"], trial["hyperparameters"], trial["training"]]
    return json.dumps([trial["id"].rpartition("-s")[0], *told], sort_keys=True)


class Saved:
    """The predictions of a run's trials. Each file is read once, since estimates and verdicts ask for the same ones.

    The ids of the rows are not kept: of a hundred trials on twenty thousand rows they would take more than all else.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._read: dict[str, dict[str, Predictions]] = {}

    def of(self, ident: str) -> dict[str, Predictions]:
        """Those of one trial by test set. DataError where the file is missing or damaged."""
        if ident not in self._read:
            path = trial_folder(self._run, ident) / layout.PREDICTIONS
            found = read_predictions(path)
            self._read[ident] = {name: one._replace(ids=[]) for name, one in found.items()}
        return self._read[ident]

    def outputs(self, group: Group, name: str) -> Outputs:
        """Labels and logits of one test set; failed trainings stand behind the others."""
        read = [self.of(t["id"])[name] for t in group.done or [group.judged]]
        labels, logits = read[-1].labels, np.stack([one.logits for one in read])
        return labels, with_failed(logits[: len(group.done)], labels, len(group.failed))
