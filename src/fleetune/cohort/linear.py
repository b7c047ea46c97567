"""The product of a linear leaf for all trials of a pass, from trial to trial: what a CPU does best (grouped.py: on a GPU).

Notation: K trials, N rows, D input width, E output width, R rank of a trial.
Source: Hu et al. 2021 (arXiv:2106.09685), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LowRankSlot:
    """One trial's low-rank factors at one linear leaf, in float32 (or the dtype of the parameters)."""

    down: Tensor
    """A, [R, D]."""
    up: Tensor
    """B, [E, R]."""
    scale: float
    dropout: float


@dataclass(frozen=True, slots=True)
class _Plan:
    """What does not change between the forward and the backward of one cohort-linear call."""

    bounds: list[int]
    biases: list[int | None]
    """Place of each trial's own bias among the tensors; None: it uses the shared one."""
    factors: list[int | None]
    """Place of each trial's A among the tensors, B right after it."""
    scales: list[float]
    masks: list[Tensor | None]


def cohort_linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bounds: list[int],
    biases: list[Tensor | None] | None,
    low_rank: list[LowRankSlot | None] | None,
    masks: list[Tensor | None],
) -> Tensor:
    """y = x W^T, plus on each trial's rows its own or the shared bias, plus its scaled low-rank update; [N, E].

    rows: [N, D]. bounds: where each trial's rows start, and N. biases, low_rank: what each trial owns, None where nobody
    owns any. masks: the multiplier of each trial's input to its low-rank factors.
    """
    tensors: list[Tensor] = []

    def place(*new: Tensor) -> int:
        tensors.extend(new)
        return len(tensors) - len(new)

    trials = range(len(bounds) - 1)
    own = [biases[k] if biases else None for k in trials]
    slots = [low_rank[k] if low_rank else None for k in trials]
    plan = _Plan(
        bounds,
        [None if b is None else place(b) for b in own],
        [None if s is None else place(s.down, s.up) for s in slots],
        [1.0 if s is None else s.scale for s in slots],
        masks,
    )
    return _CohortLinear.apply(rows, weight, bias, plan, *tensors)  # type: ignore[no-any-return]


class _CohortLinear(torch.autograd.Function):
    """y = x W^T, plus on each trial's rows its own or the shared bias, plus its scaled low-rank update.

    Nothing is saved for the frozen weight; of the input only views, and only for trials with low-rank factors.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan, *tensors: Tensor
    ) -> Tensor:
        bounds = plan.bounds
        shared = bias if all(place is None for place in plan.biases) else None
        y = functional.linear(x, weight, shared)
        inputs: list[Tensor] = []
        narrow: list[Tensor] = []
        for k in range(len(bounds) - 1):
            part = y[bounds[k] : bounds[k + 1]]
            if shared is None:
                mine = plan.biases[k]
                own = bias if mine is None else tensors[mine]
                if own is not None:
                    part.add_(own.to(y.dtype))
            at = plan.factors[k]
            if at is None:
                continue
            down, up = tensors[at].to(x.dtype), tensors[at + 1].to(x.dtype)
            mask = plan.masks[k]
            xk = x[bounds[k] : bounds[k + 1]]
            dropped = xk if mask is None else xk * mask
            u = dropped @ down.T
            part.addmm_(u, up.T, alpha=plan.scales[k])
            inputs.append(dropped)
            narrow.append(u)
        ctx.plan = plan
        ctx.save_for_backward(weight, *inputs, *narrow, *tensors)
        ctx.n_low_rank = len(inputs)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        plan: _Plan = ctx.plan
        n = ctx.n_low_rank
        weight, *saved = ctx.saved_tensors
        inputs, narrow, tensors = saved[:n], saved[n : 2 * n], saved[2 * n :]
        out: list[Tensor | None] = [None] * len(tensors)
        to_input: Tensor | None = grad @ weight if ctx.needs_input_grad[0] else None
        seen = 0
        for k in range(len(plan.bounds) - 1):
            low, high = plan.bounds[k], plan.bounds[k + 1]
            part = grad[low:high]
            if (mine := plan.biases[k]) is not None:
                out[mine] = part.sum(0, dtype=tensors[mine].dtype)
            if (at := plan.factors[k]) is None:
                continue
            down, up, scale = tensors[at], tensors[at + 1], plan.scales[k]
            through = (part @ up.to(part.dtype)).mul_(scale)
            out[at] = (through.T @ inputs[seen]).to(down.dtype)
            out[at + 1] = (part.T @ narrow[seen]).to(up.dtype).mul_(scale)
            if to_input is not None:
                mine, mask, narrow_down = to_input[low:high], plan.masks[k], down.to(part.dtype)
                if mask is None:
                    mine.addmm_(through, narrow_down)
                else:
                    mine.addcmul_(through @ narrow_down, mask)
            seen += 1
        return to_input, None, None, None, *out
