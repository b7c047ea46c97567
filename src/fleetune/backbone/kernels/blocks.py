"""The kernels of backbone/blocks.py, which says what they compute and holds their references.

Notation: N rows, W columns, K trials. A table has a row for each trial, or one for all.
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

_ROWS = 8
_COLUMNS = 512


def _step(table: Tensor) -> int:
    """From one trial's row of a table to the next one's."""
    return table.shape[1] if len(table) > 1 else 0


def residual_norm(
    y: Tensor, residual: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float, rows: LaidRows,
    drawing: Drawing | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `blocks.residual_norm`; all contiguous, W a multiple of 8."""
    count, width = y.shape
    out, summed = torch.empty_like(y), torch.empty_like(y)
    moments = torch.empty(count, 2, dtype=torch.float32, device=y.device)
    draws, drops = asked(drawing, rows)
    _residual_norm[(count,)](
        y, residual, out, summed, moments, bias, _step(bias), weight, shift, _step(shift),
        rows.trial, rows.batch, rows.place, *draws, width, eps, max(8, triton.next_power_of_2(width)), drops, ROUNDS,
    )  # fmt: skip
    return out, summed, moments


def residual_norm_backward(
    grad: Tensor, summed: Tensor, moments: Tensor, weight: Tensor, rows: LaidRows, drawing: Drawing | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `blocks.residual_norm_backward`."""
    count, width = grad.shape
    to_residual = torch.empty_like(grad)
    to_y = to_residual if drawing is None else torch.empty_like(grad)
    draws, drops = asked(drawing, rows)
    _residual_norm_backward[(count,)](
        grad, summed, moments, weight, to_residual, to_y, rows.batch, rows.place, *draws, width,
        max(8, triton.next_power_of_2(width)), drops, ROUNDS,
    )  # fmt: skip
    return to_y, to_residual


_STILL = ["site_low", "site_high"]


@triton.jit
def _multipliers(
    batch, place, keys, thresholds, scales, width, site_low, site_high, block: tl.constexpr, rounds: tl.constexpr
):  # fmt: skip
    counter = place.to(tl.int64) * (width // 8) + tl.arange(0, block // 8)
    numbers = drawn(tl.load(keys + batch), counter[None, :], site_low, site_high, rounds)
    kept = tl.reshape(numbers, (block,)) >= tl.load(thresholds + batch)
    return tl.where(kept, tl.load(scales + batch), 0.0)


@triton.jit(do_not_specialize=_STILL)
def _residual_norm(
    y, residual, out, summed, moments, bias, bias_step, weight, shift, shift_step, trials, batches, places,
    keys, thresholds, scales, site_low, site_high, width, eps,
    block: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < width
    trial = tl.load(trials + row).to(tl.int64)
    at = row.to(tl.int64) * width + column
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + trial * bias_step + column, mask=inside, other=0.0).to(tl.float32)
    if drops:
        value = value * _multipliers(
            tl.load(batches + row), tl.load(places + row), keys, thresholds, scales, width, site_low,
            site_high, block, rounds,
        )  # fmt: skip
    value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    rounded = value.to(summed.dtype.element_ty)
    tl.store(summed + at, rounded, mask=inside)
    value = rounded.to(tl.float32)
    mean = tl.sum(value, 0) / width
    apart = tl.where(inside, value - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(apart * apart, 0) / width + eps)
    tl.store(moments + 2 * row, mean)
    tl.store(moments + 2 * row + 1, inverse)
    found = apart * inverse * tl.load(weight + column, mask=inside, other=0.0)
    found += tl.load(shift + trial * shift_step + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_STILL)
def _residual_norm_backward(
    grad, summed, moments, weight, to_residual, to_y, batches, places,
    keys, thresholds, scales, site_low, site_high, width,
    block: tl.constexpr, drops: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < width
    at = row.to(tl.int64) * width + column
    mean, inverse = tl.load(moments + 2 * row), tl.load(moments + 2 * row + 1)
    value = tl.load(summed + at, mask=inside, other=0.0).to(tl.float32)
    normal = tl.where(inside, (value - mean) * inverse, 0.0)
    given = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    given = given * tl.load(weight + column, mask=inside, other=0.0)
    along, level = tl.sum(given * normal, 0) / width, tl.sum(given, 0) / width
    found = (given - normal * along - level) * inverse
    tl.store(to_residual + at, found.to(to_residual.dtype.element_ty), mask=inside)
    if drops:
        found = found * _multipliers(
            tl.load(batches + row), tl.load(places + row), keys, thresholds, scales, width, site_low,
            site_high, block, rounds,
        )  # fmt: skip
        tl.store(to_y + at, found.to(to_y.dtype.element_ty), mask=inside)


def gelu(y: Tensor, bias: Tensor, rows: LaidRows) -> Tensor:
    """As `blocks.gelu`; y is contiguous."""
    out = torch.empty_like(y)
    _gelu[_grid(y)](y, out, y, bias, _step(bias), rows.trial, *y.shape, _ROWS, _COLUMNS, False)
    return out


def gelu_backward(grad: Tensor, y: Tensor, bias: Tensor, rows: LaidRows) -> Tensor:
    """As `blocks.gelu_backward`, in the place of the given gradient; both are contiguous."""
    _gelu[_grid(y)](y, grad, grad, bias, _step(bias), rows.trial, *y.shape, _ROWS, _COLUMNS, True)
    return grad


def _grid(y: Tensor) -> tuple[int, int]:
    return triton.cdiv(y.shape[0], _ROWS), triton.cdiv(y.shape[1], _COLUMNS)


@triton.jit(do_not_specialize=["count"])
def _gelu(
    y, out, grad, bias, bias_step, trials, count, width,
    m: tl.constexpr, n: tl.constexpr, backward: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * m
    row = first + tl.arange(0, m)
    column = tl.program_id(1) * n + tl.arange(0, n)
    inside = (row < count)[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    lowest = tl.load(trials + first).to(tl.int64)
    if lowest == tl.load(trials + tl.minimum(first + m, count) - 1):  # nearly always
        more = tl.load(bias + lowest * bias_step + column, mask=column < width, other=0.0)
        value += more.to(tl.float32)[None, :]
    else:
        trial = tl.load(trials + row, mask=row < count, other=0).to(tl.int64)
        here = bias + trial[:, None] * bias_step + column[None, :]
        value += tl.load(here, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
    if backward:
        given = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        slope = below + value * 0.3989422804014327 * tl.exp(-0.5 * value * value)
        found = given * slope
    else:
        found = value * below
    tl.store(out + at, found.to(out.dtype.element_ty), mask=inside)
