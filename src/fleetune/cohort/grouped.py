"""The leaves on a GPU: what all trials own acts in a few operations, however many trials there are.

`linear.cohort_linear` asks for two small products and an addition a trial, which a CPU does as fast as one large product and a
GPU does not: there each call costs more than the work. Here the factors of all trials stand stacked (tables.py) and are
multiplied with their own rows by torch's `grouped_mm`; biases are added by row, and their gradients summed by trial.
Gradients of what trials own go straight into the tables and not through autograd.

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
from fleetune.backbone.rows import add_bias, multiplied, sums
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
        saved: list[Tensor] = []
        if owned.down and owned.up and _by_kernels(x, owned.down):
            from fleetune.backbone.kernels import low_rank

            own = owned.bias[0] if owned.bias else None
            saved = [x, low_rank.add_update(y, x, own, owned.down[0], owned.up[0], rows, plan.drawing)]  # fmt: skip
            ctx.plan = plan
            ctx.save_for_backward(weight, *saved)
            return y
        if owned.bias:
            add_bias(y, owned.bias[0], rows)
        if owned.down and owned.up:
            down, up = owned.down[0], owned.up[0]
            used = x if plan.drawing is None else multiplied(x, rows, plan.drawing)
            narrow = grouped_mm(used, down.transpose(1, 2), offs=rows.ends)
            y += grouped_mm(narrow, up, offs=rows.ends)
            # The dropped input is worked out again in backward: it is as large as the input itself.
            saved = [x, narrow]
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
        if owned.down and _by_kernels(grad, owned.down):
            _low_rank_backward(grad, to_input, saved[0], saved[1], plan)
            return to_input, None, None, None, None
        if owned.down and owned.up:
            x, narrow = saved
            used = x if plan.drawing is None else multiplied(x, rows, plan.drawing)
            # `up` holds the scale, so `through` does too; what goes to B gets it with its way back (tables.py).
            through = grouped_mm(grad, owned.up[0].transpose(1, 2), offs=rows.ends)
            owned.down[1].add_(grouped_mm(through.T, used, offs=rows.ends))
            owned.up[1].add_(grouped_mm(narrow.T, grad, offs=rows.ends))
            if to_input is not None:
                back = grouped_mm(through, owned.down[0], offs=rows.ends)
                to_input += back if plan.drawing is None else multiplied(back, rows, plan.drawing)
        if owned.bias:
            owned.bias[1].add_(sums(grad, rows))
        return to_input, None, None, None, None


def _by_kernels(x: Tensor, down: tuple[Tensor, Tensor]) -> bool:
    return send.by_kernels(x) and down[0].shape[1] <= _LARGEST


def _low_rank_backward(
    grad: Tensor, to_input: Tensor | None, x: Tensor, narrow: Tensor, plan: _Plan
) -> None:
    """The backward of a leaf with low-rank factors on a GPU; adds to the gradient of the input."""
    from fleetune.backbone.kernels import low_rank

    owned, rows, drawing = plan.owned, plan.rows, plan.drawing
    assert owned.down
    assert owned.up
    through = low_rank.add_update_backward(
        grad, to_input, owned.down[0], owned.up[0], rows, drawing
    )
    owned.down[1].add_(low_rank.products(through, x, rows, drawing)[0])
    to_up, summed = low_rank.products(narrow, grad, rows, sums=owned.bias is not None)
    owned.up[1].add_(to_up)
    if owned.bias and summed is not None:
        owned.bias[1].add_(summed)


def grouped_bias(x: Tensor, owned: Stacked, rows: LaidRows, asks: Tensor) -> Tensor:
    """Add to each row of x [N, E], in place, its trial's bias."""
    return _GroupedBias.apply(x, owned, rows, asks)  # type: ignore[no-any-return]


class _GroupedBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, owned: Stacked, rows: LaidRows, _asks: Tensor) -> Tensor:
        assert owned.bias is not None
        ctx.owned, ctx.rows = owned, rows
        ctx.mark_dirty(x)
        add_bias(x, owned.bias[0], rows)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        ctx.owned.bias[1].add_(sums(grad, ctx.rows))
        return grad, None, None, None
