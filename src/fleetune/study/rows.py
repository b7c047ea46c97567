"""Trials from rows and settings: which rows a trial trains on, which choose its epoch, and all that it is told.

`TaskRows` is all that training and search ever see of a task: no row of a test set. The one exception is asked for by
name: under protocol "paper" the reported set chooses the epoch, and everything that comes of it is stamped optimistic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fleetune.cohort.learning_rate import schedule_problems
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import TrainingSettings, training_settings
from fleetune.data import metrics
from fleetune.data.base import Split, Task
from fleetune.data.splits import folds, holdout
from fleetune.data.tokens import TokenTable
from fleetune.errors import DataError, SettingsError, did_you_mean
from fleetune.methods.base import Method
from fleetune.methods.table import make_method, method_class
from fleetune.records import TrialSpec
from fleetune.study.space import Arm

FOLDS = 5


@dataclass(frozen=True, eq=False)
class TaskRows:
    """A task as training and search see it."""

    task: Task
    train: Split
    table: TokenTable
    """The tokens of train."""
    source: str
    protocol: str
    prefix: str = ""
    """What the names of its trials start with, where a study has several tasks."""
    reported: Rows | None = None
    """Under protocol "paper", and only there: the rows that choose the epoch, which are the test rows."""
    _divided: dict[int, tuple[tuple[Rows, Rows], ...]] = field(
        default_factory=dict[int, Any], repr=False
    )

    @cached_property
    def fewest(self) -> int:
        """The least rows that a trial trains on, by the first seed: others' differ where several rows share a text."""
        return min(len(train) for train, _ in self.divisions(0))

    def divisions(self, seed: int) -> tuple[tuple[Rows, Rows], ...]:
        """(training rows, selection rows) by protocol: one pair, or five under "cv". DataError for too few rows.

        Trials of one seed share them: thousands of settings may be searched on the same rows.
        """
        if seed not in self._divided:
            self._divided[seed] = self._divide(seed)
        return self._divided[seed]

    def _divide(self, seed: int) -> tuple[tuple[Rows, Rows], ...]:
        everything, _ = self.whole
        if self.protocol == "paper":
            assert self.reported is not None
            pairs = [(everything, self.reported)]
        else:
            regression, labels = self.task.regression, everything.labels
            parts = (
                folds(self.train, regression, FOLDS, seed)
                if self.protocol == "cv"
                else [holdout(self.train, regression, seed)]
            )
            pairs = [(Rows(self.table, a, labels), Rows(self.table, b, labels)) for a, b in parts]
        if any(len(a) < 1 or len(b) < 1 for a, b in pairs):
            raise DataError(self.source, ["too few rows to hold any out; at least 10 are needed"])
        return tuple(pairs)

    @cached_property
    def whole(self) -> tuple[Rows, Rows]:
        """All of train, and an empty selection: for a refit with a number of epochs that has been chosen."""
        labels = self.train.labels
        assert labels is not None
        everything = np.arange(len(self.table))
        return Rows(self.table, everything, labels), Rows(self.table, everything[:0], labels)


@dataclass(frozen=True, slots=True)
class Setting:
    """One method with nothing left to defaults."""

    method: Method
    training: TrainingSettings


def settle(arm: Arm, picks: Mapping[str, Any], rows: TaskRows) -> Setting:
    """One setting of an arm on a task. SettingsError where values cannot stand together."""
    own, training = arm.values(picks)
    method = make_method(arm.method, own)
    task = rows.task
    if training.get("learning_rate") is None:
        training["learning_rate"] = method_class(arm.method).default_learning_rate
    metric = training.get("metric_for_best_model") or task.main_metric
    metric = metric.removeprefix("eval_")
    known = ("loss", *task.metrics)
    if metric not in known:
        raise SettingsError(
            "training",
            [f'metric_for_best_model: {task.name} has no "{metric}"{did_you_mean(metric, known)}'],
        )
    training["metric_for_best_model"] = metric
    if training.get("greater_is_better") is None:
        training["greater_is_better"] = metrics.higher_is_better(metric)
    checked = training_settings(training)
    if problems := schedule_problems(checked, rows.fewest):
        raise SettingsError("training", problems)
    return Setting(method, checked)


def trial_input(
    rows: TaskRows,
    setting: Setting,
    parts: tuple[Rows, Rows],
    *,
    ident: str,
    seed: int,
    phase: str,
    stop_epoch: int | None = None,
) -> TrialInput:
    """One trial of a setting."""
    training = setting.training
    assert training.metric_for_best_model is not None
    return TrialInput(
        spec=TrialSpec(
            id=f"{rows.prefix}{ident}",
            task=rows.task.name,
            method=setting.method.name,
            seed=seed,
            hyperparameters=setting.method.model_dump(mode="json"),
            training=training.model_dump(mode="json"),
            phase=phase,
        ),
        method=setting.method,
        settings=training,
        train=parts[0],
        selection=parts[1],
        metrics=rows.task.metrics,
        best_metric=training.metric_for_best_model,
        higher_is_better=bool(training.greater_is_better),
        regression=rows.task.regression,
        stop_epoch=stop_epoch,
    )


def epochs_of(given: TrialInput) -> int:
    """Evaluations of a whole training: its epochs, a last partial one included."""
    return max(math.ceil(length_of(given)), 1)


def length_of(given: TrialInput) -> float:
    """A whole training in epochs; no whole number where `max_steps` or part of an epoch ends it."""
    n, settings = len(given.train), given.settings
    whole, steps = divmod(settings.total_steps(n), settings.steps_per_epoch(n))
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return whole + min(steps * per_step / n, 1.0)
