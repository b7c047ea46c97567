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

from fleetune.backbone.kernels import draw
from fleetune.backbone.kernels.draw import drawn
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
        _backward[len(asked.laid.sequences.batch), heads](
            q, k, v, out, grad, *into, sums, *given, *common, **bounds, **whole
        )  # fmt: skip
        low, rows = rows, 2 * rows
    if longest <= _WHOLE:
        return
    spread = torch.empty_like(sums)
    sizes |= {"m": 64, "n": 64, "num_warps": 4, "least": _WHOLE}
    grid = _grid(asked, heads, 64, False)
    given = _strides(q, k, v, out, grad, to_q)
    _to_query[grid](q, k, v, out, grad, to_q, sums, spread, *given, *common, **sizes)
    given = _strides(q, k, v, grad, to_k, to_v)
    _to_key_value[grid](q, k, v, grad, to_k, to_v, sums, spread, *given, *common, **sizes)


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


_STILL = ["site_low", "site_high", "total_rows", "sequences"]


@triton.jit
def _block(start, rows, row_stride, d: tl.constexpr):
    """Where rows of one head lie, [M, D]."""
    return (start + rows).to(tl.int64)[:, None] * row_stride + tl.arange(0, d)[None, :]


@triton.jit
def _taken(
    at, inside, bias, part: tl.constexpr, head, heads: tl.constexpr, width: tl.constexpr, d: tl.constexpr,
    biased: tl.constexpr,
):  # fmt: skip
    """Rows of one head of query (part 0), key (1) or value (2), with their trial's bias, [M, D]."""
    value = tl.load(at, mask=inside, other=0.0)
    if biased:
        column = tl.arange(0, d)
        here = bias + (part * heads + head) * width + column
        more = tl.load(here, mask=column < width, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + more[None, :]).to(value.dtype)
    return value


@triton.jit
def _clear(into, row_stride, head_stride, head, low, high, width: tl.constexpr, d: tl.constexpr):
    """Zero in the rows that belong to no sequence."""
    for first in range(low, high, 16):
        row = first + tl.arange(0, 16)
        inside = (row < high)[:, None] & (tl.arange(0, d) < width)[None, :]
        zero = tl.zeros((16, d), into.dtype.element_ty)
        tl.store(into + head * head_stride + _block(0, row, row_stride, d), zero, mask=inside)


@triton.jit
def _visible(row, column, count, window: tl.constexpr):
    seen = (column < count)[None, :] & (row >= 0)[:, None]
    if window > 0:
        apart = row[:, None] - column[None, :]
        seen = seen & (apart < window) & (apart > -window)
    return seen


@triton.jit
def _multipliers(
    row, first_column, count, asking, head, heads: tl.constexpr, before, key, threshold, scale,
    site_low, site_high, n: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    """Of rows [M] and n columns from a multiple of eight on."""
    blocks = (count + 7) // 8
    own = heads * before + (head * asking + row).to(tl.int64) * blocks
    eighth = first_column // 8 + tl.arange(0, n // 8)
    numbers = drawn(key, own[:, None] + eighth[None, :], site_low, site_high, rounds)
    return tl.where(numbers >= threshold, scale, 0.0)


@triton.jit(do_not_specialize=_STILL)
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
        _clear(out, o_row, o_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    row = part * m + tl.arange(0, m)
    fits = (tl.arange(0, d) < width)[None, :]
    mine = (row < asking)[:, None] & fits
    from_q = q + head * q_head + _block(start, row, q_row, d)
    query = _taken(from_q, mine, bias, 0, head, heads, width, d, biased)
    if drops:
        batch = tl.load(batches + sequence)
        key, threshold = tl.load(keys + batch), tl.load(thresholds + batch)
        factor, earlier = tl.load(scales + batch), tl.load(before + sequence)
    top = tl.full((m,), -1.0e30, tl.float32)
    total = tl.zeros((m,), tl.float32)
    found = tl.zeros((m, d), tl.float32)
    for low in range(0, count, n):
        column = low + tl.arange(0, n)
        theirs = (column < count)[:, None] & fits
        from_k = k + head * k_head + _block(start, column, k_row, d)
        kb = _taken(from_k, theirs, bias, 1, head, heads, width, d, biased)
        from_v = v + head * v_head + _block(start, column, v_row, d)
        vb = _taken(from_v, theirs, bias, 2, head, heads, width, d, biased)
        scores = tl.dot(query, tl.trans(kb)) * scale
        scores = tl.where(_visible(row, column, count, window), scores, -1.0e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp(scores - higher[:, None])
        shrunk = tl.exp(top - higher)
        total = total * shrunk + tl.sum(p, 1)
        if drops:
            p = p * _multipliers(
                row, low, count, asking, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
        found = found * shrunk[:, None] + tl.dot(p.to(vb.dtype), vb)
        top = higher
    found = found / total[:, None]
    tl.store(
        out + head * o_head + _block(start, row, o_row, d),
        found.to(out.dtype.element_ty),
        mask=mine,
    )
    tl.store(sums + (start + row) * heads + head, top + tl.log(total), mask=row < asking)


@triton.jit(do_not_specialize=_STILL)
def _backward(
    q, k, v, out, grad, to_q, to_k, to_v, sums,
    q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head, g_row, g_head, tq_row, tq_head, tk_row, tk_head,
    tv_row, tv_head,
    offsets, batches, before, keys, thresholds, scales, site_low, site_high, biases, bias_step, trials,
    scale, total_rows, sequences, least, most,
    heads: tl.constexpr, width: tl.constexpr, d: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    window: tl.constexpr, first: tl.constexpr, biased: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    """All of a sequence that asks with more than `least` and at most `most` <= M rows."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(offsets + sequence)
    end = tl.load(offsets + sequence + 1)
    count = end - start
    asking = count
    if first:
        asking = 1
    if (asking <= least) | (asking > most):
        return
    if sequence == sequences - 1:
        _clear(to_q, tq_row, tq_head, head, end, total_rows, width, d)
        _clear(to_k, tk_row, tk_head, head, end, total_rows, width, d)
        _clear(to_v, tv_row, tv_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    row = tl.arange(0, m)
    fits = (tl.arange(0, d) < width)[None, :]
    mine = (row < asking)[:, None] & fits
    from_q = q + head * q_head + _block(start, row, q_row, d)
    query = _taken(from_q, mine, bias, 0, head, heads, width, d, biased)
    gave = tl.load(out + head * o_head + _block(start, row, o_row, d), mask=mine, other=0.0)
    given = tl.load(grad + head * g_head + _block(start, row, g_row, d), mask=mine, other=0.0)
    logs = tl.load(sums + (start + row) * heads + head, mask=row < asking, other=0.0)
    shared = tl.sum(gave.to(tl.float32) * given.to(tl.float32), 1)
    if drops:
        batch = tl.load(batches + sequence)
        key, threshold = tl.load(keys + batch), tl.load(thresholds + batch)
        factor, earlier = tl.load(scales + batch), tl.load(before + sequence)
    for_q = tl.zeros((m, d), tl.float32)
    for low in range(0, count, n):
        column = low + tl.arange(0, n)
        theirs = (column < count)[:, None] & fits
        from_k = k + head * k_head + _block(start, column, k_row, d)
        kb = _taken(from_k, theirs, bias, 1, head, heads, width, d, biased)
        from_v = v + head * v_head + _block(start, column, v_row, d)
        vb = _taken(from_v, theirs, bias, 2, head, heads, width, d, biased)
        scores = tl.dot(query, tl.trans(kb)) * scale
        p = tl.exp(scores - logs[:, None])
        p = tl.where(_visible(row, column, count, window) & (row < asking)[:, None], p, 0.0)
        to_p = tl.dot(given, tl.trans(vb))
        used = p
        if drops:
            multiplier = _multipliers(
                row, low, count, asking, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
            used = p * multiplier
            to_p = to_p * multiplier
        for_v = tl.dot(tl.trans(used.to(given.dtype)), given)
        into_v = to_v + head * tv_head + _block(start, column, tv_row, d)
        tl.store(into_v, for_v.to(to_v.dtype.element_ty), mask=theirs)
        to_scores = (p * (to_p - shared[:, None])).to(query.dtype)
        for_k = tl.dot(tl.trans(to_scores), query) * scale
        into_k = to_k + head * tk_head + _block(start, column, tk_row, d)
        tl.store(into_k, for_k.to(to_k.dtype.element_ty), mask=theirs)
        for_q += tl.dot(to_scores, kb)
    at = to_q + head * tq_head + _block(start, row, tq_row, d)
    tl.store(at, (for_q * scale).to(to_q.dtype.element_ty), mask=mine)


@triton.jit(do_not_specialize=_STILL)
def _to_query(
    q, k, v, out, grad, to_q, sums, spread,
    q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head, g_row, g_head, t_row, t_head,
    offsets, batches, before, keys, thresholds, scales, site_low, site_high, biases, bias_step, trials,
    scale, total_rows, sequences, least,
    heads: tl.constexpr, width: tl.constexpr, d: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    window: tl.constexpr, first: tl.constexpr, biased: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    """Of sequences with more than `least` rows, all of which ask."""
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(offsets + sequence)
    end = tl.load(offsets + sequence + 1)
    count = end - start
    if (count <= least) | (part * m >= count):
        return
    if (part == 0) & (sequence == sequences - 1):
        _clear(to_q, t_row, t_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    row = part * m + tl.arange(0, m)
    fits = (tl.arange(0, d) < width)[None, :]
    mine = (row < count)[:, None] & fits
    from_q = q + head * q_head + _block(start, row, q_row, d)
    query = _taken(from_q, mine, bias, 0, head, heads, width, d, biased)
    gave = tl.load(out + head * o_head + _block(start, row, o_row, d), mask=mine, other=0.0)
    given = tl.load(grad + head * g_head + _block(start, row, g_row, d), mask=mine, other=0.0)
    logs = tl.load(sums + (start + row) * heads + head, mask=row < count, other=0.0)
    shared = tl.sum(gave.to(tl.float32) * given.to(tl.float32), 1)
    tl.store(spread + (start + row) * heads + head, shared, mask=row < count)
    if drops:
        batch = tl.load(batches + sequence)
        key, threshold = tl.load(keys + batch), tl.load(thresholds + batch)
        factor, earlier = tl.load(scales + batch), tl.load(before + sequence)
    found = tl.zeros((m, d), tl.float32)
    for low in range(0, count, n):
        column = low + tl.arange(0, n)
        theirs = (column < count)[:, None] & fits
        from_k = k + head * k_head + _block(start, column, k_row, d)
        kb = _taken(from_k, theirs, bias, 1, head, heads, width, d, biased)
        from_v = v + head * v_head + _block(start, column, v_row, d)
        vb = _taken(from_v, theirs, bias, 2, head, heads, width, d, biased)
        scores = tl.dot(query, tl.trans(kb)) * scale
        p = tl.exp(scores - logs[:, None])
        p = tl.where(_visible(row, column, count, window), p, 0.0)
        to_p = tl.dot(given, tl.trans(vb))
        if drops:
            to_p = to_p * _multipliers(
                row, low, count, count, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
        to_scores = p * (to_p - shared[:, None])
        found += tl.dot(to_scores.to(kb.dtype), kb)
    at = to_q + head * t_head + _block(start, row, t_row, d)
    tl.store(at, (found * scale).to(to_q.dtype.element_ty), mask=mine)


@triton.jit(do_not_specialize=_STILL)
def _to_key_value(
    q, k, v, grad, to_k, to_v, sums, spread,
    q_row, q_head, k_row, k_head, v_row, v_head, g_row, g_head, s_row, s_head, t_row, t_head,
    offsets, batches, before, keys, thresholds, scales, site_low, site_high, biases, bias_step, trials,
    scale, total_rows, sequences, least,
    heads: tl.constexpr, width: tl.constexpr, d: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    window: tl.constexpr, first: tl.constexpr, biased: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    """Of the same, after `_to_query`."""
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(offsets + sequence)
    end = tl.load(offsets + sequence + 1)
    count = end - start
    if (count <= least) | (part * n >= count):
        return
    if (part == 0) & (sequence == sequences - 1):
        _clear(to_k, s_row, s_head, head, end, total_rows, width, d)
        _clear(to_v, t_row, t_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    column = part * n + tl.arange(0, n)
    fits = (tl.arange(0, d) < width)[None, :]
    theirs = (column < count)[:, None] & fits
    from_k = k + head * k_head + _block(start, column, k_row, d)
    kb = _taken(from_k, theirs, bias, 1, head, heads, width, d, biased)
    from_v = v + head * v_head + _block(start, column, v_row, d)
    vb = _taken(from_v, theirs, bias, 2, head, heads, width, d, biased)
    if drops:
        batch = tl.load(batches + sequence)
        key, threshold = tl.load(keys + batch), tl.load(thresholds + batch)
        factor, earlier = tl.load(scales + batch), tl.load(before + sequence)
    for_k = tl.zeros((n, d), tl.float32)
    for_v = tl.zeros((n, d), tl.float32)
    for low in range(0, count, m):
        row = low + tl.arange(0, m)
        mine = (row < count)[:, None] & fits
        from_q = q + head * q_head + _block(start, row, q_row, d)
        query = _taken(from_q, mine, bias, 0, head, heads, width, d, biased)
        given = tl.load(grad + head * g_head + _block(start, row, g_row, d), mask=mine, other=0.0)
        logs = tl.load(sums + (start + row) * heads + head, mask=row < count, other=0.0)
        shared = tl.load(spread + (start + row) * heads + head, mask=row < count, other=0.0)
        scores = tl.dot(query, tl.trans(kb)) * scale
        p = tl.exp(scores - logs[:, None])
        p = tl.where(_visible(row, column, count, window) & (row < count)[:, None], p, 0.0)
        to_p = tl.dot(given, tl.trans(vb))
        used = p
        if drops:
            multiplier = _multipliers(
                row, part * n, count, count, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
            used = p * multiplier
            to_p = to_p * multiplier
        for_v += tl.dot(tl.trans(used.to(given.dtype)), given)
        to_scores = p * (to_p - shared[:, None])
        for_k += tl.dot(tl.trans(to_scores.to(query.dtype)), query)
    at = head * s_head + _block(start, column, s_row, d)
    tl.store(to_k + at, (for_k * scale).to(to_k.dtype.element_ty), mask=theirs)
    at = head * t_head + _block(start, column, t_row, d)
    tl.store(to_v + at, for_v.to(to_v.dtype.element_ty), mask=theirs)
