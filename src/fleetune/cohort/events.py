"""What a watcher sees of a cohort, in the order in which it happens: between rounds, never within one."""

from __future__ import annotations

from dataclasses import dataclass

from fleetune.cohort.plan import Planned
from fleetune.cohort.trial import Trial
from fleetune.records import EpochResult


@dataclass(frozen=True, slots=True)
class Started:
    """A trial has taken a place in the cohort."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class Advanced:
    """Every active trial has done a micro-batch, or several of its accumulation group."""

    trials: tuple[Trial, ...]
    rows: int
    """Examples of all of them together."""
    tokens: int
    """Of these examples, whether they went through the encoder or only what is known of them did."""


@dataclass(frozen=True, slots=True)
class EpochDone:
    """A trial has been evaluated; its checkpoint can be taken now."""

    trial: Trial
    result: EpochResult


@dataclass(frozen=True, slots=True)
class TrialDone:
    """A trial has ended; it holds the weights of its best epoch."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class TrialFailed:
    """A trial had to end; the others go on."""

    trial: Trial
    reason: str


@dataclass(frozen=True, slots=True)
class TrialParked:
    """A trial has left its place after an epoch; its state stays until it is called again or dropped."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class TrialStopped:
    """A parked trial will not go on."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class PassesShrunk:
    """Memory did not suffice for a pass; it was done again in smaller ones, and they stay smaller."""

    training: int
    """Tokens that a training pass may hold from now on."""
    evaluation: int
    """Tokens that an evaluation pass may hold from now on."""


Event = (
    Started
    | Advanced
    | EpochDone
    | TrialDone
    | TrialFailed
    | TrialParked
    | TrialStopped
    | PassesShrunk
    | Planned
)
"""What a watcher sees; `Planned` comes from whoever made the cohort."""
