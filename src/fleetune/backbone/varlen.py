"""Attention over sequences of any length that lie end to end, with dropout and a gradient, for a GPU.

Triton kernels (kernels/attention.py) go through each sequence and head in blocks, keep the scores on the chip and only the
logarithm of each softmax's sum in memory; the gradient works the probabilities out once more. torch's own kernel for this
(`torch.nn.attention.varlen`) takes no dropout whose bits a trial could draw again in other company, and its gradient adds in an
order that changes from run to run. Here every sum has one order, and dropout draws as rows.py does: number j of row i of a
head is column j of row (head * rows + i) behind what the micro-batch's earlier sequences took.

Source: Dao 2023, "FlashAttention-2" (arXiv:2307.08691). Reference, for the tests: `reference` below, a plain loop.
Notation: T rows of tokens, H heads, d width of a head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fleetune.backbone import send
from fleetune.backbone.laid import Asked
from fleetune.backbone.rows import by_row, keeps


def attend(query: Tensor, key: Tensor, value: Tensor, asked: Asked) -> Tensor:
    """softmax(scale Q K^T), dropped out, times V, within each sequence; all [T, H, d]. Rows of no sequence are zero."""
    if not send.by_kernels(query):
        return reference(query, key, value, asked)
    return _Attention.apply(query, key, value, asked)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, asked: Asked) -> Tensor:
        q, k, v = (_rows(x) for x in (query, key, value))
        out, sums = forward(q, k, v, asked)
        ctx.asked = asked
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, sums = ctx.saved_tensors
        new = torch.zeros_like if ctx.asked.first_only else torch.empty_like
        found = (new(q), torch.empty_like(k), torch.empty_like(v))
        backward(q, k, v, out, sums, _rows(grads[0]), ctx.asked, found)
        return *found, None


def _rows(x: Tensor) -> Tensor:
    """Neighbours of the last axis must be neighbours in memory; nothing else is asked."""
    return x if x.stride(-1) == 1 else x.contiguous()


def forward(
    q: Tensor, k: Tensor, v: Tensor, asked: Asked, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `attend`, without a gradient, and what `backward` wants of it.

    bias: a table that is added first to each trial's query, key and value, side by side, [K, 3 H d], or one row for all.
    """
    if not send.by_kernels(q):
        with torch.no_grad():
            return reference(*_biased(q, k, v, asked, bias), asked), q.new_empty(0)
    from fleetune.backbone.kernels import attention as kernels

    return kernels.attend(q, k, v, asked, bias)


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, grad: Tensor, asked: Asked,
    into: tuple[Tensor, Tensor, Tensor], bias: Tensor | None = None,
) -> None:  # fmt: skip
    """Write the gradients of query, key and value. out, sums: as `forward` gave them; where only first tokens ask, the
    query's gradient is zero before."""
    if send.by_kernels(q):
        from fleetune.backbone.kernels import attention as kernels

        return kernels.attend_backward(q, k, v, out, sums, grad, asked, bias, into)
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in _biased(q, k, v, asked, bias)]
        found = torch.autograd.grad(reference(given[0], given[1], given[2], asked), given, grad)
    for mine, one in zip(into, found, strict=True):
        mine.copy_(one)


def _biased(
    q: Tensor, k: Tensor, v: Tensor, asked: Asked, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if bias is None:
        return q, k, v
    parts = by_row(bias, asked.laid.tokens).unflatten(1, (3, *q.shape[1:])).unbind(1)
    return q + parts[0], k + parts[1], v + parts[2]


def reference(query: Tensor, key: Tensor, value: Tensor, asked: Asked) -> Tensor:
    """As `attend`, sequence by sequence."""
    laid, heads = asked.laid, query.shape[1]
    out = torch.zeros_like(query)
    offsets = laid.offsets.tolist()
    for number, (low, high) in enumerate(pairwise(offsets)):
        n = high - low
        rows = 1 if asked.first_only else n
        q, k, v = (x[low:end].transpose(0, 1) for x, end in ((query, low + rows), (key, high), (value, high)))  # fmt: skip
        scores = asked.scale * (q @ k.transpose(1, 2))
        if asked.window is not None:
            place = torch.arange(n, device=query.device)
            far = (place[:rows, None] - place).abs() >= asked.window
            scores = scores.masked_fill(far, float("-inf"))
        p = scores.softmax(-1)
        if asked.drawing is not None:
            p = p * _multipliers(number, heads, rows, n, asked).to(p.dtype)
        out = out.index_copy(
            0, torch.arange(low, low + rows, device=out.device), (p @ v).transpose(0, 1)
        )
    return out


def _multipliers(number: int, heads: int, rows: int, n: int, asked: Asked) -> Tensor:
    """What a sequence's probabilities are multiplied with, [H, rows, n]."""
    drawing, laid = asked.drawing, asked.laid
    assert drawing is not None
    blocks = -(-n // 8)
    row = torch.arange(heads * rows, device=laid.keys.device).view(heads, rows, 1)
    counters = heads * laid.before[number] + row * blocks + torch.arange(blocks, device=row.device)
    batch = laid.sequences.batch[number].long()
    kept = keeps(counters, batch.expand_as(counters), drawing).flatten(2)[..., :n]
    return kept * drawing.levels.scales[batch]
