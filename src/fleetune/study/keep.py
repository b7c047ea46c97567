"""What a task's trials are trained with, and how a trained one becomes a folder that a user can load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune import __version__
from fleetune.artifact.check import Checker, NoNumbers
from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.save import save_trial
from fleetune.backbone.load import Backbone
from fleetune.cohort.engine import Engine
from fleetune.cohort.owned import Owned
from fleetune.cohort.trial import Rows, TrialInput, rows_within
from fleetune.data import metrics
from fleetune.data.base import Split, Task
from fleetune.data.tokens import TokenTable
from fleetune.seeds import stream
from fleetune.study.prepare import DTYPES
from fleetune.study.settings import CONFIRM

# A third of an epoch at most, and enough for a score to half a point.
MOST_TRAIN_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Workbench:
    """One task's backbone, opened for training, and a pristine one to check saved models with."""

    task: Task
    backbone: Backbone
    dtype: str
    max_length: int
    engine: Engine
    checker: Checker


@dataclass(frozen=True, slots=True)
class Trained:
    """A trial at its end, holding the weights of its best epoch."""

    given: TrialInput
    owned: Owned
    best_epoch: int
    selection: Mapping[str, float]
    """Scores of that epoch on the selection split; empty where there was none."""
    seconds: float
    tokens: int
    """Tokens that it has trained on, over all epochs."""
    max_tokens: int
    """Tokens that a pass without gradients may hold."""


def open_workbench(
    task: Task, backbone: Backbone, dtype: str, max_length: int, rows: TokenTable, device: str
) -> Workbench:
    """Load a backbone; a second time when the first model is saved. rows: what saved models are tried on."""
    kind = "regression" if task.regression else "single_label_classification"

    def load() -> tuple[Any, frozenset[str]]:
        return backbone.classifier(task.num_labels, task.label_names, problem_type=kind)

    opened, fresh = load()
    engine = Engine(opened, fresh, dtype=DTYPES[dtype], device=device)
    return Workbench(task, backbone, dtype, max_length, engine, Checker(lambda: load()[0], rows))


def keep(
    folder: Path,
    bench: Workbench,
    trained: Trained,
    tests: Mapping[str, tuple[Split, TokenTable]],
    *,
    optimistic: bool,
) -> dict[str, Any]:
    """Measure a trained trial on the test sets and write its folder. Returns the facts of its end, for the journal.

    tests: rows with labels, and their tokens, by name; the main one first. Raises NoNumbers where a model of numbers
    that are not finite came out; then nothing is written.
    """
    given = trained.given
    predictions: list[tuple[str, Split, NDArray[Any]]] = []
    scores: dict[str, dict[str, float]] = {}
    for name, (split, table) in tests.items():
        assert split.labels is not None
        rows = Rows(table, np.arange(len(split)), split.labels)
        logits = _logits(bench, trained, rows, f"test set {name}")
        predictions.append((name, split, logits))
        scores[name] = {**metrics.compute(given.metrics, logits, split.labels), "n": len(split)}
    facts: dict[str, Any] = {
        "best_epoch": trained.best_epoch,
        "selection": {**trained.selection, "n": len(given.selection)} if trained.selection else {},
        "test": next(iter(scores.values())),
        "tests": scores,
        "optimistic": optimistic,
        "seconds": round(trained.seconds, 3),
        "tokens": trained.tokens,
    }
    if given.spec.phase == CONFIRM:
        facts["train"] = _train_scores(bench, trained)
    ident, seed, method = given.spec.id, given.spec.seed, given.method
    facts |= save_trial(
        folder,
        _record(bench, trained, _first_of(tests) if optimistic else {}),
        method,
        bench.engine.sites,
        trained.owned.state(),
        trained.owned.low_rank,
        {
            "id": ident,
            "seed": seed,
            "method": method.name,
            "training": dict(given.spec.training),
            **facts,
        },
        predictions,
        bench.checker,
    )
    return facts


def _logits(bench: Workbench, trained: Trained, rows: Rows, name: str) -> NDArray[Any]:
    """Logits [n, C] of rows, in batches that keep to the plan; in smaller ones where memory does not suffice for those."""
    most = trained.given.settings.per_device_eval_batch_size
    size = rows_within(rows, most, trained.max_tokens)
    (logits,) = bench.engine.predict_in_room([trained.owned], [rows], [size])
    with np.errstate(over="ignore"):
        kept = logits.astype(np.float32)  # as files hold them, and as models are tried
    if not np.isfinite(kept).all():
        raise NoNumbers(f"its predictions of {name} are not finite")
    return logits


def _train_scores(bench: Workbench, trained: Trained) -> dict[str, float]:
    """Scores on the trial's own training rows, or on a fixed sample of them: what it has learned by heart."""
    given = trained.given
    rows = given.train.rows
    if len(rows) > MOST_TRAIN_ROWS:
        draw = stream(given.spec.seed, "train-scores")
        rows = np.sort(draw.choice(rows, MOST_TRAIN_ROWS, replace=False))
    sample = Rows(given.train.table, rows, given.train.labels)
    logits = _logits(bench, trained, sample, "its training rows")
    return {**metrics.compute(given.metrics, logits, sample.labels[rows]), "n": len(rows)}


def _first_of(tests: Mapping[str, tuple[Split, TokenTable]]) -> dict[str, str]:
    """The test set that protocol "paper" chooses on, with its checksum."""
    name, (split, _) = next(iter(tests.items()))
    return {name: split.checksum}


def _record(bench: Workbench, trained: Trained, chosen_on: dict[str, str]) -> ModelRecord:
    spec, task, backbone = trained.given.spec, bench.task, bench.backbone
    return ModelRecord(
        method=spec.method,
        hyperparameters=dict(spec.hyperparameters),
        seed=spec.seed,
        task=task.name,
        text_columns=list(task.columns),
        label_names=list(task.label_names),
        regression=task.regression,
        metrics=list(task.metrics),
        backbone=backbone.name,
        backbone_source=backbone.source,
        backbone_revision=backbone.revision,
        backbone_checksum=backbone.checksum,
        model_type=bench.engine.sites.model_type,
        dtype=bench.dtype,
        max_length=bench.max_length,
        best_epoch=trained.best_epoch,
        fleetune_version=__version__,
        label_column=task.label_column,
        backbone_config=backbone.config_checksum,
        backbone_tokenizer=backbone.tokenizer_checksum,
        chosen_on=chosen_on,
    )
