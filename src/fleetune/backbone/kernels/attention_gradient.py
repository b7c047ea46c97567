"""The gradient of attention: sequences that one program holds whole, and longer ones in blocks (attention.py).

Notation: B sequences, H heads, d width of a head, D the power of two that holds it; M rows of queries and N of keys a block.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from fleetune.backbone.kernels.attention_parts import (
    STILL,
    block,
    clear,
    drawing,
    multipliers,
    read,
    visible,
    write,
)


@triton.jit(do_not_specialize=STILL)
def whole(
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
        clear(to_q, tq_row, tq_head, head, end, total_rows, width, d)
        clear(to_k, tk_row, tk_head, head, end, total_rows, width, d)
        clear(to_v, tv_row, tv_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    row = tl.arange(0, m)
    fits = (tl.arange(0, d) < width)[None, :]
    mine = (row < asking)[:, None] & fits
    query = read(q, q_row, q_head, head, start, row, mine, bias, 0, heads, width, d, biased)
    gave = tl.load(out + head * o_head + block(start, row, o_row, d), mask=mine, other=0.0)
    given = tl.load(grad + head * g_head + block(start, row, g_row, d), mask=mine, other=0.0)
    logs = tl.load(sums + (start + row) * heads + head, mask=row < asking, other=0.0)
    shared = tl.sum(gave.to(tl.float32) * given.to(tl.float32), 1)
    if drops:
        key, threshold, factor, earlier = drawing(
            sequence, batches, keys, thresholds, scales, before
        )
    for_q = tl.zeros((m, d), tl.float32)
    for low in range(0, count, n):
        column = low + tl.arange(0, n)
        theirs = (column < count)[:, None] & fits
        kb = read(k, k_row, k_head, head, start, column, theirs, bias, 1, heads, width, d, biased)
        vb = read(v, v_row, v_head, head, start, column, theirs, bias, 2, heads, width, d, biased)
        scores = tl.dot(query, tl.trans(kb)) * scale
        p = tl.exp(scores - logs[:, None])
        p = tl.where(visible(row, column, count, window) & (row < asking)[:, None], p, 0.0)
        to_p = tl.dot(given, tl.trans(vb))
        used = p
        if drops:
            multiplier = multipliers(
                row, low, count, asking, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
            used = p * multiplier
            to_p = to_p * multiplier
        for_v = tl.dot(tl.trans(used.to(given.dtype)), given)
        write(to_v, tv_row, tv_head, head, start, column, theirs, for_v, d)
        to_scores = (p * (to_p - shared[:, None])).to(query.dtype)
        for_k = tl.dot(tl.trans(to_scores), query) * scale
        write(to_k, tk_row, tk_head, head, start, column, theirs, for_k, d)
        for_q += tl.dot(to_scores, kb)
    write(to_q, tq_row, tq_head, head, start, row, mine, for_q * scale, d)


@triton.jit(do_not_specialize=STILL)
def to_query(
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
        clear(to_q, t_row, t_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    row = part * m + tl.arange(0, m)
    fits = (tl.arange(0, d) < width)[None, :]
    mine = (row < count)[:, None] & fits
    query = read(q, q_row, q_head, head, start, row, mine, bias, 0, heads, width, d, biased)
    gave = tl.load(out + head * o_head + block(start, row, o_row, d), mask=mine, other=0.0)
    given = tl.load(grad + head * g_head + block(start, row, g_row, d), mask=mine, other=0.0)
    logs = tl.load(sums + (start + row) * heads + head, mask=row < count, other=0.0)
    shared = tl.sum(gave.to(tl.float32) * given.to(tl.float32), 1)
    tl.store(spread + (start + row) * heads + head, shared, mask=row < count)
    if drops:
        key, threshold, factor, earlier = drawing(
            sequence, batches, keys, thresholds, scales, before
        )
    found = tl.zeros((m, d), tl.float32)
    for low in range(0, count, n):
        column = low + tl.arange(0, n)
        theirs = (column < count)[:, None] & fits
        kb = read(k, k_row, k_head, head, start, column, theirs, bias, 1, heads, width, d, biased)
        vb = read(v, v_row, v_head, head, start, column, theirs, bias, 2, heads, width, d, biased)
        scores = tl.dot(query, tl.trans(kb)) * scale
        p = tl.exp(scores - logs[:, None])
        p = tl.where(visible(row, column, count, window), p, 0.0)
        to_p = tl.dot(given, tl.trans(vb))
        if drops:
            to_p = to_p * multipliers(
                row, low, count, count, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
        to_scores = p * (to_p - shared[:, None])
        found += tl.dot(to_scores.to(kb.dtype), kb)
    write(to_q, t_row, t_head, head, start, row, mine, found * scale, d)


@triton.jit(do_not_specialize=STILL)
def to_key_value(
    q, k, v, grad, to_k, to_v, sums, spread,
    q_row, q_head, k_row, k_head, v_row, v_head, g_row, g_head, s_row, s_head, t_row, t_head,
    offsets, batches, before, keys, thresholds, scales, site_low, site_high, biases, bias_step, trials,
    scale, total_rows, sequences, least,
    heads: tl.constexpr, width: tl.constexpr, d: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    window: tl.constexpr, first: tl.constexpr, biased: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    """Of the same, after `to_query`."""
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(offsets + sequence)
    end = tl.load(offsets + sequence + 1)
    count = end - start
    if (count <= least) | (part * n >= count):
        return
    if (part == 0) & (sequence == sequences - 1):
        clear(to_k, s_row, s_head, head, end, total_rows, width, d)
        clear(to_v, t_row, t_head, head, end, total_rows, width, d)
    bias = biases + tl.load(trials + sequence) * bias_step
    column = part * n + tl.arange(0, n)
    fits = (tl.arange(0, d) < width)[None, :]
    theirs = (column < count)[:, None] & fits
    kb = read(k, k_row, k_head, head, start, column, theirs, bias, 1, heads, width, d, biased)
    vb = read(v, v_row, v_head, head, start, column, theirs, bias, 2, heads, width, d, biased)
    if drops:
        key, threshold, factor, earlier = drawing(
            sequence, batches, keys, thresholds, scales, before
        )
    for_k = tl.zeros((n, d), tl.float32)
    for_v = tl.zeros((n, d), tl.float32)
    for low in range(0, count, m):
        row = low + tl.arange(0, m)
        mine = (row < count)[:, None] & fits
        query = read(q, q_row, q_head, head, start, row, mine, bias, 0, heads, width, d, biased)
        given = tl.load(grad + head * g_head + block(start, row, g_row, d), mask=mine, other=0.0)
        logs = tl.load(sums + (start + row) * heads + head, mask=row < count, other=0.0)
        shared = tl.load(spread + (start + row) * heads + head, mask=row < count, other=0.0)
        scores = tl.dot(query, tl.trans(kb)) * scale
        p = tl.exp(scores - logs[:, None])
        p = tl.where(visible(row, column, count, window) & (row < count)[:, None], p, 0.0)
        to_p = tl.dot(given, tl.trans(vb))
        used = p
        if drops:
            multiplier = multipliers(
                row, part * n, count, count, head, heads, earlier, key, threshold, factor,
                site_low, site_high, n, rounds,
            )  # fmt: skip
            used = p * multiplier
            to_p = to_p * multiplier
        for_v += tl.dot(tl.trans(used.to(given.dtype)), given)
        to_scores = p * (to_p - shared[:, None])
        for_k += tl.dot(tl.trans(to_scores.to(query.dtype)), query)
    write(to_k, s_row, s_head, head, start, column, theirs, for_k * scale, d)
    write(to_v, t_row, t_head, head, start, column, theirs, for_v, d)
