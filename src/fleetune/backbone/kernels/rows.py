"""The kernels of backbone/rows.py, which says what they compute and holds their references.

Notation: N rows, W columns, K trials. Every sum has one order: no atomic additions.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from fleetune.backbone.kernels.draw import drawn
from fleetune.backbone.philox import ROUNDS

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.backbone.laid import Drawing, LaidRows

_ROWS = 16
_EIGHTHS = 32
_COLUMNS = 256
_SUM_ROWS = 32
_SUM_COLUMNS = 128
_TOTAL_COLUMNS = 128
# Rows of a share.
_SHARE = 128
_MOST_SHARES = 128


def dropped(x: Tensor, rows: LaidRows, drawing: Drawing) -> Tensor:
    """As `rows.multiplied`; x is contiguous, W a multiple of 8."""
    count, width = x.shape
    out = torch.empty_like(x)
    levels = drawing.levels
    grid = (triton.cdiv(count, _ROWS), triton.cdiv(width // 8, _EIGHTHS))
    _dropped[grid](
        x, out, rows.batch, rows.place, drawing.keys, levels.thresholds, levels.scales,
        count, width, *drawing.site, _ROWS, _EIGHTHS, ROUNDS,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["site_low", "site_high", "count"])
def _dropped(
    x, out, batches, places, keys, thresholds, scales, count, width, site_low, site_high,
    m: tl.constexpr, eighths: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * m + tl.arange(0, m)
    here = row < count
    batch = tl.load(batches + row, mask=here, other=0)
    place = tl.load(places + row, mask=here, other=0).to(tl.int64)
    eighth = tl.program_id(1) * eighths + tl.arange(0, eighths)
    counter = place[:, None] * (width // 8) + eighth[None, :]
    key = tl.load(keys + batch)[:, None]
    numbers = drawn(key, counter, site_low, site_high, rounds)
    column = tl.program_id(1) * eighths * 8 + tl.arange(0, 8 * eighths)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    inside = here[:, None] & (column < width)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    # The scale is rounded to the dtype of x, the product then too.
    scale = tl.load(scales + batch).to(value.dtype)[:, None].to(tl.float32)
    kept = numbers >= tl.load(thresholds + batch)[:, None]
    # A product and not a choice: what is not finite stays so.
    value = value.to(tl.float32) * tl.where(kept, scale, 0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def add_bias(y: Tensor, table: Tensor, rows: LaidRows) -> None:
    """As `rows.add_bias`; y is contiguous."""
    count, width = y.shape
    grid = (triton.cdiv(count, _ROWS), triton.cdiv(width, _COLUMNS))
    _add_bias[grid](y, table, rows.trial, count, width, _ROWS, _COLUMNS)


@triton.jit(do_not_specialize=["count"])
def _add_bias(y, table, trials, count, width, m: tl.constexpr, n: tl.constexpr):
    row = tl.program_id(0) * m + tl.arange(0, m)
    column = tl.program_id(1) * n + tl.arange(0, n)
    inside = (row < count)[:, None] & (column < width)[None, :]
    trial = tl.load(trials + row, mask=row < count, other=0)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    bias = tl.load(table + trial.to(tl.int64)[:, None] * width + column[None, :], mask=inside)
    value = tl.load(y + at, mask=inside).to(tl.float32) + bias.to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


def shares_of(rows: int, trials: int, each: int) -> int:
    """By how many programs each trial's rows are added up: `each` rows a program, where trials have as many.

    Few programs would leave most of the device idle, and of many each one's sum is a good part of what it reads.
    """
    return max(1, min(_MOST_SHARES, rows // max(trials, 1) // each))


def add_sums(values: Tensor, rows: LaidRows, into: Tensor, owners: Tensor) -> None:
    """As `rows.add_sums`; rows of values lie one after the other, the table is contiguous."""
    width = values.shape[1]
    shares = shares_of(len(values), len(rows.ends), _SHARE)
    found = values.new_empty(len(owners), shares, width, dtype=torch.float32)
    grid = (len(owners), shares, triton.cdiv(width, _SUM_COLUMNS))
    _sums[grid](
        values, found, rows.ends, owners, values.stride(0), width, shares, _SUM_ROWS, _SUM_COLUMNS
    )
    add_shares(found, into, owners)


def add_shares(found: Tensor, into: Tensor, owners: Tensor) -> None:
    """Add up each owner's shares [O, S, W], and the sum to its row of a table [K, W]."""
    shares, width = found.shape[1:]
    grid = (len(owners), triton.cdiv(width, _TOTAL_COLUMNS))
    block = min(32, triton.next_power_of_2(shares))
    _add_shares[grid](found, into, owners, shares, width, block, _TOTAL_COLUMNS)


@triton.jit
def bounds(ends, trial, share, shares, m: tl.constexpr):
    """The rows of one share of a trial's: whole blocks of m, and the number of the first row behind them."""
    start = tl.load(ends + trial - 1, mask=trial > 0, other=0)
    end = tl.load(ends + trial)
    each = tl.cdiv(tl.cdiv(end - start, shares), m) * m
    low = tl.minimum(start + share * each, end)
    return low, tl.minimum(low + each, end)


@triton.jit(do_not_specialize=["shares"])
def _sums(values, found, ends, owners, step, width, shares, m: tl.constexpr, n: tl.constexpr):
    number, share = tl.program_id(0), tl.program_id(1)
    low, high = bounds(ends, tl.load(owners + number), share, shares, m)
    column = tl.program_id(2) * n + tl.arange(0, n)
    total = tl.zeros((m, n), tl.float32)
    for first in range(low, high, m):
        row = first + tl.arange(0, m)
        inside = (row < high)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * step + column[None, :]
        total += tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    at = (number * shares + share) * width + column
    tl.store(found + at, tl.sum(total, 0), mask=column < width)


@triton.jit(do_not_specialize=["shares"])
def _add_shares(found, into, owners, shares, width, m: tl.constexpr, n: tl.constexpr):
    number = tl.program_id(0)
    column = tl.program_id(1) * n + tl.arange(0, n)
    total = tl.zeros((m, n), tl.float32)
    for first in range(0, shares, m):
        share = first + tl.arange(0, m)
        inside = (share < shares)[:, None] & (column < width)[None, :]
        at = (number * shares + share).to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(found + at, mask=inside, other=0.0)
    at = into + tl.load(owners + number).to(tl.int64) * width + column
    before = tl.load(at, mask=column < width, other=0.0)
    tl.store(at, before + tl.sum(total, 0), mask=column < width)
