"""Multipliers of dropout from bits that are worked out where they are needed: any place of any stream, in any order.

Philox4x32-7 turns a counter of 128 bits and a key of 64 into four words of 32. The key is a trial's, the counter the place
in its stream, so a GPU draws for all trials of a pass at once, each number by itself. On the CPU a generator that runs
through its stream is faster (noise.py).

Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; the words are those of
Random123. Reference: the plain tensor operations here, which the kernel in philox_kernel.py repeats.

Notation: N rows, W columns, K trials.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fleetune.backbone.send import by_kernels

# As many as pass BigCrush (Salmon et al., table 2) and as FlashAttention draws its dropout with; ten leave room that dropout does
# not need and a GPU pays for.
ROUNDS = 7
LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Which numbers of which streams the rows of a matrix take."""

    trial: Tensor
    """Which of the pass's streams, [N], int64."""
    start: Tensor
    """What number of the stream column 0 would take, [N], int64; column c takes the c-th after it."""
    low: Tensor
    """The first column that takes one, [N], int64."""
    high: Tensor
    """The first column behind them, [N], int64; the others stay as they are."""


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of a pass's M micro-batches, each of one trial and step, at one site."""

    keys: Tensor
    """[M], int64."""
    thresholds: Tensor
    """A number of 16 bits below it is dropped, [M], int64."""
    scales: Tensor
    """What is kept is multiplied by it, [M], in the dtype of what is multiplied."""


def multiply(out: Tensor, drawn: Drawn, streams: Streams) -> None:
    """Write 0 where a number is dropped and the scale elsewhere into `out`, [N, W]."""
    if not by_kernels(out) or not out.is_contiguous():
        return reference(out, drawn, streams)
    from fleetune.backbone.philox_kernel import launch

    rows = (drawn.trial, drawn.start, drawn.low, drawn.high)
    launch(out, rows, (streams.keys, streams.thresholds, streams.scales), ROUNDS)


def reference(out: Tensor, drawn: Drawn, streams: Streams) -> None:
    """As `multiply`, by operations on whole tensors, on any device."""
    columns = torch.arange(out.shape[1], device=out.device)
    taken = (columns >= drawn.low[:, None]) & (columns < drawn.high[:, None])
    numbers = drawn.start[:, None] + columns
    keys, limits, scales = (
        values[drawn.trial][:, None]
        for values in (streams.keys, streams.thresholds, streams.scales)
    )
    kept = (word(keys, numbers) >> 16) >= limits
    out.copy_(torch.where(taken, kept.to(out.dtype) * scales, out))


def word(keys: Tensor, numbers: Tensor) -> Tensor:
    """The 32 bits with such a number in the stream of a key, as int64; both are int64 and broadcast."""
    place, block = numbers & 3, numbers >> 2
    zero = torch.zeros((), dtype=torch.int64, device=numbers.device)
    words = philox((block & LOW, (block >> 32) & LOW, zero, zero), keys)
    found = words[3]
    for i in (2, 1, 0):
        found = torch.where(place == i, words[i], found)
    return found


Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four words of 32 bits, each in an int64 tensor; they broadcast."""


def philox(counter: Words, keys: Tensor) -> Words:
    """The four words of a counter under a key of 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = keys & LOW, (keys >> 32) & LOW
    for _ in range(ROUNDS):
        # A product of two 32-bit words wraps round in int64, which keeps all of its 64 bits.
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high_a, high_b = (a >> 32) & LOW, (b >> 32) & LOW
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, b & LOW, high_a ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + _STEPS[0]) & LOW, (k1 + _STEPS[1]) & LOW
    return c0, c1, c2, c3
