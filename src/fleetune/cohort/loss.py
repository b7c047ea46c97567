"""Losses of many trials at once, and what a selection split says of one.

Notation: K trials, B sequences of all of them end to end, C classes.
Source: the losses of transformers' classification models (cross-entropy with label smoothing, mean squared error).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fleetune.backbone.send import send
from fleetune.cohort.trial import TrialInput
from fleetune.data import metrics


def sequence_losses(
    logits: Tensor, labels: Sequence[NDArray[Any]], given: Sequence[TrialInput]
) -> Tensor:
    """The loss of every sequence, [B]; logits [B, C], `labels[k]` those of trial k's sequences.

    Trials with equal settings are computed together: what a sequence gets depends on its own logits alone.
    """
    counts = [len(own) for own in labels]
    kinds: dict[tuple[bool, float], list[int]] = {}
    for k, one in enumerate(given):
        kinds.setdefault((one.regression, one.settings.label_smoothing_factor), []).append(k)
    if len(kinds) == 1:
        (kind,) = kinds
        return _each(logits, _laid(labels, logits.device), *kind)
    parts = logits.split(counts)
    found: list[Tensor] = []
    order: list[int] = []
    for kind, members in kinds.items():
        mine = _laid([labels[k] for k in members], logits.device)
        found.append(_each(torch.cat([parts[k] for k in members]), mine, *kind))
        order += members
    laid = torch.cat(found).split([counts[k] for k in order])
    return torch.cat([laid[order.index(k)] for k in range(len(given))])


def shares(
    counts: Sequence[int], totals: Sequence[int], group_sizes: Sequence[int], like: Tensor
) -> Tensor:
    """What each sequence's loss weighs in its trial's gradient, [B]: 1 / (sequences of its micro-batch * micro-batches)."""
    each = [1.0 / (n * size) for n, size in zip(totals, group_sizes, strict=True)]
    return send(np.repeat(each, counts), like.device).to(like.dtype)


def sums(losses: Tensor, counts: Sequence[int]) -> Tensor:
    """The sum of each trial's losses, [K], of the losses [B] of all sequences."""
    lengths = send(torch.tensor(counts), losses.device)
    # "unsafe": nobody looks whether the lengths fit, for which a GPU would have to wait.
    return torch.segment_reduce(losses.detach(), "sum", lengths=lengths, unsafe=True)


def selection_metrics(logits: NDArray[Any], given: TrialInput) -> dict[str, float]:
    """Metrics and loss on the selection split; logits [n, C] in the order of its rows."""
    labels = given.selection.labels[given.selection.rows]
    found = metrics.compute(given.metrics, logits, labels)
    losses = sequence_losses(torch.from_numpy(logits).double(), [labels], [given])
    return {**found, "loss": float(losses.mean())}


def _laid(labels: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    return send(np.concatenate(labels), device)


def _each(logits: Tensor, labels: Tensor, regression: bool, smoothing: float) -> Tensor:
    if regression:
        return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
