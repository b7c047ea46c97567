"""Losses of many trials at once, and what a selection split says of one.

Notation: M micro-batches of a pass, whole ones or parts, each of one trial; B sequences of all of them end to end, C classes.
Source: the losses of transformers' classification models (cross-entropy with label smoothing, mean squared error).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fleetune.cohort.trial import TrialInput
from fleetune.data import metrics


@dataclass(frozen=True, slots=True)
class Targets:
    """What a pass is held against."""

    labels: NDArray[Any]
    """Of every sequence, [B]."""
    counts: tuple[int, ...]
    """Sequences of each micro-batch in this pass, [M]."""
    totals: tuple[int, ...]
    """Those of the whole one that it is, or is a part of, [M]."""
    group_sizes: tuple[int, ...]
    """Micro-batches in its accumulation group, [M]."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """labels; weights: what each sequence's loss weighs in its trial's gradient, 1 / (totals * group sizes), [B]; counts,
        totals, [M]."""
        each = 1.0 / (np.asarray(self.totals) * np.asarray(self.group_sizes))
        return {
            "labels": self.labels,
            "weights": np.repeat(each, self.counts),
            "counts": np.asarray(self.counts, dtype=np.int64),
            "totals": np.asarray(self.totals, dtype=np.int64),
        }


def sequence_losses(
    logits: Tensor, labels: Tensor, counts: Sequence[int], given: Sequence[TrialInput]
) -> Tensor:
    """The loss of every sequence, [B]; logits [B, C], labels [B], `counts[m]` of them micro-batch m's.

    given: the trial of each micro-batch, [M]. Those with equal settings are computed together: what a sequence gets depends on
    its own logits alone.
    """
    kinds: dict[tuple[bool, float], list[int]] = {}
    for k, one in enumerate(given):
        kinds.setdefault((one.regression, one.settings.label_smoothing_factor), []).append(k)
    if len(kinds) == 1:
        (kind,) = kinds
        return _each(logits, labels, *kind)
    parts, answers = logits.split(list(counts)), labels.split(list(counts))
    found: list[Tensor] = []
    order: list[int] = []
    for kind, members in kinds.items():
        own, right = (torch.cat([of[k] for k in members]) for of in (parts, answers))
        found.append(_each(own, right, *kind))
        order += members
    laid = torch.cat(found).split([counts[k] for k in order])
    return torch.cat([laid[order.index(k)] for k in range(len(given))])


def sums(losses: Tensor, counts: Tensor) -> Tensor:
    """The sum of each micro-batch's losses, [M], of the losses [B] of all sequences; counts: sequences of each, [M]."""
    # "unsafe": nobody looks whether the lengths fit, for which a GPU would have to wait.
    return torch.segment_reduce(losses.detach(), "sum", lengths=counts, unsafe=True)


def selection_metrics(logits: NDArray[Any], given: TrialInput) -> dict[str, float]:
    """Metrics and loss on the selection split; logits [n, C] in the order of its rows."""
    labels = given.selection.labels[given.selection.rows]
    found = metrics.compute(given.metrics, logits, labels)
    answers = torch.from_numpy(np.ascontiguousarray(labels))
    losses = sequence_losses(torch.from_numpy(logits).double(), answers, [len(labels)], [given])
    return {**found, "loss": float(losses.mean())}


def _each(logits: Tensor, labels: Tensor, regression: bool, smoothing: float) -> Tensor:
    if regression:
        return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
