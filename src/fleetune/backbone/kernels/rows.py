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
_SUM_ROWS = 64
_SUM_COLUMNS = 64
_LEAST_PROGRAMS = 32


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


def sums(values: Tensor, rows: LaidRows) -> Tensor:
    """As `rows.sums`; values are contiguous."""
    width, trials = values.shape[1], len(rows.ends)
    # Few trials would leave most of the device idle: each one's rows then go to several programs.
    shares = max(1, _LEAST_PROGRAMS // trials)
    out = values.new_empty(trials, shares, width, dtype=torch.float32)
    grid = (trials, shares, triton.cdiv(width, _SUM_COLUMNS))
    _sums[grid](values, out, rows.ends, width, shares, _SUM_ROWS, _SUM_COLUMNS)
    return out[:, 0] if shares == 1 else out.sum(1)


@triton.jit
def _sums(values, out, ends, width, shares, m: tl.constexpr, n: tl.constexpr):
    trial, share = tl.program_id(0), tl.program_id(1)
    start = tl.load(ends + trial - 1, mask=trial > 0, other=0)
    end = tl.load(ends + trial)
    column = tl.program_id(2) * n + tl.arange(0, n)
    total = tl.zeros((m, n), tl.float32)
    for first in range(start + share * m, end, shares * m):
        row = first + tl.arange(0, m)
        inside = (row < end)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    at = (trial * shares + share) * width + column
    tl.store(out + at, tl.sum(total, 0), mask=column < width)
