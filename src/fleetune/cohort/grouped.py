"""The linear leaf on a GPU: the low-rank updates and biases of all trials in a few products, however many trials there are.

`linear.cohort_linear` asks for two small products and an addition a trial, which a CPU does as fast as one large product and a
GPU does not: there each call costs more than the work. Here the factors of all trials are stacked, ranks filled up with
zeros, and multiplied with their own rows by torch's `grouped_mm`; biases are looked up by row, and their gradients summed by a
grouped product with ones.

Reference, for the tests: `linear.cohort_linear`.
Notation: K trials, N rows, D input width, E output width, R the largest rank, filled up to a multiple of 8.
Not covered: trials with a copy of the weight of their own; dtypes other than `suits` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear

from fleetune.backbone.send import send
from fleetune.cohort.linear import LowRankSlot

# What the kernels ask of a row: 16 bytes, eight numbers of bfloat16.
_ALIGNED = 8


def suits(rows: Tensor, weight: Tensor) -> bool:
    """Whether rows and weights are of a device, dtype and width that the grouped products take."""
    aligned = all(width % _ALIGNED == 0 for width in weight.shape)
    return rows.is_cuda and rows.dtype == torch.bfloat16 and aligned


@dataclass(frozen=True, slots=True)
class _Layout:
    """What does not change between forward and backward."""

    ends: Tensor
    """Where each trial's rows end, [K], int32."""
    trial: Tensor
    """Whose each row is, [N]."""
    ranks: list[int]
    """Each trial's rank, 0 where it has no factors, [K]."""
    scales: Tensor
    """Of each trial's update, in float32, [K]."""
    own_bias: list[bool]
    """Which trials bring a bias, [K]."""
    mask: Tensor | None
    """Multiplier of the input of the low-rank updates, [N, D]."""

    @property
    def width(self) -> int:
        """R."""
        return -(-max(self.ranks) // _ALIGNED) * _ALIGNED

    @property
    def n_factors(self) -> int:
        """How many of the tensors are factors: A and B of each trial that has them."""
        return 2 * sum(rank > 0 for rank in self.ranks)


def grouped_linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bounds: Sequence[int],
    biases: Sequence[Tensor | None] | None,
    low_rank: Sequence[LowRankSlot | None] | None,
    mask: Tensor | None,
) -> Tensor:
    """y = x W^T, plus on each trial's rows its own or the shared bias, plus its scaled low-rank update; [N, E].

    Arguments as in `layers`; mask: the dropout of the low-rank updates' input for all rows, [N, D], None where nothing is
    dropped.
    """
    trials = range(len(bounds) - 1)
    slots = [low_rank[k] if low_rank else None for k in trials]
    own = [biases[k] if biases else None for k in trials]
    counts = np.diff(bounds)
    device = rows.device
    layout = _Layout(
        send(np.asarray(bounds[1:], dtype=np.int32), device),
        send(np.repeat(np.arange(len(counts)), counts), device),
        [0 if slot is None else slot.down.shape[0] for slot in slots],
        send(np.asarray([s.scale if s else 0.0 for s in slots], dtype=np.float32), device),
        [b is not None for b in own],
        mask,
    )
    factors = [t for slot in slots if slot is not None for t in (slot.down, slot.up)]
    given = [b for b in own if b is not None]
    return _GroupedLinear.apply(rows, weight, bias, layout, *factors, *given)  # type: ignore[no-any-return]


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layout: _Layout, *tensors: Tensor
    ) -> Tensor:
        factors, own = tensors[: layout.n_factors], tensors[layout.n_factors :]
        y = linear(x, weight, None if own else bias)
        if own:
            y += _bias_table(own, bias, layout, y).index_select(0, layout.trial)
        saved: list[Tensor] = []
        if factors:
            down, up = _stacked(factors, layout, x)
            dropped = x if layout.mask is None else x * layout.mask
            narrow = grouped_mm(dropped, down.transpose(1, 2), offs=layout.ends)
            y += grouped_mm(narrow, up, offs=layout.ends)
            saved = [dropped, narrow, down, up]
        ctx.layout, ctx.dtypes = layout, [t.dtype for t in tensors]
        ctx.save_for_backward(weight, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad = grads[0].contiguous()
        layout: _Layout = ctx.layout
        weight, *saved = ctx.saved_tensors
        to_input: Tensor | None = grad @ weight if ctx.needs_input_grad[0] else None
        out: list[Tensor] = []
        if saved:
            dropped, narrow, down, up = saved
            # `up` holds the scale, so `through` does too.
            through = grouped_mm(grad, up.transpose(1, 2), offs=layout.ends)
            to_down = grouped_mm(through.T, dropped, offs=layout.ends)
            to_up = grouped_mm(grad.T, narrow, offs=layout.ends)
            to_up = to_up * layout.scales[:, None, None]  # float32 from here on
            if to_input is not None:
                narrow_back = grouped_mm(through, down, offs=layout.ends)
                to_input += narrow_back if layout.mask is None else narrow_back * layout.mask
            for k, rank in enumerate(layout.ranks):
                if rank:
                    out += [to_down[k, :rank], to_up[k, :, :rank]]
        if any(layout.own_bias):
            # Grouped too: in one product for all, a trial that has diverged would spoil the sums of the others (0 * nan is nan).
            ones = grad.new_ones(len(grad), _ALIGNED)
            sums = grouped_mm(ones.T, grad, offs=layout.ends)
            out += [sums[k, 0] for k, own in enumerate(layout.own_bias) if own]
        cast = [g.to(dtype) for g, dtype in zip(out, ctx.dtypes, strict=True)]
        return to_input, None, None, None, *cast


def _bias_table(
    own: Sequence[Tensor], shared: Tensor | None, layout: _Layout, like: Tensor
) -> Tensor:
    """Each trial's bias, [K, E]."""
    rest = like.new_zeros(like.shape[1]) if shared is None else shared.to(like.dtype)
    given = iter(own)
    return torch.stack([next(given).to(like.dtype) if mine else rest for mine in layout.own_bias])


def _stacked(factors: Sequence[Tensor], layout: _Layout, like: Tensor) -> tuple[Tensor, Tensor]:
    """A of all trials, [K, R, D], and B times the scale, transposed, [K, R, E]; zeros where there is nothing."""
    width, count = layout.width, len(layout.ranks)
    down = like.new_zeros(count, width, factors[0].shape[1])
    up = like.new_zeros(count, width, factors[1].shape[0])
    pairs = iter(zip(factors[::2], factors[1::2], strict=True))
    for k, rank in enumerate(layout.ranks):
        if rank:
            a, b = next(pairs)
            down[k, :rank] = a
            up[k, :rank] = (b * layout.scales[k]).T
    return down, up
