"""A saved model at work: texts in, labels and probabilities out.

A model is a trial's folder, an exported folder, or a run, which stands for its winner. A trial's folder computes through
the same engine and dtype as in training; `dtype` overrides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.load import check_length, open_saved, read_record
from fleetune.backbone.load import find_backbone
from fleetune.backbone.weights import refuse_pickle, refuse_pickled
from fleetune.cohort.engine import Engine
from fleetune.cohort.owned import Owned
from fleetune.cohort.trial import Rows
from fleetune.data.base import Split
from fleetune.data.tokens import tokenize
from fleetune.errors import DataError, RefusedError, SettingsError
from fleetune.report.facts import run_facts, winner
from fleetune.study import journal
from fleetune.study.prepare import DTYPES, check_compute, resolve_dtype

BATCH = 64


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one text."""

    label: str
    probabilities: dict[str, float]
    """By label, in the order of the classes; empty for regression, whose label is the number itself."""

    def as_json(self) -> dict[str, Any]:
        return {"label": self.label, "probabilities": self.probabilities}


class Predictor:
    """One saved model, loaded and checked."""

    def __init__(self, path: Path, *, dtype: str | None = None, device: str = "cpu") -> None:
        check_compute(dtype, device)
        self.folder = model_folder(path)
        _, sums = read_record(self.folder)
        if layout.WEIGHTS in sums:
            self.record, engine, owned = _from_trial(self.folder, dtype, device)
        else:
            self.record, engine, owned = _from_export(self.folder, dtype, device)
        self.engine, self.owned, self.tokenizer = engine[0], owned, engine[1]
        self.truncated = 0
        """Rows of the last call that were longer than the model reads, and were cut."""

    @property
    def pairs(self) -> bool:
        """Whether the model reads two texts."""
        return len(self.record.text_columns) == 2

    def logits(self, first: Iterable[str], second: Iterable[str] | None = None) -> NDArray[Any]:
        """Logits [n, C] in input order. ValueError where these are not so many lists of texts as the model reads.

        first, second: lists, arrays or pandas series of strings, as long as each other. `truncated` then says how many rows
        were cut.
        """
        if self.pairs != (second is not None):
            wanted = " and ".join(self.record.text_columns)
            raise ValueError(
                f"this model reads {wanted}, so give {'two texts' if self.pairs else 'one text'} a row."
            )
        first = _listed("first", first)
        second = None if second is None else _listed("second", second)
        if second is not None and len(second) != len(first):
            raise ValueError(
                f"a pair has two texts, but first has {len(first)} and second {len(second)}."
            )
        self.truncated = 0
        if not first:
            return np.empty((0, self.record.num_labels), dtype=np.float32)
        split = Split(
            tuple(str(i) for i in range(len(first))), tuple(first), None if second is None else tuple(second), None
        )  # fmt: skip
        table = tokenize(split, self.tokenizer, self.record.max_length, None, "")
        self.truncated = table.truncated
        rows = Rows(table, np.arange(len(first)), np.zeros(len(first), dtype=np.int64))
        found = self.engine.predict([self.owned], [rows], [BATCH])[0]
        wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(wrong):
            problem = f"gives no number for text {wrong[0] + 1}: its weights are too large for {self.record.dtype}"
            raise DataError(
                str(self.folder), [f"{problem}; restore it from a copy, or train it again"]
            )
        return found

    def predict(
        self, first: Iterable[str], second: Iterable[str] | None = None
    ) -> list[Prediction]:
        """A label and its probabilities for each row; first, second and errors as of `logits`."""
        logits = self.logits(first, second).astype(np.float64)
        if self.record.regression:
            return [Prediction(f"{value:.6g}", {}) for value in logits[:, 0].tolist()]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
        shares = shifted / shifted.sum(axis=1, keepdims=True) if len(logits) else logits
        names = self.record.label_names
        return [
            Prediction(names[int(np.argmax(row))], dict(zip(names, row.tolist(), strict=True)))
            for row in shares
        ]


def _listed(name: str, texts: Any) -> list[str]:
    """Texts as a list; ValueError where they are none."""
    # All three can be gone through: the letters of a text, the names of columns.
    if isinstance(texts, str | Mapping) or hasattr(texts, "columns"):
        kind = type(texts).__name__
        raise ValueError(f"`{name}` must be a list of texts, but it is a {kind}; give [text].")
    listed = list(texts)
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ValueError(f"`{name}[{i}]` must be a str, but it is {text!r:.80} ({kind}).")
    return listed


def check_columns(columns: Sequence[str], record: ModelRecord) -> None:
    """SettingsError where there are not as many text columns as the model reads."""
    if len(columns) != len(record.text_columns):
        wanted = " and ".join(record.text_columns)
        raise SettingsError(
            "--text-column", [f"this model reads {wanted}, but got {', '.join(columns)}"]
        )


def model_folder(path: Path) -> Path:
    """The folder of a model: the path itself, or the winner where it is a run."""
    if not path.exists():
        raise SettingsError(
            "model", [f"{path} does not exist; give a trial's folder, an exported one, or a run"]
        )
    if (path / journal.NAME).is_file():
        found = winner(run_facts(path))
        if found is None:
            raise SettingsError(
                "model", [f"{path}: no trial of this run has ended; run the same command again"]
            )
        return _kept(path, found["id"])
    if not (path / layout.RECORD).is_file():
        if path.is_file():
            refuse_pickled(path)
        refuse_pickle(str(path), [f.name for f in path.iterdir()] if path.is_dir() else [path.name])
        raise SettingsError(
            "model", [f"{path}: neither a run nor a saved model (no {layout.RECORD} in it)"]
        )
    return path


def _kept(run: Path, winner: str) -> Path:
    """The folder of a run's winner; DataError where its model is lost, which the scores of the run outlive."""
    folder = run / "trials" / winner
    if (folder / layout.RECORD).is_file():
        return folder
    others = sorted(p.parent for p in run.glob(f"trials/*/{layout.RECORD}"))
    remedy = f", or give another trial's folder, such as {others[0]}" if others else ""
    raise DataError(
        str(folder),
        [
            f"the saved model of this run's winner is missing ({layout.RECORD}); restore the folder from a copy{remedy}"
        ],
    )


def _from_trial(folder: Path, dtype: str | None, device: str) -> tuple[ModelRecord, Any, Owned]:
    opened = open_saved(folder)
    record = opened.saved.record
    compute = DTYPES[resolve_dtype(dtype or record.dtype, device)]
    engine = Engine(opened.model, opened.fresh, dtype=compute, device=device)
    values = {name: t.to(device) for name, t in opened.saved.tensors.items()}
    owned = Owned(values, opened.low_rank, engine.sites)
    return record, (engine, opened.backbone.tokenizer), owned


def _from_export(folder: Path, dtype: str | None, device: str) -> tuple[ModelRecord, Any, Owned]:
    record, sums = read_record(folder)
    backbone = find_backbone(str(folder.resolve()))
    if backbone.checksum not in sums.values():
        raise RefusedError(
            f"{folder}: its weights changed since it was exported (their sha256 is not in {layout.RECORD}); export it again"
        )
    check_length(record, backbone.max_length, folder)
    model, fresh = backbone.classifier(record.num_labels, record.label_names)
    if fresh:
        raise DataError(str(folder), [f"{name}: missing" for name in sorted(fresh)])
    engine = Engine(
        model, dtype=DTYPES[resolve_dtype(dtype or record.dtype, device)], device=device
    )
    return record, (engine, backbone.tokenizer), Owned({}, (), engine.sites)
