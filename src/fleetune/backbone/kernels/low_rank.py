"""Kernels for the low-rank updates of all trials at one linear leaf: y + (dropout(x) A^T) B, on each row its trial's.

narrow: dropout(x) A^T, and its like in backward. add_wide: what comes of narrow rows, added. add_products: gradients of
factors, and of x where its dropout is drawn for them anyway. cohort/grouped.py calls them; their reference is its way by
`grouped_mm`. Rows of trials without factors are passed over: their narrow rows hold anything. A block of rows may hold several
trials' ends: it is worked through trial by trial.

Notation: N rows, W columns, K trials, R the largest rank, P the power of two that holds it. Every sum has one order: no atomic
additions.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from fleetune.backbone.kernels.draw import asked, drawn
from fleetune.backbone.kernels.rows import add_shares, bounds, shares_of
from fleetune.backbone.philox import ROUNDS

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.backbone.laid import Drawing, LaidRows

_NARROW_ROWS = 32
_NARROW_COLUMNS = 64
_WIDE_ROWS = 32
_WIDE_COLUMNS = 128
_SUM_ROWS = 64
_SUM_COLUMNS = 64
_SHARE = 256


def _power(rank: int) -> int:
    """P; a product has 16 rows at least."""
    return max(16, triton.next_power_of_2(rank))


def narrow(x: Tensor, factor: Tensor, owns: Tensor, rows: LaidRows, drawing: Drawing | None) -> Tensor:  # fmt: skip
    """dropout(x) F^T, [N, R], with each row's trial's factor.

    x: [N, W], whose rows may lie apart, W a multiple of 8; factor [K, R, W], contiguous; owns: whether each trial has one, [K].
    """
    count, rank = len(x), factor.shape[1]
    found = torch.empty(count, rank, dtype=x.dtype, device=x.device)
    draws, drops = asked(drawing, rows)
    _narrow[(triton.cdiv(count, _NARROW_ROWS),)](
        x, factor, found, owns, rows.trial, rows.batch, rows.place, *draws, x.stride(0),
        count, x.shape[1], rank, _power(rank), _NARROW_ROWS, _NARROW_COLUMNS, drops, ROUNDS,
    )  # fmt: skip
    return found


def add_wide(y: Tensor, few: Tensor, factor: Tensor, owns: Tensor, rows: LaidRows) -> None:
    """Add few F to y [N, W] in place; few: [N, R], the others as for `narrow`."""
    count, width = y.shape
    rank = factor.shape[1]
    grid = (triton.cdiv(count, _WIDE_ROWS), triton.cdiv(width, _WIDE_COLUMNS))
    _add_wide[grid](
        y, few, factor, owns, rows.trial, y.stride(0), count, width, rank, _power(rank), _WIDE_ROWS, _WIDE_COLUMNS
    )  # fmt: skip


def add_products(
    few: Tensor, x: Tensor, rows: LaidRows, into: Tensor, owners: Tensor, drawing: Drawing | None = None,
    wide: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Add to a table [K, R, W] few^T dropout(x) of each owner's rows; few: [N, R], x: [N, W], whose rows may lie apart.

    wide: y [N, W], contiguous, to which dropout(few F) is added in place on owners' rows, and the factor, [K, R, W].
    """
    rank, width = few.shape[1], x.shape[1]
    shares = shares_of(len(x), len(rows.ends), _SHARE)
    found = torch.empty(len(owners), shares, rank, width, dtype=torch.float32, device=x.device)
    draws, drops = asked(drawing, rows)
    grid = (len(owners), shares, triton.cdiv(width, _SUM_COLUMNS))
    y, factor = wide or (x, x)  # not touched
    _products[grid](
        few, x, found, y, factor, rows.ends, owners, rows.batch, rows.place, *draws, x.stride(0), width, rank, shares,
        _power(rank), _SUM_ROWS // 2 if wide else _SUM_ROWS, _SUM_COLUMNS, wide is not None, drops, ROUNDS,
    )  # fmt: skip
    add_shares(found.flatten(2), into.view(len(into), -1), owners)


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
def _narrow(
    x, factor, found, owns, trials, batches, places, keys, thresholds, scales, site_low, site_high, step,
    count, width, rank, p: tl.constexpr, m: tl.constexpr, n: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * m
    row = first + tl.arange(0, m)
    here = row < count
    whose = tl.load(trials + row, mask=here, other=-1)
    lowest = tl.load(trials + first)
    highest = tl.load(trials + tl.minimum(first + m, count) - 1)
    place = tl.load(places + row, mask=here, other=0)
    batch = tl.load(batches + row, mask=here, other=0)
    r = tl.arange(0, p)
    for trial in range(lowest, highest + 1):
        if tl.load(owns + trial) != 0:
            mine = whose == trial
            total = tl.zeros((m, p), tl.float32)
            for low in range(0, width, n):
                column = low + tl.arange(0, n)
                inside = mine[:, None] & (column < width)[None, :]
                at = row.to(tl.int64)[:, None] * step + column[None, :]
                value = tl.load(x + at, mask=inside, other=0.0)
                if drops:
                    multiplier = _multipliers(
                        batch, place, keys, thresholds, scales, low, width, site_low, site_high, n, rounds,
                    )  # fmt: skip
                    value = (value.to(tl.float32) * multiplier).to(value.dtype)
                theirs = (column < width)[:, None] & (r < rank)[None, :]
                at = (trial * rank + r[None, :]) * width + column[:, None]
                total += tl.dot(value, tl.load(factor + at, mask=theirs, other=0.0))
            thin = row.to(tl.int64)[:, None] * rank + r[None, :]
            inside = mine[:, None] & (r < rank)[None, :]
            tl.store(found + thin, total.to(found.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _add_wide(
    y, few, factor, owns, trials, step, count, width, rank, p: tl.constexpr, m: tl.constexpr, n: tl.constexpr
):  # fmt: skip
    first = tl.program_id(0) * m
    row = first + tl.arange(0, m)
    whose = tl.load(trials + row, mask=row < count, other=-1)
    lowest = tl.load(trials + first)
    highest = tl.load(trials + tl.minimum(first + m, count) - 1)
    r = tl.arange(0, p)
    column = tl.program_id(1) * n + tl.arange(0, n)
    for trial in range(lowest, highest + 1):
        if tl.load(owns + trial) != 0:
            mine = whose == trial
            thin = row.to(tl.int64)[:, None] * rank + r[None, :]
            narrow = tl.load(few + thin, mask=mine[:, None] & (r < rank)[None, :], other=0.0)
            theirs = (r < rank)[:, None] & (column < width)[None, :]
            at = (trial * rank + r[:, None]) * width + column[None, :]
            update = tl.dot(narrow, tl.load(factor + at, mask=theirs, other=0.0))
            inside = mine[:, None] & (column < width)[None, :]
            at_y = row.to(tl.int64)[:, None] * step + column[None, :]
            value = tl.load(y + at_y, mask=inside, other=0.0).to(tl.float32) + update
            tl.store(y + at_y, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["site_low", "site_high", "shares"])
def _products(
    few, x, found, y, factor, ends, owners, batches, places, keys, thresholds, scales, site_low, site_high, step,
    width, rank, shares, p: tl.constexpr, m: tl.constexpr, n: tl.constexpr,
    wide: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    number, share = tl.program_id(0), tl.program_id(1)
    trial = tl.load(owners + number)
    low, high = bounds(ends, trial, share, shares, m)
    column = tl.program_id(2) * n + tl.arange(0, n)
    r = tl.arange(0, p)
    theirs = (r < rank)[:, None] & (column < width)[None, :]
    if wide:
        at_factor = (trial * rank + r[:, None]) * width + column[None, :]
        widening = tl.load(factor + at_factor, mask=theirs, other=0.0)
    total = tl.zeros((p, n), tl.float32)
    for first in range(low, high, m):
        row = first + tl.arange(0, m)
        inside = (row < high)[:, None] & (column < width)[None, :]
        at_x = row.to(tl.int64)[:, None] * step + column[None, :]
        value = tl.load(x + at_x, mask=inside, other=0.0)
        thin = row.to(tl.int64)[:, None] * rank + r[None, :]
        narrow = tl.load(few + thin, mask=(row < high)[:, None] & (r < rank)[None, :], other=0.0)
        if drops:
            place = tl.load(places + row, mask=row < high, other=0)
            batch = tl.load(batches + row, mask=row < high, other=0)
            multiplier = _multipliers(
                batch, place, keys, thresholds, scales, tl.program_id(2) * n, width, site_low, site_high, n, rounds,
            )  # fmt: skip
            value = (value.to(tl.float32) * multiplier).to(value.dtype)
        total += tl.dot(tl.trans(narrow), value)
        if wide:
            update = tl.dot(narrow, widening)
            if drops:
                update = update * multiplier
            at_y = row.to(tl.int64)[:, None] * width + column[None, :]
            before = tl.load(y + at_y, mask=inside, other=0.0).to(tl.float32)
            tl.store(y + at_y, (before + update).to(y.dtype.element_ty), mask=inside)
    at = ((number * shares + share).to(tl.int64) * rank + r[:, None]) * width + column[None, :]
    tl.store(found + at, total, mask=theirs)
