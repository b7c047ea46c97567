"""Kernels for the low-rank updates of all trials at one linear leaf, each reading the activations once.

add_update: y + bias + (dropout(x) A^T) B, on each row its trial's. cohort/grouped.py calls them; their reference is its way by
`grouped_mm`. A block of rows may hold several trials' ends: it is worked through trial by trial.

Notation: N rows, D input width, E output width, K trials, R the largest rank, P the power of two that holds it.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from fleetune.backbone.kernels.draw import asked, drawn
from fleetune.backbone.philox import ROUNDS

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.backbone.laid import Drawing, LaidRows

_ROWS = 64
_COLUMNS = 128
_SUM_ROWS = 64
_SUM_COLUMNS = 64
_LEAST_PROGRAMS = 32


def _power(rank: int) -> int:
    """P; a product has 16 rows at least."""
    return max(16, triton.next_power_of_2(rank))


def add_update(
    y: Tensor, x: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, rows: LaidRows, drawing: Drawing | None
) -> Tensor:  # fmt: skip
    """Add bias and update to y [N, E] in place; returns the narrow rows dropout(x) A^T, [N, R].

    x: [N, D]; down [K, R, D], up [K, R, E]; bias [K, E]. All contiguous, D a multiple of 8.
    """
    count, rank = len(x), down.shape[1]
    narrow = torch.empty(count, rank, dtype=x.dtype, device=x.device)
    draws, drops = asked(drawing, rows)
    _add_update[(triton.cdiv(count, _ROWS),)](
        y, x, y if bias is None else bias, down, up, narrow, rows.trial, rows.batch, rows.place, *draws,
        count, x.shape[1], y.shape[1], rank, _power(rank), _ROWS, _COLUMNS, bias is not None, drops, ROUNDS,
    )  # fmt: skip
    return narrow


def add_update_backward(
    grad: Tensor, to_input: Tensor | None, down: Tensor, up: Tensor, rows: LaidRows, drawing: Drawing | None
) -> Tensor:  # fmt: skip
    """Add the update's part to the gradient of x in place; returns the gradient of the narrow rows, [N, R]."""
    count, rank = len(grad), down.shape[1]
    through = torch.empty(count, rank, dtype=grad.dtype, device=grad.device)
    draws, drops = asked(drawing, rows)
    _add_update_backward[(triton.cdiv(count, _ROWS),)](
        grad, grad if to_input is None else to_input, down, up, through, rows.trial, rows.batch, rows.place, *draws,
        count, down.shape[2], up.shape[2], rank, _power(rank), _ROWS, _COLUMNS, to_input is not None,
        drops, ROUNDS,
    )  # fmt: skip
    return through


def products(
    left: Tensor,
    right: Tensor,
    rows: LaidRows,
    drawing: Drawing | None = None,
    *,
    sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Of each trial's rows left^T dropout(right), [K, R, W]; and, where asked, its rows' sum, [K, W]; in float32."""
    rank, width, trials = left.shape[1], right.shape[1], len(rows.ends)
    shares = max(1, _LEAST_PROGRAMS // trials)
    out = torch.empty(trials, shares, rank, width, dtype=torch.float32, device=left.device)
    summed = torch.empty(trials, shares, width, dtype=torch.float32, device=left.device)
    draws, drops = asked(drawing, rows)
    grid = (trials, shares, triton.cdiv(width, _SUM_COLUMNS))
    _products[grid](
        left, right, out, summed, rows.ends, rows.batch, rows.place, *draws, width, rank, shares,
        _power(rank), _SUM_ROWS, _SUM_COLUMNS, sums, drops, ROUNDS,
    )  # fmt: skip
    if shares == 1:
        return out[:, 0], summed[:, 0] if sums else None
    return out.sum(1), summed.sum(1) if sums else None


_STILL = ["site_low", "site_high", "count"]


@triton.jit
def _multipliers(
    batch, place, keys, thresholds, scales, first_column, width, site_low, site_high, n: tl.constexpr,
    rounds: tl.constexpr,
):  # fmt: skip
    eighth = first_column // 8 + tl.arange(0, n // 8)
    counter = place.to(tl.int64)[:, None] * (width // 8) + eighth[None, :]
    numbers = drawn(tl.load(keys + batch)[:, None], counter, site_low, site_high, rounds)
    kept = numbers >= tl.load(thresholds + batch)[:, None]
    return tl.where(kept, tl.load(scales + batch)[:, None], 0.0)


@triton.jit(do_not_specialize=_STILL)
def _add_update(
    y, x, bias, down, up, narrow, trials, batches, places, keys, thresholds, scales, site_low, site_high,
    count, width, out_width, rank, p: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    biased: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * m
    row = first + tl.arange(0, m)
    here = row < count
    whose = tl.load(trials + row, mask=here, other=-1)
    place = tl.load(places + row, mask=here, other=0)
    batch = tl.load(batches + row, mask=here, other=0)
    lowest = tl.load(trials + first)
    highest = tl.load(trials + tl.minimum(first + m, count) - 1)
    r = tl.arange(0, p)
    for trial in range(lowest, highest + 1):
        mine = whose == trial
        total = tl.zeros((m, p), tl.float32)
        for low in range(0, width, n):
            column = low + tl.arange(0, n)
            inside = mine[:, None] & (column < width)[None, :]
            at = row.to(tl.int64)[:, None] * width + column[None, :]
            value = tl.load(x + at, mask=inside, other=0.0)
            if drops:
                value = (
                    value.to(tl.float32)
                    * _multipliers(
                        batch, place, keys, thresholds, scales, low, width, site_low, site_high, n,
                        rounds,
                    )
                ).to(value.dtype)  # fmt: skip
            theirs = (column < width)[:, None] & (r < rank)[None, :]
            factor = tl.load(
                down + (trial * rank + r[None, :]) * width + column[:, None], mask=theirs, other=0.0
            )
            total += tl.dot(value, factor)
        few = total.to(narrow.dtype.element_ty)
        thin = row.to(tl.int64)[:, None] * rank + r[None, :]
        tl.store(narrow + thin, few, mask=mine[:, None] & (r < rank)[None, :])
        for low in range(0, out_width, n):
            column = low + tl.arange(0, n)
            theirs = (r < rank)[:, None] & (column < out_width)[None, :]
            factor = tl.load(
                up + (trial * rank + r[:, None]) * out_width + column[None, :],
                mask=theirs,
                other=0.0,
            )
            update = tl.dot(few, factor)
            if biased:
                at = trial * out_width + column
                update += tl.load(bias + at, mask=column < out_width, other=0.0).to(tl.float32)[
                    None, :
                ]
            inside = mine[:, None] & (column < out_width)[None, :]
            at = row.to(tl.int64)[:, None] * out_width + column[None, :]
            value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) + update
            tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_STILL)
def _add_update_backward(
    grad, to_input, down, up, through, trials, batches, places, keys, thresholds, scales, site_low, site_high,
    count, width, out_width, rank, p: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    asked: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * m
    row = first + tl.arange(0, m)
    here = row < count
    whose = tl.load(trials + row, mask=here, other=-1)
    place = tl.load(places + row, mask=here, other=0)
    batch = tl.load(batches + row, mask=here, other=0)
    lowest = tl.load(trials + first)
    highest = tl.load(trials + tl.minimum(first + m, count) - 1)
    r = tl.arange(0, p)
    for trial in range(lowest, highest + 1):
        mine = whose == trial
        total = tl.zeros((m, p), tl.float32)
        for low in range(0, out_width, n):
            column = low + tl.arange(0, n)
            inside = mine[:, None] & (column < out_width)[None, :]
            at = row.to(tl.int64)[:, None] * out_width + column[None, :]
            given = tl.load(grad + at, mask=inside, other=0.0)
            theirs = (column < out_width)[:, None] & (r < rank)[None, :]
            factor = tl.load(
                up + (trial * rank + r[None, :]) * out_width + column[:, None],
                mask=theirs,
                other=0.0,
            )
            total += tl.dot(given, factor)
        few = total.to(through.dtype.element_ty)
        thin = row.to(tl.int64)[:, None] * rank + r[None, :]
        tl.store(through + thin, few, mask=mine[:, None] & (r < rank)[None, :])
        if asked:
            for low in range(0, width, n):
                column = low + tl.arange(0, n)
                theirs = (r < rank)[:, None] & (column < width)[None, :]
                factor = tl.load(
                    down + (trial * rank + r[:, None]) * width + column[None, :],
                    mask=theirs,
                    other=0.0,
                )
                back = tl.dot(few, factor)
                if drops:
                    back = back * _multipliers(
                        batch, place, keys, thresholds, scales, low, width, site_low, site_high, n,
                        rounds,
                    )  # fmt: skip
                inside = mine[:, None] & (column < width)[None, :]
                at = row.to(tl.int64)[:, None] * width + column[None, :]
                value = tl.load(to_input + at, mask=inside, other=0.0).to(tl.float32) + back
                tl.store(to_input + at, value.to(to_input.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["site_low", "site_high"])
def _products(
    left, right, out, summed, ends, batches, places, keys, thresholds, scales, site_low, site_high,
    width, rank, shares, p: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    sums: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    trial, share = tl.program_id(0), tl.program_id(1)
    start = tl.load(ends + trial - 1, mask=trial > 0, other=0)
    end = tl.load(ends + trial)
    column = tl.program_id(2) * n + tl.arange(0, n)
    r = tl.arange(0, p)
    total = tl.zeros((p, n), tl.float32)
    line = tl.zeros((n,), tl.float32)
    for first in range(start + share * m, end, shares * m):
        row = first + tl.arange(0, m)
        inside = (row < end)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        value = tl.load(right + at, mask=inside, other=0.0)
        if sums:
            line += tl.sum(value.to(tl.float32), 0)
        if drops:
            place = tl.load(places + row, mask=row < end, other=0)
            batch = tl.load(batches + row, mask=row < end, other=0)
            value = (
                value.to(tl.float32)
                * _multipliers(
                    batch, place, keys, thresholds, scales, tl.program_id(2) * n, width, site_low,
                    site_high, n, rounds,
                )
            ).to(value.dtype)  # fmt: skip
        at = row.to(tl.int64)[:, None] * rank + r[None, :]
        few = tl.load(left + at, mask=(row < end)[:, None] & (r < rank)[None, :], other=0.0)
        total += tl.dot(tl.trans(few), value)
    at = (trial * shares + share) * width + column
    if sums:
        tl.store(summed + at, line, mask=column < width)
    at = ((trial * shares + share) * rank + r[:, None]) * width + column[None, :]
    tl.store(out + at, total, mask=(r < rank)[:, None] & (column < width)[None, :])
