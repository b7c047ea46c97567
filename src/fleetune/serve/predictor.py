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
import torch
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.load import (
    check_files,
    check_length,
    is_backbone_of,
    open_beside,
    open_saved,
    read_record,
)
from fleetune.backbone.load import Backbone, find_backbone
from fleetune.backbone.weights import refuse_pickle, refuse_pickled
from fleetune.cohort.engine import Engine
from fleetune.cohort.owned import Owned
from fleetune.cohort.plan import default_limits
from fleetune.cohort.trial import Rows, rows_within
from fleetune.data.base import Split
from fleetune.data.formats import character_problem
from fleetune.data.metrics import probabilities
from fleetune.data.tokens import tokenize
from fleetune.errors import DataError, RefusedError, SettingsError
from fleetune.report.tables import none_left
from fleetune.report.trial_facts import trial_facts
from fleetune.report.winner import winner
from fleetune.study import journal
from fleetune.study.folder import STUDY, trial_folder
from fleetune.study.prepare import DTYPES, check_compute, resolve_dtype

BATCH = 64


def most_tokens(engine: Engine) -> int:
    """Of a pass: as many as a cohort's."""
    return default_limits(str(engine.backbone.device)).tokens


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one text."""

    label: str
    probabilities: dict[str, float]
    """By label, in the order of the classes; empty for regression, whose label is the number itself."""

    def as_json(self) -> dict[str, Any]:
        return {"label": self.label, "probabilities": self.probabilities}


@dataclass(frozen=True, slots=True)
class Opened:
    """A classifier that saved models compute through, with what they must agree on to share it."""

    engine: Engine
    backbone: Backbone
    labels: tuple[int, bool]
    """How many, and whether it is regression."""
    compute: tuple[torch.dtype, str]
    """The dtype of the encoder, and the device."""


class Predictor:
    """One saved model, loaded and checked.

    path: a trial's folder, an exported one, or a run (its winner). dtype: of the encoder, None for that of the training. device:
    "cpu" or "cuda". beside: models that are open already; where one stands on the same backbone, with the same dtype and device,
    this one computes through the same frozen weights.

    Raises SettingsError for a folder that holds no model and for an unknown dtype or device, DataError for a damaged model,
    RefusedError where the backbone at hand is not the one of the training, EnvironmentProblem where there is none at hand.
    """

    def __init__(
        self,
        path: Path,
        *,
        dtype: str | None = None,
        device: str = "cpu",
        beside: Sequence[Predictor] = (),
    ) -> None:
        check_compute(dtype, device)
        self.folder = model_folder(path)
        self.record, sums = read_record(self.folder)
        compute = (DTYPES[resolve_dtype(dtype or self.record.dtype, device)], device)
        if layout.WEIGHTS in sums:
            others = [other.opened for other in beside]
            self.opened, self.owned = _from_trial(self.folder, self.record, compute, others)
        else:
            self.opened, self.owned = _from_export(self.folder, self.record, sums, compute)
        self.engine, self.tokenizer = self.opened.engine, self.opened.backbone.tokenizer
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
        rows = self.rows(first, second)
        self.truncated = rows.table.truncated
        if not len(rows):
            return np.empty((0, self.record.num_labels), dtype=np.float32)
        size = rows_within(rows, BATCH, most_tokens(self.engine))
        found = self.engine.predict_in_room([self.owned], [rows], [size])[0]
        self.check(found)
        return found

    def rows(self, first: Iterable[str], second: Iterable[str] | None = None) -> Rows:
        """The tokens of some texts; first, second and ValueError as of `logits`."""
        if self.pairs != (second is not None):
            wanted = " and ".join(self.record.text_columns)
            remedy = "one list of texts"
            if self.pairs:
                remedy = 'two lists of texts, all first ones and all second ones: predict(["..."], ["..."])'
            raise ValueError(f"this model reads {wanted}; give {remedy}.")
        first = _listed("first", first)
        second = None if second is None else _listed("second", second)
        if second is not None and len(second) != len(first):
            raise ValueError(
                f"a pair has two texts, but first has {len(first)} and second {len(second)}."
            )
        split = Split(
            tuple(str(i) for i in range(len(first))), tuple(first), None if second is None else tuple(second), None
        )  # fmt: skip
        table = tokenize(split, self.tokenizer, self.record.max_length, None, "")
        return Rows(table, np.arange(len(first)), np.zeros(len(first), dtype=np.int64))

    def check(self, logits: NDArray[Any]) -> None:
        """DataError where the weights gave no number."""
        wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(wrong):
            problem = f"gives no number for text {wrong[0] + 1}: its weights are too large for {self.record.dtype}"
            raise DataError(
                str(self.folder), [f"{problem}; restore it from a copy, or train it again"]
            )

    def predict(
        self, first: Iterable[str], second: Iterable[str] | None = None
    ) -> list[Prediction]:
        """A label and its probabilities for each row; first, second and errors as of `logits`."""
        return self.predictions(self.logits(first, second))

    def predictions(self, logits: NDArray[Any]) -> list[Prediction]:
        """What logits [n, C] of this model say."""
        if self.record.regression:
            return [Prediction(f"{value:.6g}", {}) for value in logits[:, 0].tolist()]
        names = self.record.label_names
        return [
            Prediction(names[int(np.argmax(row))], dict(zip(names, row.tolist(), strict=True)))
            for row in probabilities(logits)
        ]


def _listed(name: str, texts: Any) -> list[str]:
    """Texts as a list; ValueError where they are none."""
    # All three can be gone through: the letters of a text, the names of columns.
    if isinstance(texts, str | Mapping) or hasattr(texts, "columns"):
        kind = type(texts).__name__
        raise ValueError(f"`{name}` must be a list of texts, but it is a {kind}; give [text].")
    if not isinstance(texts, Iterable):
        kind = type(texts).__name__
        raise ValueError(f"`{name}` must be a list of texts, but it is {texts!r:.80} ({kind}).")
    listed = [text.as_py() if hasattr(text, "as_py") else text for text in texts]  # pyarrow's cells
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ValueError(f"`{name}[{i}]` must be a str, but it is {text!r:.80} ({kind}).")
        if (problem := character_problem(text)) is not None:
            raise ValueError(f"`{name}[{i}]`: {problem}.")
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
            "model",
            [
                f"{path} does not exist; give a trial's folder, one of `export --format hf`, or a run"
            ],
        )
    if any((path / name).is_file() for name in (journal.NAME, STUDY)):
        facts = trial_facts(path)
        best = winner(facts)
        if best is None:
            over = facts["study"]["status"] == "done"
            remedy = "" if over else "; run the same command again"
            raise SettingsError("model", [f"{path}: {none_left(facts)}{remedy}"])
        return _kept(path, best)
    if not (path / layout.RECORD).is_file():
        if path.is_file():
            refuse_pickled(path)
        refuse_pickle(str(path), [f.name for f in path.iterdir()] if path.is_dir() else [path.name])
        raise SettingsError(
            "model", [f"{path}: neither a run nor a saved model (no {layout.RECORD} in it)"]
        )
    return path


def _kept(run: Path, winner: Mapping[str, Any]) -> Path:
    """The folder of a run's winner; DataError where its model is lost, which the scores of the run outlive."""
    folder = trial_folder(run, winner["id"])
    if (folder / layout.RECORD).is_file():
        _, sums = read_record(folder)
        if winner["weights"] not in (None, sums.get(layout.WEIGHTS)):
            problem = "is of another run than the one that it lies in; restore it from a copy"
            raise DataError(str(folder), [problem])
        return folder
    others = sorted(p.parent for p in run.glob(f"trials/*/{layout.RECORD}"))
    remedy = f", or give another trial's folder, such as {others[0]}" if others else ""
    raise DataError(
        str(folder),
        [
            f"the saved model of this run's winner is missing ({layout.RECORD}); restore the folder from a copy{remedy}"
        ],
    )


def _from_trial(
    folder: Path, record: ModelRecord, compute: tuple[torch.dtype, str], others: Sequence[Opened]
) -> tuple[Opened, Owned]:
    labels = (record.num_labels, record.regression)
    on_it = [
        other
        for other in others
        if is_backbone_of(record, other.backbone) and other.compute == compute
    ]
    found = next((other for other in on_it if other.labels == labels), None)
    if found is not None:
        saved, low_rank = open_beside(folder, found.backbone, found.engine.sites)
    else:
        read = open_saved(folder)
        saved, low_rank = read.saved, read.low_rank
        engine = _engine(read.model, read.fresh, compute)
        # Its head has another shape; the encoder is the same.
        if on_it:
            engine.share(on_it[0].engine)
        found = Opened(engine, read.backbone, labels, compute)
    wide = found.engine.backbone.head_dtype
    values = {name: t.to(compute[1], wide) for name, t in saved.tensors.items()}
    return found, Owned(values, low_rank, found.engine.sites)


def _from_export(
    folder: Path, record: ModelRecord, sums: Mapping[str, str], compute: tuple[torch.dtype, str]
) -> tuple[Opened, Owned]:
    if layout.GRAPH in sums:
        raise SettingsError(
            str(folder),
            [
                "an ONNX graph, which onnxruntime runs; its README.md says how; fleetune reads --format hf"
            ],
        )
    check_files(folder, sums, sums, "exported")
    backbone = find_backbone(str(folder.resolve()))
    if backbone.checksum not in sums.values():
        raise RefusedError(
            f"{folder}: {layout.RECORD} has no sha256 of its weights, so nobody can say whether they changed; export it again"
        )
    check_length(record, backbone.max_length, folder)
    model, fresh = backbone.classifier(record.num_labels, record.label_names)
    if fresh:
        raise DataError(str(folder), [f"{name}: missing" for name in sorted(fresh)])
    engine = _engine(model, frozenset(), compute)
    opened = Opened(engine, backbone, (record.num_labels, record.regression), compute)
    return opened, Owned({}, (), engine.sites)


def _engine(model: Any, fresh: frozenset[str], compute: tuple[torch.dtype, str]) -> Engine:
    dtype, device = compute
    # Texts come and go: what would be kept of them would fill the memory.
    return Engine(model, fresh, dtype=dtype, device=device, remembers=False)
