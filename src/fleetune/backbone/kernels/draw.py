"""The bits of dropout, drawn where a kernel needs them."""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportMissingParameterType=false, reportIndexIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    from fleetune.backbone.laid import Drawing, LaidRows


def asked(drawing: Drawing | None, rows: LaidRows) -> tuple[list[Any], bool]:
    """What a kernel takes of a dropout (keys, thresholds, scales, site), and whether there is one."""
    if drawing is None:
        return [rows.trial, rows.trial, rows.trial, 0, 0], False  # not read
    levels = drawing.levels
    return [drawing.keys, levels.thresholds, levels.scales, *drawing.site], True


@triton.jit
def drawn(key, counter, site_low, site_high, rounds: tl.constexpr):
    """The eight numbers of 16 bits of each counter [M, Q], as int32 [M, 8 Q]; key broadcasts."""
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros_like(low)
    key = key + tl.zeros_like(counter)
    w0, w1, w2, w3 = tl.philox(
        key, low, high, zero + site_low.to(tl.uint32), zero + site_high.to(tl.uint32), rounds
    )
    # Joined in this order, the four words of a counter become neighbours.
    joined = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.reshape(joined, (counter.shape[0], 4 * counter.shape[1]))
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, (counter.shape[0], 8 * counter.shape[1])).to(tl.int32)
