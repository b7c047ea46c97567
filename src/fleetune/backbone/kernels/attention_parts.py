"""What the kernels of attention share (attention.py).

Notation: B sequences, H heads, d width of a head, D the power of two that holds it; M rows of queries and N of keys a block.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from fleetune.backbone.kernels.draw import drawn

# Numbers that change from pass to pass and are not worth a kernel of their own.
STILL = ["site_low", "site_high", "total_rows", "sequences"]


@triton.jit
def block(start, rows, row_stride, d: tl.constexpr):
    """Where rows of one head lie, [M, D]."""
    return (start + rows).to(tl.int64)[:, None] * row_stride + tl.arange(0, d)[None, :]


@triton.jit
def read(
    of, row_stride, head_stride, head, start, rows, inside, bias, part: tl.constexpr, heads: tl.constexpr,
    width: tl.constexpr, d: tl.constexpr, biased: tl.constexpr,
):  # fmt: skip
    """Rows of one head of query (part 0), key (1) or value (2), with their trial's bias, [M, D]."""
    at = of + head * head_stride + block(start, rows, row_stride, d)
    value = tl.load(at, mask=inside, other=0.0)
    if biased:
        column = tl.arange(0, d)
        here = bias + (part * heads + head) * width + column
        more = tl.load(here, mask=column < width, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + more[None, :]).to(value.dtype)
    return value


@triton.jit
def write(into, row_stride, head_stride, head, start, rows, inside, value, d: tl.constexpr):
    """Rows of one head, [M, D], in the dtype that they go to."""
    at = into + head * head_stride + block(start, rows, row_stride, d)
    tl.store(at, value.to(into.dtype.element_ty), mask=inside)


@triton.jit
def drawing(sequence, batches, keys, thresholds, scales, before):
    """What a sequence's dropout is drawn with: key, threshold, scale, and what earlier sequences took."""
    batch = tl.load(batches + sequence)
    key, threshold = tl.load(keys + batch), tl.load(thresholds + batch)
    return key, threshold, tl.load(scales + batch), tl.load(before + sequence)


@triton.jit
def clear(into, row_stride, head_stride, head, low, high, width: tl.constexpr, d: tl.constexpr):
    """Zero in the rows that belong to no sequence."""
    for first in range(low, high, 16):
        row = first + tl.arange(0, 16)
        inside = (row < high)[:, None] & (tl.arange(0, d) < width)[None, :]
        zero = tl.zeros((16, d), into.dtype.element_ty)
        tl.store(into + head * head_stride + block(0, row, row_stride, d), zero, mask=inside)


@triton.jit
def visible(row, column, count, window: tl.constexpr):
    seen = (column < count)[None, :] & (row >= 0)[:, None]
    if window > 0:
        apart = row[:, None] - column[None, :]
        seen = seen & (apart < window) & (apart > -window)
    return seen


@triton.jit
def multipliers(
    row, first_column, count, asking, head, heads: tl.constexpr, before, key, threshold, scale,
    site_low, site_high, n: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    """Of rows [M] and n columns from a multiple of eight on."""
    blocks = (count + 7) // 8
    own = heads * before + (head * asking + row).to(tl.int64) * blocks
    eighth = first_column // 8 + tl.arange(0, n // 8)
    numbers = drawn(key, own[:, None] + eighth[None, :], site_low, site_high, rounds)
    return tl.where(numbers >= threshold, scale, 0.0)
