"""The training loop: many trials, one pass.

Each round every active trial brings its next micro-batch; rounds are cut into passes that hold a bounded number of
tokens; each pass is one forward and one backward through the frozen backbone; then every trial steps by itself.
A trial that ends leaves, and the schedule names the one that takes its place. K = 1 is the ordinary case and no other
path.

`Cohort.run` is a generator of events: whoever reads them writes journals, draws progress, saves, or stops reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fleetune.backbone.noise import Noise
from fleetune.cohort.engine import Engine
from fleetune.cohort.schedule import FixedList, Schedule
from fleetune.cohort.trial import Trial, TrialInput
from fleetune.data import metrics
from fleetune.data.packing import pack
from fleetune.records import EpochResult


@dataclass(frozen=True, slots=True)
class Started:
    """A trial has taken a place in the cohort."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class Advanced:
    """Every active trial has done a micro-batch."""

    trials: tuple[Trial, ...]
    rows: int
    """Examples of all of them together."""
    tokens: int


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


Event = Started | Advanced | EpochDone | TrialDone | TrialFailed | TrialParked | TrialStopped
State = tuple[dict[str, Tensor], dict[str, Any]]
"""What `Trial.checkpoint` gives."""


class Cohort:
    """Trials that train together.

    schedule: who trains next, or simply the trials. size: how many train at once. max_tokens: how many tokens one pass
    may hold; a single trial's micro-batch may be more.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule | Sequence[TrialInput],
        *,
        size: int,
        max_tokens: int,
    ) -> None:
        self.engine = engine
        self.schedule = FixedList(schedule) if isinstance(schedule, Sequence) else schedule
        self.size = size
        self.max_tokens = max_tokens
        self.active: list[Trial] = []
        self.parked: dict[str, Trial] = {}
        self.checkpoints: dict[str, State] = {}
        """Where trials go on from, by id; a trial without one starts from its beginning."""

    def place(self, given: TrialInput, state: State, *, parked: bool = False) -> Trial:
        """Put a trial that the schedule has named before a cut where it was then."""
        trial = Trial(given, self.engine.start(given))
        trial.restore(*state)
        if parked:
            trial.pause()
            self.parked[trial.id] = trial
        else:
            self.active.append(trial)
        return trial

    def run(self) -> Iterator[Event]:
        """Train all trials to their ends."""
        while True:
            # A checkpoint may lie between the last step of an epoch and its evaluation.
            yield from self._evaluate()
            yield from self._admit()
            if not self.active:
                assert not self.parked, "a schedule must call or drop whom it parked"
                return
            if not any(trial.at_epoch_end for trial in self.active):
                yield from self._round()

    def _admit(self) -> Iterator[Event]:
        while len(self.active) < self.size and (given := self.schedule.next()) is not None:
            trial = self.parked.pop(given.spec.id, None)
            if trial is None:
                trial = Trial(given, self.engine.start(given))
                if given.spec.id in self.checkpoints:
                    trial.restore(*self.checkpoints.pop(given.spec.id))
            else:
                trial.go_on()
            self.active.append(trial)
            yield Started(trial)
            if trial.ended and not trial.at_epoch_end:  # a checkpoint taken after the last epoch
                yield from self._leave(trial)

    def _round(self) -> Iterator[Event]:
        batches = [(trial, trial.batch()) for trial in self.active]
        rows = tokens = 0
        for group in _passes(batches, self.max_tokens):
            losses = self._pass(group)
            for (trial, batch), loss in zip(group, losses, strict=True):
                rows += len(batch)
                tokens += _tokens(trial, batch)
                reason = trial.after_backward(loss, len(batch))
                if reason is not None:
                    yield from self._fail(trial, reason)
        yield from self._drop()
        yield Advanced(tuple(self.active), rows, tokens)

    def _pass(self, group: Sequence[tuple[Trial, NDArray[np.int64]]]) -> list[float]:
        packed = pack([(trial.given.train.table, batch) for trial, batch in group])
        noise = Noise([trial.noise_key for trial, _ in group])
        trials = [trial for trial, _ in group]
        logits = self.engine.logits([t.owned for t in trials], packed, noise)
        bounds = packed.trials.tolist()
        losses: list[Tensor] = []
        for k, (trial, batch) in enumerate(group):
            labels = torch.from_numpy(trial.given.train.labels[batch]).to(logits.device)
            losses.append(loss_of(logits[bounds[k] : bounds[k + 1]], labels, trial.given))
        # Each trial's loss reaches its own parameters only, so one sum gives every trial its own gradient.
        torch.stack(
            [loss / trial.group_size for loss, trial in zip(losses, trials, strict=True)]
        ).sum().backward()
        return torch.stack(losses).detach().tolist()

    def _evaluate(self) -> Iterator[Event]:
        due = [trial for trial in self.active if trial.at_epoch_end]
        if not due:
            return
        judged = [trial for trial in due if len(trial.given.selection)]
        logits = self.engine.predict(
            [t.owned for t in judged],
            [t.given.selection for t in judged],
            [t.given.settings.per_device_eval_batch_size for t in judged],
        )
        found = {trial.id: own for trial, own in zip(judged, logits, strict=True)}
        for trial in due:
            own = found.get(trial.id)
            if own is not None and not np.isfinite(own).all():
                yield from self._fail(trial, f"its predictions are not finite at step {trial.step}")
                continue
            result = trial.finish_epoch({} if own is None else selection_metrics(own, trial.given))
            yield EpochDone(trial, result)
            if trial.ended:
                yield from self._leave(trial)
            elif self.schedule.parks(trial.id, result):
                self._park(trial)
                yield TrialParked(trial)
        yield from self._drop()

    def _park(self, trial: Trial) -> None:
        self.active.remove(trial)
        trial.pause()
        self.parked[trial.id] = trial

    def _drop(self) -> Iterator[Event]:
        for ident in self.schedule.dropped():
            yield TrialStopped(self.parked.pop(ident))

    def _fail(self, trial: Trial, reason: str) -> Iterator[Event]:
        self.active.remove(trial)
        self.schedule.left(trial.id, failed=True)
        yield TrialFailed(trial, reason)

    def _leave(self, trial: Trial) -> Iterator[Event]:
        self.active.remove(trial)
        trial.best_state()
        self.schedule.left(trial.id, failed=False)
        yield TrialDone(trial)


def loss_of(logits: Tensor, labels: Tensor, given: TrialInput) -> Tensor:
    """The mean loss of one trial's sequences, as transformers' classification models compute it."""
    if given.regression:
        return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return functional.cross_entropy(
        logits, labels, label_smoothing=given.settings.label_smoothing_factor
    )


def selection_metrics(logits: NDArray[Any], given: TrialInput) -> dict[str, float]:
    """Metrics and loss on the selection split; logits [n, C] in the order of its rows."""
    labels = given.selection.labels[given.selection.rows]
    found = metrics.compute(given.metrics, logits, labels)
    loss = loss_of(torch.from_numpy(logits).double(), torch.from_numpy(labels), given)
    return {**found, "loss": float(loss)}


def _tokens(trial: Trial, batch: NDArray[np.int64]) -> int:
    return int(trial.given.train.table.lengths[batch].sum())


def _passes(
    batches: Sequence[tuple[Trial, NDArray[np.int64]]], max_tokens: int
) -> Iterator[list[tuple[Trial, NDArray[np.int64]]]]:
    """Neighbouring trials' micro-batches in groups of at most so many tokens; a trial is never split."""
    group: list[tuple[Trial, NDArray[np.int64]]] = []
    held = 0
    for trial, batch in batches:
        tokens = _tokens(trial, batch)
        if group and held + tokens > max_tokens:
            yield group
            group, held = [], 0
        group.append((trial, batch))
        held += tokens
    if group:
        yield group
