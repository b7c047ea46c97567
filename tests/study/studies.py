"""Small studies for tests: rows in two files, a tiny backbone, a study file as text, and runs in this process."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetune.study import journal
from fleetune.study.file import parse_study
from fleetune.study.prepare import Prepared, prepare
from fleetune.study.run import Outcome, Run
from tests.runs import Made

STUDY = """
[data]
file = "{folder}/train.csv"
test_file = "{folder}/test.csv"
protocol = "{protocol}"

[backbone]
name = "{backbone}"
dtype = "float64"

[training]
num_train_epochs = {epochs}
per_device_train_batch_size = 8
warmup_steps = 1
metric_for_best_model = "loss"

[[methods]]
method = "bitfit"
learning_rate = [1e-3, 1e-2, 3e-2]

[[methods]]
method = "lora"
learning_rate = {{ low = 1e-3, high = 1e-1 }}
r = [1, 2]
lora_alpha = "4r"
lora_dropout = 0.1

[search]
trials_per_method = {trials}
sampler = "tpe"
batch = 3

[confirm]
seeds = {seeds}
"""


def text(
    made: Made,
    *,
    folder: Path | None = None,
    protocol: str = "holdout",
    epochs: int = 3,
    trials: int = 4,
    seeds: int = 2,
) -> str:
    """A study of two methods on own rows. The loss chooses, since on so few rows accuracies tie."""
    return STUDY.format(
        folder=folder or made.folder,
        backbone=made.backbone,
        protocol=protocol,
        epochs=epochs,
        trials=trials,
        seeds=seeds,
    )


def prepared(study: str) -> Prepared:
    return prepare(parse_study(tomllib.loads(study)))


def run(
    folder: Path, study: str | Prepared, *, watch: Any = None, trials: int | None = None
) -> Outcome:
    """Train a study in this process. trials: the size of its cohorts."""
    ready = prepared(study) if isinstance(study, str) else study
    return Run(folder, ready, trials=trials).train(watch or (lambda event: None))


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """What a run's journal holds of some kinds."""
    return [e for e in journal.read(folder / journal.NAME) if e["kind"] in kinds]


def proposals(folder: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    return {(e["arm"], e["first"]): e["settings"] for e in events(folder, "proposed")}


def facts(folder: Path, ids: Sequence[str] | None = None) -> dict[str, Any]:
    """What the journal says of each trial, once: endings, scores by epoch and choices; no times and no repetitions."""
    found: dict[str, Any] = {"proposed": proposals(folder)}
    for e in events(
        folder, "epoch", "trial-done", "trial-failed", "trial-stopped", "chosen", "test-declared"
    ):
        told = {k: v for k, v in e.items() if k not in ("time", "seconds")}
        key = (e["kind"], e.get("id") or e.get("arm") or e.get("task"), e.get("epoch"))
        assert key not in found or e["kind"] == "epoch", f"{key} was written twice"
        found[key] = told
    return found
