"""Cohorts on tiny models for tests: trials of any kind, and all that a training gave, by trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fleetune.cohort.engine import Engine
from fleetune.cohort.events import EpochDone, Event, TrialDone, TrialFailed, TrialStopped
from fleetune.cohort.schedule import Schedule
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import training_settings
from fleetune.methods.table import make_method
from fleetune.records import EpochResult, TrialSpec
from tests.tiny import tiny_model, tiny_table

N, N_SELECTION = 16, 6
TRAIN, SELECTION = tiny_table(N, seed=1, longest=14), tiny_table(N_SELECTION, seed=2, longest=14)
LABELS = np.random.default_rng(0).integers(0, 3, N)
SELECTION_LABELS = np.random.default_rng(1).integers(0, 3, N_SELECTION)
# Warm-up of one step: the first step changes nothing, the second throws the weights beyond all numbers.
HOPELESS: dict[str, Any] = {"learning_rate": 1e250, "warmup_steps": 1, "max_grad_norm": 0}


def trial(
    name: str = "lora",
    method: dict[str, Any] | None = None,
    *,
    ident: str = "",
    seed: int = 0,
    rows: int = N,
    selection: int = N_SELECTION,
    **training: Any,
) -> TrialInput:
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "dropout": 0.0, **training}
    return TrialInput(
        spec=TrialSpec(id=ident or f"{name}-{seed}", task="tiny", method=name, seed=seed),
        method=make_method(name, method or {}),
        settings=training_settings(settings),
        train=Rows(TRAIN, np.arange(rows), LABELS),
        selection=Rows(SELECTION, np.arange(selection), SELECTION_LABELS),
        metrics=("accuracy",),
        best_metric="loss",
        higher_is_better=False,
    )


def head_of(model: Any) -> frozenset[str]:
    """The parameters that a checkpoint of the base model lacks."""
    base = f"{model.base_model_prefix}."
    return frozenset(n for n, _ in model.named_parameters() if not n.startswith(base))


@cache
def engine_of(family: str, dtype: torch.dtype = torch.float64) -> Engine:
    """An opened tiny backbone; trials leave no trace in it, so that many cohorts may use one."""
    model = tiny_model(family)
    if dtype == torch.float64:
        model.double()
    return Engine(model, head_of(model), dtype=dtype)


@dataclass
class Ending:
    """What one trial's training gave."""

    epochs: list[dict[str, Tensor]] = field(default_factory=list)
    """The weights at each epoch's end, as trained."""
    results: list[EpochResult] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    how: str = ""
    """done, stopped, or why it failed."""


Watch = Callable[[Cohort, Event], None]


def train(
    engine: Engine,
    schedule: Schedule | Sequence[TrialInput],
    *,
    size: int = 32,
    max_tokens: int = 10**6,
    watch: Watch | None = None,
) -> dict[str, Ending]:
    """Train all to their ends. watch: sees each event, and may change the cohort between rounds."""
    cohort = Cohort(engine, schedule, size=size, max_tokens=max_tokens)
    found: dict[str, Ending] = {}
    for event in cohort.run():
        if isinstance(event, EpochDone):
            mine = found.setdefault(event.trial.id, Ending())
            mine.epochs.append(event.trial.owned.state())
            mine.results.append(event.result)
        elif isinstance(event, TrialDone):
            mine = found[event.trial.id]
            mine.how, mine.best_epoch = "done", event.trial.best_epoch
            mine.best = event.trial.owned.state()
        elif isinstance(event, TrialFailed | TrialStopped):
            mine = found.setdefault(event.trial.id, Ending())
            mine.how = event.reason if isinstance(event, TrialFailed) else "stopped"
        if watch is not None:
            watch(cohort, event)
    return found


def assert_bit_equal(found: Ending, expected: Ending) -> None:
    """The same weights in every epoch, the same losses and metrics, the same best epoch and end."""
    assert (found.how, found.best_epoch) == (expected.how, expected.best_epoch)
    for mine, other in zip(
        [*found.epochs, found.best], [*expected.epochs, expected.best], strict=True
    ):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            assert torch.equal(mine[name], value), name
    told = [
        [(r.epoch, r.step, r.loss, dict(r.selection)) for r in e.results] for e in (found, expected)
    ]
    assert told[0] == told[1]
