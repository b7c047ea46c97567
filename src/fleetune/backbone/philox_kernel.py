"""philox.py's multipliers as one Triton kernel: one program for each row and stretch of columns.

Imported on CUDA devices only, where torch brings Triton along.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

_WIDEST = 1024


def launch(out: Tensor, rows: tuple[Tensor, ...], streams: tuple[Tensor, ...], rounds: int) -> None:
    """As `philox.multiply`; waits for nothing. rows, streams: the fields of `Drawn` and `Streams`."""
    count, width = out.shape
    if count == 0 or width == 0:
        return
    block = min(triton.next_power_of_2(width), _WIDEST)
    grid = (count, triton.cdiv(width, block))
    _multiply[grid](out, *rows, *streams, width, block, rounds)


@triton.jit
def _multiply(
    out, trials, starts, lows, highs, keys, thresholds, scales, width,
    block: tl.constexpr, rounds: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    trial = tl.load(trials + row)
    number = tl.load(starts + row) + columns
    counter = number >> 2
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros_like(low)
    w0, w1, w2, w3 = tl.philox(tl.load(keys + trial), low, high, zero, zero, rounds)
    place = number & 3
    word = tl.where(place == 0, w0, tl.where(place == 1, w1, tl.where(place == 2, w2, w3)))
    kept = (word >> 16).to(tl.int64) >= tl.load(thresholds + trial)
    scale = tl.load(scales + trial)
    taken = (columns >= tl.load(lows + row)) & (columns < tl.load(highs + row))
    value = tl.where(kept, scale, tl.zeros_like(scale))
    tl.store(out + row * width + columns, value, mask=taken & (columns < width))
