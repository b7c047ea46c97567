"""One trial while it trains: its data, its place in them, its optimizer, its results.

A trial knows nothing of its mates. What it does next depends on its own specification and steps alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.noise import NoiseKey
from fleetune.cohort.optim import TrialOptimizer
from fleetune.cohort.owned import Owned
from fleetune.config import TrainingSettings
from fleetune.data.tokens import TokenTable
from fleetune.methods.base import Method
from fleetune.records import EpochResult, TrialSpec
from fleetune.seeds import stream


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a tokenised split, with labels."""

    table: TokenTable
    rows: NDArray[np.int64]
    """Which rows of the table."""
    labels: NDArray[Any]
    """The label of every row of the table: int64 classes, or float64 targets."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class TrialInput:
    """All that decides a trial, with its data."""

    spec: TrialSpec
    method: Method
    settings: TrainingSettings
    train: Rows
    selection: Rows
    """May be empty: then nothing is evaluated, and the last epoch's weights are the trial's."""
    metrics: tuple[str, ...]
    """Computed on the selection split each epoch, besides the loss."""
    best_metric: str
    higher_is_better: bool
    regression: bool = False
    stop_epoch: int | None = None
    """End after so many epochs of a schedule that is laid out for more; None: train to its end."""


def epoch_rows(given: TrialInput, epoch: int) -> NDArray[np.int64]:
    """Training rows in the order in which an epoch, counted from 0, has them."""
    rows = given.train.rows
    return rows[stream(given.spec.seed, "order", epoch).permutation(len(rows))]


def typical_tokens(given: TrialInput) -> float:
    """Tokens of a training micro-batch on the average."""
    own = given.train
    rows = min(given.settings.per_device_train_batch_size, len(own))
    return rows * float(own.table.lengths[own.rows].mean())


def eval_rows(given: TrialInput, max_tokens: int) -> int:
    """Rows of one evaluation batch: as many as set, fewer where they would pass the limit."""
    return rows_within(given.selection, given.settings.per_device_eval_batch_size, max_tokens)


def rows_within(rows: Rows, most: int, max_tokens: int) -> int:
    """How many rows a batch without gradients may have, so that not even the longest of them pass the limit; 1 or more."""
    longest = int(rows.table.lengths[rows.rows].max())
    return max(min(most, max_tokens // longest), 1)


def eval_tokens(given: TrialInput, max_tokens: int) -> int:
    """Tokens of the largest evaluation batch; 0 where there is nothing to evaluate."""
    own = given.selection
    if not len(own):
        return 0
    return int(np.sort(own.table.lengths[own.rows])[-eval_rows(given, max_tokens) :].sum())


class Trial:
    """The live state of one trial."""

    def __init__(self, given: TrialInput, owned: Owned) -> None:
        self.given = given
        self.owned = owned
        self.rows = len(given.train)
        self.optimizer = TrialOptimizer(owned, given.settings, self.rows)
        self.total_steps = given.settings.total_steps(self.rows)
        """Steps that the learning-rate schedule is laid out for."""
        per_epoch = given.settings.steps_per_epoch(self.rows)
        stop = self.total_steps if given.stop_epoch is None else given.stop_epoch * per_epoch
        self.last_step = min(self.total_steps, stop)
        self.micro_per_epoch = math.ceil(self.rows / given.settings.per_device_train_batch_size)
        self.step = 0
        self.micro_step = 0
        self.loss_sum = 0.0
        self.rows_seen = 0
        self.results: list[EpochResult] = []
        self.best: list[Tensor] = owned.snapshot()
        self.best_epoch = 0
        self.seconds = 0.0
        """Its share of the wall-clock time that its cohort has trained and evaluated (`Cohort` divides it)."""
        self._order: tuple[int, NDArray[np.int64]] | None = None
        lengths = given.train.table.lengths[given.train.rows]
        self.longest = int(lengths.max(initial=1))
        """Tokens of its longest training row."""
        self.typical = typical_tokens(given)
        """Tokens of its micro-batches on the average."""

    @property
    def id(self) -> str:
        return self.given.spec.id

    @property
    def epoch(self) -> int:
        """The running epoch, from 0."""
        return self.micro_step // self.micro_per_epoch

    @property
    def begins_epoch(self) -> bool:
        """Whether the next micro-batch is an epoch's first."""
        return self.micro_step % self.micro_per_epoch == 0

    @property
    def ended(self) -> bool:
        return self.step >= self.last_step

    @property
    def left_in_group(self) -> int:
        """Micro-batches of the running accumulation group that are still to be done."""
        within = self.micro_step % self.micro_per_epoch
        done = within % self.given.settings.gradient_accumulation_steps
        return self.group_size - done

    def batch(self, ahead: int = 0) -> NDArray[np.int64]:
        """Rows of the next micro-batch, in the epoch's own order; or of one so many after it in its accumulation group."""
        if self._order is None or self._order[0] != self.epoch:
            self._order = (self.epoch, epoch_rows(self.given, self.epoch))
        size = self.given.settings.per_device_train_batch_size
        at = (self.micro_step % self.micro_per_epoch + ahead) * size
        return self._order[1][at : at + size]

    def noise_key(self, ahead: int = 0) -> NoiseKey:
        """What decides the dropout of the next micro-batch, or of one so many after it."""
        return NoiseKey(self.given.spec.seed, self.micro_step + ahead, self.given.settings.dropout)

    @property
    def group_size(self) -> int:
        """Micro-batches in the running accumulation group: fewer at the end of an epoch."""
        size = self.given.settings.gradient_accumulation_steps
        within = self.micro_step % self.micro_per_epoch
        return min(size, self.micro_per_epoch - within // size * size)

    def advance(self, count: int = 1) -> Tensor | None:
        """Count micro-batches of one accumulation group whose gradients have been added; step at the end of the group.

        Returns the gradient's norm before clipping where a step was made, still on its device, or None. The numbers of the
        micro-batches follow in `account`, so that a whole round waits for its device once.
        """
        assert 1 <= count <= self.left_in_group, "the next step would see gradients of another"
        is_last = count == self.left_in_group
        self.micro_step += count
        if not is_last:
            return None
        self.step += 1
        return self.optimizer.step()

    def account(
        self, losses: Sequence[float], norm: float | None, rows: Sequence[int]
    ) -> str | None:
        """Take down the losses of the micro-batches just counted, and the norm where they ended a group.

        losses, rows: of each of them its mean loss and its rows. Returns why the trial must end now (a loss or gradient that is
        not finite), or None.
        """
        step = self.step + (norm is None)
        for loss, n in zip(losses, rows, strict=True):
            if not math.isfinite(loss):
                return f"the loss became {loss} at step {step}; a lower learning_rate may help"
            self.loss_sum += loss * n
            self.rows_seen += n
        if norm is not None and not math.isfinite(norm):
            return f"the gradient became {norm} at step {step}; a lower learning_rate may help"
        return None

    @property
    def mid_group(self) -> bool:
        """Whether gradients of an unfinished accumulation group are held."""
        return self.left_in_group < self.group_size

    @property
    def at_epoch_end(self) -> bool:
        """Whether the selection split is due: an epoch is over, or the training is, and it was not evaluated yet."""
        return self.rows_seen > 0 and (self.ended or self.begins_epoch)

    def finish_epoch(self, selection: dict[str, float]) -> EpochResult:
        """Record an epoch and keep its weights if it is the best so far; the earliest of equals stays."""
        result = EpochResult(
            epoch=len(self.results) + 1,
            loss=self.loss_sum / max(self.rows_seen, 1),
            selection=selection,
            step=self.step,
            seconds=self.seconds,
        )
        self.results.append(result)
        self.loss_sum, self.rows_seen = 0.0, 0
        if self.best_epoch == 0 or not selection or self._better(selection[self.given.best_metric]):
            self._keep()
            self.best_epoch = result.epoch
        return result

    def _keep(self) -> None:
        """Copy the weights to where the best are, in place: two copies at once would be one more than is planned for."""
        if not self.best:
            self.best = self.owned.snapshot()
            return
        for kept, flat in zip(self.best, self.owned.flats, strict=True):
            kept.copy_(flat.detach())

    def _better(self, score: float) -> bool:
        best = self.results[self.best_epoch - 1].selection[self.given.best_metric]
        return score > best if self.given.higher_is_better else score < best

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs, between any two rounds: tensors, and numbers as JSON."""
        moments, steps = self.optimizer.state()
        tensors = {f"adam.{name}": value for name, value in moments.items()}
        for i, (flat, best) in enumerate(zip(self.owned.flats, self.best, strict=True)):
            tensors[f"flat.{i}"], tensors[f"best.{i}"] = flat.detach(), best
            if self.mid_group:
                tensors[f"grad.{i}"] = self.owned.grads[i]
        numbers = {
            "id": self.id,
            "step": self.step,
            "schedule_step": steps,
            "micro_step": self.micro_step,
            "loss_sum": self.loss_sum,
            "rows_seen": self.rows_seen,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "results": [
                {"epoch": r.epoch, "loss": r.loss, "selection": dict(r.selection), "step": r.step, "seconds": r.seconds}
                for r in self.results
            ],
        }  # fmt: skip
        return tensors, numbers

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what `checkpoint` gave. IndexError, KeyError, TypeError or ValueError for what is no checkpoint of it."""
        self._refuse_misfits(tensors)
        self.owned.restore([tensors[f"flat.{i}"] for i in range(len(self.owned.flats))])
        self.best = [tensors[f"best.{i}"].clone() for i in range(len(self.owned.flats))]
        moments = {k.removeprefix("adam."): v for k, v in tensors.items() if k.startswith("adam.")}
        self.optimizer.restore(moments, numbers["schedule_step"])
        self.step, self.micro_step = numbers["step"], numbers["micro_step"]
        self.loss_sum, self.rows_seen = numbers["loss_sum"], numbers["rows_seen"]
        for i, grad in enumerate(self.owned.grads):
            if f"grad.{i}" in tensors:
                grad.copy_(tensors[f"grad.{i}"])
        self.best_epoch, self.seconds = numbers["best_epoch"], numbers["seconds"]
        self.results = [EpochResult(**result) for result in numbers["results"]]

    def _refuse_misfits(self, tensors: dict[str, Tensor]) -> None:
        """A copy would broadcast a smaller tensor, and nobody would see it."""
        for name, tensor in tensors.items():
            part, _, number = name.rpartition(".")
            flat = self.owned.flats[int(number)]
            wanted = (1,) if part == "adam.step" else tuple(flat.shape)
            if tensor.numel() != math.prod(wanted) or (
                part != "adam.step" and (tuple(tensor.shape), tensor.dtype) != (wanted, flat.dtype)
            ):
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, where {self.id} has {flat.dtype} {list(wanted)}"
                )

    def take_best(self) -> None:
        """Go on with the weights of the best epoch."""
        with torch.no_grad():
            self.owned.restore(self.best)


class Undo:
    """Puts the gradients of some trials back to what they were before a pass.

    Only a trial in the middle of an accumulation group has gradients to keep: all others are zero.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._kept = [
            (t, [g.clone() for g in t.owned.grads] if t.mid_group else None) for t in trials
        ]

    def restore(self) -> None:
        for trial, grads in self._kept:
            if grads is None:
                trial.owned.zero_grad()
                continue
            for mine, before in zip(trial.owned.grads, grads, strict=True):
                mine.copy_(before)
