"""The leaves on a GPU: what all trials own acts in a few operations, however many trials there are.

`linear.cohort_linear` asks for two small products and an addition a trial, which a CPU does as fast as one large product and a
GPU does not: there each call costs more than the work. Here the factors of all trials stand stacked (tables.py); kernels multiply
them with their own rows (backbone/kernels/low_rank.py), biases are added by row, and their gradients summed by trial.
Gradients of what trials own go straight into the tables and not through autograd. On any other device, and where a rank is too
large for the kernels, torch's `grouped_mm` multiplies. A BERT's layers take only the updates from here (bert_layer.py).

References, for the tests: `linear.cohort_linear`, and the leaves that go from trial to trial.
Notation: K trials, N rows, D input width, E output width, R the largest rank, filled up to a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear

from fleetune.backbone import send
from fleetune.backbone.laid import Drawing, LaidRows
from fleetune.backbone.rows import add_bias, multiplied
from fleetune.cohort.tables import Stacked

# A kernel holds the factors of one trial beside the rows that it works on; of a larger rank they are too large for that.
_LARGEST = 128


@dataclass(frozen=True, slots=True)
class _Plan:
    """What does not change between forward and backward."""

    owned: Stacked
    rows: LaidRows
    drawing: Drawing | None


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    owned: Stacked,
    rows: LaidRows,
    drawing: Drawing | None,
    asks: Tensor,
) -> Tensor:
    """y = x W^T, plus on each trial's rows its own or the shared bias, plus its scaled low-rank update; [N, E].

    x: [N, D]. drawing: the dropout of the low-rank updates' input. asks: a scalar that requires grad, since trials' tensors
    are none of the arguments.
    """
    plan = _Plan(owned, rows, drawing)
    return _GroupedLinear.apply(x, weight, bias, asks, plan)  # type: ignore[no-any-return]


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, _asks: Tensor, plan: _Plan
    ) -> Tensor:
        owned, rows = plan.owned, plan.rows
        y = linear(x, weight, None if owned.bias else bias)
        if owned.bias:
            add_bias(y, owned.bias.values, rows)
        saved = [x, add_update(y, x, owned, rows, plan.drawing)] if owned.down else []
        ctx.plan = plan
        ctx.save_for_backward(weight, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad = grads[0].contiguous()
        plan: _Plan = ctx.plan
        owned, rows = plan.owned, plan.rows
        weight, *saved = ctx.saved_tensors
        to_input: Tensor | None = grad @ weight if ctx.needs_input_grad[0] else None
        if owned.down:
            add_update_backward(grad, to_input, saved[0], saved[1], owned, rows, plan.drawing)
        if owned.bias:
            owned.bias.add_sums(grad, rows)
        return to_input, None, None, None, None


def add_update(
    y: Tensor, x: Tensor, owned: Stacked, rows: LaidRows, drawing: Drawing | None
) -> Tensor:
    """Add each trial's low-rank update of x [N, D] to its rows of y [N, E], in place.

    Returns the narrow rows dropout(x) A^T, [N, R], which `add_update_backward` wants.
    """
    assert owned.down
    assert owned.up
    down, up = owned.down.values, owned.up.values
    if _by_kernels(x, down):
        from fleetune.backbone.kernels import low_rank

        narrow = low_rank.narrow(x, down, owned.down.owners.owns, rows, drawing)
        low_rank.add_wide(y, narrow, up, owned.up.owners.owns, rows)
        return narrow
    used = x if drawing is None else multiplied(x, rows, drawing)
    narrow = grouped_mm(used, down.transpose(1, 2), offs=rows.ends)
    y += grouped_mm(narrow, up, offs=rows.ends)
    return narrow


def add_update_backward(
    grad: Tensor, to_input: Tensor | None, x: Tensor, narrow: Tensor, owned: Stacked, rows: LaidRows,
    drawing: Drawing | None,
) -> None:  # fmt: skip
    """Gradients of the factors, added to their tables, and that of x, added to `to_input` in place; grad: [N, E], of y.

    The dropped input is worked out again: it is as large as the input itself.
    """
    assert owned.down
    assert owned.up
    down, up = owned.down, owned.up
    # `up` holds the scale, so `through` does too; what goes to B gets it with its way back (tables.py).
    if _by_kernels(x, down.values):
        from fleetune.backbone.kernels import low_rank

        through = low_rank.narrow(grad, up.values, up.owners.owns, rows, None)
        wide = None if to_input is None else (to_input, down.values)
        low_rank.add_products(through, x, rows, down.into, down.owners.numbers, drawing, wide)
        low_rank.add_products(narrow, grad, rows, up.into, up.owners.numbers)
        return
    grad = grad.contiguous()
    used = x if drawing is None else multiplied(x, rows, drawing)
    through = grouped_mm(grad, up.values.transpose(1, 2), offs=rows.ends)
    down.into.add_(grouped_mm(through.T, used, offs=rows.ends))
    up.into.add_(grouped_mm(narrow.T, grad, offs=rows.ends))
    if to_input is not None:
        back = grouped_mm(through, down.values, offs=rows.ends)
        to_input += back if drawing is None else multiplied(back, rows, drawing)


def _by_kernels(x: Tensor, factor: Tensor) -> bool:
    return send.by_kernels(x) and factor.shape[1] <= _LARGEST


def grouped_bias(x: Tensor, owned: Stacked, rows: LaidRows, asks: Tensor) -> Tensor:
    """Add to each row of x [N, E], in place, its trial's bias."""
    return _GroupedBias.apply(x, owned, rows, asks)  # type: ignore[no-any-return]


class _GroupedBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, owned: Stacked, rows: LaidRows, _asks: Tensor) -> Tensor:
        assert owned.bias is not None
        ctx.owned, ctx.rows = owned, rows
        ctx.mark_dirty(x)
        add_bias(x, owned.bias.values, rows)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        ctx.owned.bias.add_sums(grad.contiguous(), ctx.rows)
        return grad, None, None, None
