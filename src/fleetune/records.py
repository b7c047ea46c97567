"""Frozen records that travel between the layers: what a trial is, what an epoch gave, what a number is worth.

State is data: these hold no model, no tensor and no open file, and each can be written as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with what it is worth; a score never travels without the rest."""

    value: float
    low: float | None
    """Lower end of the 95 % interval, in the unit of the value; None where nothing varied, so that there is none."""
    high: float | None
    """Upper end of the 95 % interval."""
    n: int
    """How many examples the value was computed on."""
    seeds: int
    """How many trainings it averages."""
    how: str
    """How the interval was computed, in words."""
    optimistic: bool = False
    """True where epoch or setting was chosen on the same examples (protocol "paper")."""

    def __str__(self) -> str:
        stamp = ", optimistic" if self.optimistic else ""
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{interval} (n={self.n}, seeds={self.seeds}, {self.how}{stamp})"


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Trainable parameters, encoder and head apart, since the head often is most of them."""

    encoder: int
    head: int

    @property
    def total(self) -> int:
        return self.encoder + self.head


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch of one trial gave."""

    epoch: int
    """Counted from 1."""
    loss: float
    """Mean training loss over the epoch's examples."""
    selection: Mapping[str, float]
    """Metrics on the selection split, and its `loss`."""
    step: int
    """Optimizer steps so far."""
    seconds: float
    """The trial's share of its cohort's wall-clock time so far; the shares of a cohort's trials add up to that time."""


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One method with one setting of hyperparameters and one seed: all that decides a trial's outcome."""

    id: str
    task: str
    method: str
    seed: int
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the method, resolved: nothing left to defaults."""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the training, resolved: names of `transformers.TrainingArguments`."""
    phase: str = "train"


def as_json(record: Any) -> dict[str, Any]:
    """The record as plain dictionaries, lists, strings and numbers."""
    return dataclasses.asdict(record)
