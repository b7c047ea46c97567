"""Two sides that were measured on the same test rows, compared: all trainings of a method, or one saved model.

What is read is what the folders of the models keep: predictions, the record, and whether the epoch was chosen on the test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.artifact.load import read_json, read_record
from fleetune.errors import DataError, SettingsError
from fleetune.report.stored import Predictions, read_predictions
from fleetune.report.study_facts import compare_outputs
from fleetune.stats.compare import Comparison
from fleetune.stats.failed import with_failed
from fleetune.stats.intervals import said_of
from fleetune.stats.models import ModelComparison, compare_model_scores, compare_models


@dataclass(frozen=True, slots=True)
class Side:
    """What stands on one side of a comparison."""

    folders: tuple[Path, ...]
    """Of the saved models: the trainings of a method that ended, or one file."""
    failed: int = 0
    """Further trainings of the method, which failed."""
    a_file: bool = False
    """It stands for itself and not for a method."""


def compare_sides(a: Side, b: Side, *, margin: float) -> Comparison | ModelComparison:
    """B against A by the main metric of their task: two files as files (stats/models.py), all else as methods.

    Raises SettingsError where no training of either side ended, DataError where the test rows differ or a folder is damaged.
    """
    if not margin > 0:
        raise SettingsError("margin", [f"`margin > 0` must hold, but got {margin!r}"])
    if margin >= 1:
        told = f"must be below 1, as scores are, but is {margin:g}; {margin:g} points are {margin / 100:g}"
        raise SettingsError("margin", [told])
    truth, (of_a, of_b), metric = _predicted((a, b))
    if a.a_file and b.a_file:
        found = _files(metric, truth, of_a[0], of_b[0], margin)
    else:
        found = compare_outputs(metric, truth, of_a, of_b, margin=margin)
    chose = [name for name, side in (("A", a), ("B", b)) if any(map(_optimistic, side.folders))]
    return replace(found, optimistic=bool(chose), optimistic_of=" and ".join(chose))


def _files(
    metric: str, truth: NDArray[Any], of_a: NDArray[Any], of_b: NDArray[Any], margin: float
) -> ModelComparison:
    """Two saved models. truth: classes or targets [n]; of_a, of_b: logits [n, C]."""
    if metric == "accuracy":
        right = truth.astype(np.int64)
        return compare_models(of_a.argmax(-1) == right, of_b.argmax(-1) == right, margin=margin)
    said_a, said_b = said_of(of_a[None])[0], said_of(of_b[None])[0]
    return compare_model_scores(metric, said_a, said_b, truth, margin=margin)


def _optimistic(folder: Path) -> bool:
    """Whether a saved model's epoch was chosen on its test rows. DataError where its folder does not say."""
    found = read_json(folder / layout.METRICS)
    if not isinstance(found, dict) or not isinstance(found.get("optimistic"), bool):
        raise DataError(
            str(folder / layout.METRICS),
            ["must say whether its scores are optimistic; restore it from a copy"],
        )
    return found["optimistic"]


def _main(folder: Path) -> Predictions:
    """What a model said of its main test set."""
    path = folder / layout.PREDICTIONS
    found = read_predictions(path)
    if not found:
        raise DataError(str(path), ["holds no row, so there is nothing to compare"])
    return next(iter(found.values()))


def _predicted(
    sides: Sequence[Side],
) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]], str]:
    """Labels [n], logits [S, n, C] of each side, and the metric."""
    records = [read_record(folder)[0] for side in sides for folder in side.folders]
    read = [[_main(folder) for folder in side.folders] for side in sides]
    known = next((found[0] for found in read if found), None)
    if known is None:
        raise SettingsError(
            "compare", ["every training of both sides failed, so there is nothing to compare"]
        )
    first, (ids, truth, logits) = records[0], known
    for record in records:
        if record.label_names != first.label_names or record.metrics != first.metrics:
            raise DataError(
                "compare", [f"{first.task} and {record.task} have different labels or metrics"]
            )
    if any(i != ids or not np.array_equal(said, truth) for found in read for i, said, _ in found):
        raise DataError(
            "compare",
            ["the two sides were not measured on the same test rows; train both with the same test file"],
        )  # fmt: skip
    none = np.empty((0, *logits.shape))
    of_a, of_b = (
        with_failed(np.stack([said for _, _, said in found]) if found else none, truth, side.failed)
        for side, found in zip(sides, read, strict=True)
    )
    return truth, (of_a, of_b), first.metrics[0]
