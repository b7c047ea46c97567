"""Metrics of one saved model on labelled rows, with intervals over examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fleetune.artifact.layout import ModelRecord
from fleetune.data import metrics
from fleetune.data.base import Split
from fleetune.data.sources import read_file
from fleetune.errors import DataError
from fleetune.records import as_json
from fleetune.serve.predictor import Predictor, check_columns
from fleetune.stats.intervals import accuracy_estimate, bootstrap_estimate


def evaluate_rows(predictor: Predictor, name: str, split: Split) -> dict[str, Any]:
    """Every metric of the model's task as an estimate, about this one file and not about its method."""
    labels = split.labels
    assert labels is not None
    logits = predictor.logits(split.first, split.second)
    found: dict[str, Any] = {}
    for metric in predictor.record.metrics:
        if metric == "accuracy":
            estimate = accuracy_estimate((logits.argmax(1) == labels)[None])
        else:
            estimate = bootstrap_estimate(
                lambda out, lab, m=metric: metrics.compute((m,), out, lab)[m], logits[None], labels
            )
        found[metric] = as_json(estimate)
    return {"set": name, "n": len(split), "metrics": found}


def labelled_file(
    path: Path, text_columns: list[str], label_column: str | None, record: ModelRecord
) -> Split:
    """Rows of a file with the model's labels. DataError with the lines of labels that the model does not know."""
    check_columns(text_columns, record)
    rows = read_file(path, text_columns, label_column or "label")
    assert rows.labels is not None
    numbers = {label: i for i, label in enumerate(record.label_names)}
    if record.regression:
        values = np.asarray([_number(label) for label in rows.labels])
        problems = [
            f'{rows.place(i, label_column or "label")}: "{rows.labels[i]}" is not a number'
            for i in np.flatnonzero(~np.isfinite(values)).tolist()
        ]
        if problems:
            raise DataError(str(path), problems)
    else:
        problems = [
            f'{rows.place(i, label_column or "label")}: label "{label}" is not one of {", ".join(record.label_names)}'
            for i, label in enumerate(rows.labels)
            if label not in numbers
        ]
        if problems:
            raise DataError(str(path), problems)
        values = np.asarray([numbers[label] for label in rows.labels], dtype=np.int64)
    ids = tuple(str(i + 1) for i in range(len(rows)))
    return Split(ids, rows.texts[0], rows.texts[1] if len(rows.texts) == 2 else None, values)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
