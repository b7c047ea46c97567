"""What a GPU does with rows of activations of all trials at once: dropout, adding each trial's bias, sums by trial.

Each has a Triton kernel (kernels/rows.py) and, for any other device and for the tests, its reference by operations on tensors.
Dropout draws what it needs from Philox4x32-7 where it needs it, forward and again backward: no mask is kept. The key is the
micro-batch's, the counter the place in its rows and the site; so a trial drops the same activations alone and in company.

Notation: K trials, N rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fleetune.backbone import send
from fleetune.backbone.laid import Drawing, LaidRows
from fleetune.backbone.philox import LOW, philox


def dropped(x: Tensor, rows: LaidRows, drawing: Drawing) -> Tensor:
    """Dropout of rows [N, W], each micro-batch's at its own rate, with a gradient."""
    return _Dropped.apply(x, rows, drawing)  # type: ignore[no-any-return]


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: LaidRows, drawing: Drawing) -> Tensor:
        ctx.rows, ctx.drawing = rows, drawing
        return multiplied(x, rows, drawing)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return multiplied(grads[0], ctx.rows, ctx.drawing), None, None


def multiplied(x: Tensor, rows: LaidRows, drawing: Drawing) -> Tensor:
    """x times 0 where a number is dropped, the scale elsewhere; [N, W], no gradient."""
    if send.by_kernels(x) and x.shape[1] % 8 == 0:
        from fleetune.backbone.kernels import rows as kernels

        return kernels.dropped(x.contiguous(), rows, drawing)
    return x * multipliers(x, rows, drawing)


def multipliers(x: Tensor, rows: LaidRows, drawing: Drawing) -> Tensor:
    """The reference: what `multiplied` multiplies with, in the dtype of x."""
    width = x.shape[1]
    blocks = -(-width // 8)
    counters = rows.place.long()[:, None] * blocks + torch.arange(blocks, device=x.device)
    mine = rows.batch.long()
    kept = keeps(counters, mine[:, None], drawing).flatten(1)[:, :width]
    # Rounded once, as the product is.
    return kept * drawing.levels.scales[mine][:, None].to(x.dtype)


def keeps(counters: Tensor, batches: Tensor, drawing: Drawing) -> Tensor:
    """Which numbers are kept: those of eight columns a counter, in a last axis; counters and batches broadcast."""
    site = [torch.tensor(word, device=counters.device) for word in drawing.site]
    words = philox((counters & LOW, (counters >> 32) & LOW, *site), drawing.keys[batches])  # type: ignore[arg-type]
    limits = drawing.levels.thresholds[batches].long()
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack([half >= limits for half in halves], dim=-1)


def by_row(table: Tensor, rows: LaidRows) -> Tensor:
    """Each row's trial's row of a table [K, W], or the one row for all, [N, W] or [1, W]."""
    return table if len(table) == 1 else table.index_select(0, rows.trial.long())


def add_bias(y: Tensor, table: Tensor, rows: LaidRows) -> None:
    """Add to each row of y [N, W] its trial's row of a table [K, W], in place, rounding once."""
    if send.by_kernels(y):
        from fleetune.backbone.kernels import rows as kernels

        return kernels.add_bias(y, table, rows)
    y += by_row(table, rows)


def add_sums(values: Tensor, rows: LaidRows, into: Tensor, owners: Tensor) -> None:
    """Add to a table [K, W], float32 or wider, the sum of each owner's rows of values [N, W]; always in one order.

    owners: trials by number, ascending, [O], int32. The other rows of the table stay as they are.
    """
    if send.by_kernels(values):
        from fleetune.backbone.kernels import rows as kernels

        return kernels.add_sums(values, rows, into, owners)
    for trial, low, high in stretches(rows, owners):
        into[trial] += values[low:high].to(into.dtype).sum(0)


def stretches(rows: LaidRows, owners: Tensor) -> Iterator[tuple[int, int, int]]:
    """Each owner with where its rows start and end, for references."""
    ends = [0, *rows.ends.tolist()]
    for trial in owners.tolist():
        yield trial, ends[trial], ends[trial + 1]
