"""The kernels of backbone/varlen.py, which says what they compute and holds their reference.

Notation: B sequences, H heads, d width of a head, D the power of two that holds it; M rows of queries and N of keys a block.
Source: Dao 2023, "FlashAttention-2" (arXiv:2307.08691). Every sum has one order: no atomic additions.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from fleetune.backbone.kernels import attention_gradient, draw
from fleetune.backbone.kernels.attention_parts import (
    STILL,
    clear,
    drawing,
    multipliers,
    read,
    visible,
    write,
)
from fleetune.backbone.philox import ROUNDS

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.backbone.laid import Asked


# Keys of a block in forward; measured on an H200 (docs/lab-notes.md).
_KEYS = 16
# Of a program in backward, by its queries: keys of a block, and warps.
_BACKWARD = {16: (16, 1), 32: (16, 1), 64: (32, 4), 128: (32, 4), 256: (32, 8)}
# One program holds all of a sequence's queries in backward, up to so many; longer sequences go in blocks.
_WHOLE = max(_BACKWARD)


def attend(
    q: Tensor, k: Tensor, v: Tensor, asked: Asked, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `varlen.forward`: what was found, and the logarithm of each softmax's sum, [T, H], float32."""
    rows, heads, _ = q.shape
    # Else every row is written, also those of no sequence.
    new = torch.zeros if asked.first_only else torch.empty
    out = new(q.shape, dtype=q.dtype, device=q.device)
    sums = torch.empty(rows, heads, dtype=torch.float32, device=q.device)
    common, sizes = _common(asked, q, bias)
    block = asked.laid.block
    sizes |= {"m": block, "n": _KEYS, "num_warps": 4 if block > 32 else 2}
    grid = _grid(asked, heads, block, asked.first_only)
    _forward[grid](q, k, v, out, sums, *_strides(q, k, v, out), *common, **sizes)
    return out, sums


def attend_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, grad: Tensor, asked: Asked, bias: Tensor | None,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """Gradients of query, key and value, written into tensors of their shapes; where only first tokens ask, that of
    the query has to be zero before."""
    heads = q.shape[1]
    to_q, to_k, to_v = into
    common, sizes = _common(asked, q, bias)
    given = _strides(q, k, v, out, grad, *into)
    longest = 1 if asked.first_only else asked.laid.longest
    low, rows = 0, 16 if asked.first_only else asked.laid.block
    while low < min(longest, _WHOLE):
        keys, warps = _BACKWARD[rows]
        whole = sizes | {"m": rows, "n": keys, "num_warps": warps, "num_stages": 1}
        bounds = {"least": low, "most": rows}
        attention_gradient.whole[len(asked.laid.sequences.batch), heads](
            q, k, v, out, grad, *into, sums, *given, *common, **bounds, **whole
        )  # fmt: skip
        low, rows = rows, 2 * rows
    if longest <= _WHOLE:
        return
    spread = torch.empty_like(sums)
    sizes |= {"m": 64, "n": 64, "num_warps": 4, "least": _WHOLE}
    grid = _grid(asked, heads, 64, False)
    given = _strides(q, k, v, out, grad, to_q)
    attention_gradient.to_query[grid](
        q, k, v, out, grad, to_q, sums, spread, *given, *common, **sizes
    )
    given = _strides(q, k, v, grad, to_k, to_v)
    attention_gradient.to_key_value[grid](
        q, k, v, grad, to_k, to_v, sums, spread, *given, *common, **sizes
    )


def _grid(asked: Asked, heads: int, block: int, first_only: bool) -> tuple[int, int, int]:
    blocks = 1 if first_only else triton.cdiv(asked.laid.longest, block)
    return len(asked.laid.sequences.batch), heads, blocks


def _strides(*tensors: Tensor) -> list[int]:
    """Of rows and heads; the last axis has neighbours."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _common(asked: Asked, q: Tensor, bias: Tensor | None) -> tuple[list[Any], dict[str, Any]]:
    """What all kernels take behind their own arguments, and what each is compiled for."""
    laid, drawing = asked.laid, asked.drawing
    rows, heads, width = q.shape
    draws, drops = draw.asked(drawing, laid.tokens)
    step = 0 if bias is None or len(bias) == 1 else bias.shape[1]
    biases = [q if bias is None else bias, step, laid.sequences.trial]
    common = [
        laid.offsets, laid.sequences.batch, laid.before, *draws, *biases, asked.scale, rows, len(laid.sequences.batch),
    ]  # fmt: skip
    sizes = {
        "heads": heads,
        "width": width,
        "d": max(16, triton.next_power_of_2(width)),
        "window": asked.window or 0,
        "first": asked.first_only,
        "biased": bias is not None,
        "drops": drops,
        "rounds": ROUNDS,
    }
    return common, sizes


@triton.jit(do_not_specialize=STILL)
def _forward(
    q, k, v, out, sums, q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head,
    offsets, batches, before, keys, thresholds, scales, site_low, site_high, biases, bias_step, trials,
    scale, total_rows, sequences,
    heads: tl.constexpr, width: tl.constexpr, d: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    window: tl.constexpr, first: tl.constexpr, biased: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(offsets + sequence)
    end = tl.load(offsets + sequence + 1)
    count = end - start
    asking = count
    if first:
        asking = 1
    if part * m >= asking:
        return
    if (part == 0) & (sequence == sequences - 1):
        clear(out, o_row, o_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    row = part * m + tl.arange(0, m)
    fits = (tl.arange(0, d) < width)[None, :]
    mine = (row < asking)[:, None] & fits
    query = read(q, q_row, q_head, head, start, row, mine, bias, 0, heads, width, d, biased)
    if drops:
        key, threshold, factor, earlier = drawing(
            sequence, batches, keys, thresholds, scales, before
        )
    top = tl.full((m,), -1.0e30, tl.float32)
    total = tl.zeros((m,), tl.float32)
    found = tl.zeros((m, d), tl.float32)
    for low in range(0, count, n):
        column = low + tl.arange(0, n)
        theirs = (column < count)[:, None] & fits
        kb = read(k, k_row, k_head, head, start, column, theirs, bias, 1, heads, width, d, biased)
        vb = read(v, v_row, v_head, head, start, column, theirs, bias, 2, heads, width, d, biased)
        scores = tl.dot(query, tl.trans(kb)) * scale
        scores = tl.where(visible(row, column, count, window), scores, -1.0e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp(scores - higher[:, None])
        shrunk = tl.exp(top - higher)
        total = total * shrunk + tl.sum(p, 1)
        if drops:
            p = p * multipliers(
                row, low, count, asking, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
        found = found * shrunk[:, None] + tl.dot(p.to(vb.dtype), vb)
        top = higher
    found = found / total[:, None]
    write(out, o_row, o_head, head, start, row, mine, found, d)
    tl.store(sums + (start + row) * heads + head, top + tl.log(total), mask=row < asking)
