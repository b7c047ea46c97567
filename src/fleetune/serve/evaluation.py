"""Metrics of one saved model on labelled rows, with intervals over examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.artifact.layout import ModelRecord
from fleetune.data.base import Split
from fleetune.data.formats import decimal
from fleetune.data.sources import RawTable, guess_label, read_file
from fleetune.errors import DataError
from fleetune.records import as_json
from fleetune.serve.predictor import Predictor, check_columns
from fleetune.stats.intervals import metric_estimate


def evaluate_rows(
    predictor: Predictor, name: str, split: Split, *, optimistic: bool = False
) -> dict[str, Any]:
    """Every metric of the model's task as an estimate, about this one file and not about its method.

    optimistic: whether some of these rows chose the model's epoch.
    """
    labels = split.labels
    assert labels is not None
    logits = predictor.logits(split.first, split.second)
    found = {
        metric: as_json(metric_estimate(metric, logits[None], labels, optimistic=optimistic))
        for metric in predictor.record.metrics
    }
    return {"set": name, "n": len(split), "truncated": predictor.truncated, "metrics": found}


def labelled_file(
    path: Path,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    record: ModelRecord,
) -> Split:
    """Rows of a file with the model's labels.

    text_columns, label_column: None: as they were called in training. DataError with the lines of labels that the model does
    not know.
    """
    texts = text_columns or record.text_columns
    check_columns(texts, record)
    label = label_column or record.label_column or guess_label(path, texts)
    rows = read_file(path, texts, label, decimals=record.regression)
    assert rows.labels is not None
    values = _targets(rows) if record.regression else _classes(rows, record.label_names)
    ids = tuple(str(i + 1) for i in range(len(rows)))
    return Split(ids, rows.texts[0], rows.texts[1] if len(rows.texts) == 2 else None, values)


def _classes(rows: RawTable, names: Sequence[str]) -> NDArray[np.int64]:
    """int64 [n]: the number of each label."""
    numbers = {name: i for i, name in enumerate(names)}
    labels = rows.labels or ()
    problems = [
        f'{rows.place(i, rows.label_column)}: label "{label}" is not one of {", ".join(names)}'
        for i, label in enumerate(labels)
        if label not in numbers
    ]
    if problems:
        raise DataError(str(rows.path), problems)
    return np.asarray([numbers[label] for label in labels], dtype=np.int64)


def _targets(rows: RawTable) -> NDArray[np.float64]:
    """float64 [n]: each label as a number."""
    labels = rows.labels or ()
    values = np.asarray([decimal(label) for label in labels], dtype=np.float64)
    problems = [
        f'{rows.place(i, rows.label_column)}: "{labels[i]}" is not a number'
        for i in np.flatnonzero(~np.isfinite(values)).tolist()
    ]
    if problems:
        raise DataError(str(rows.path), problems)
    return values
