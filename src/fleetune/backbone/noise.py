"""Dropout masks, each trial's from its own stream, whoever else is in the pass.

The bits of one mask are named by (seed, step, site, call) of the trial, and taken in the order of its micro-batch: row
after row, or for attention sequence after sequence. They depend on nothing else: not on the trial's place in the cohort,
nor on how sequences are grouped or padded. So a trial drops the same activations alone and in company, and a resumed
trial needs no stored generator.

Bits come from SFC64 (numpy), its state set from a hash of the name; 16 bits decide one activation. A rate is rounded to
a multiple of 2^-16, and kept activations are scaled by what was really kept, so the expectation is exact but for the
rounding of that factor to the dtype. In bfloat16, as in torch's own dropout on a CPU, this is up to 0.4 % (2^-8): the mean
multiplier is 0.9984 at a rate of 0.1, and 1.0027 at 0.15.

Not covered: a GPU, which draws for itself (device_noise.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.seeds import digest

_LEVELS = 1 << 16


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """What decides the masks of one micro-batch in one pass."""

    seed: int
    step: int
    """The trial's micro-batches before this one, from its start."""
    rate: float | None = None
    """Replaces every dropout rate of the backbone; None keeps them."""
    rows_before: int = 0
    """Sequences of the trial's micro-batch that other passes hold and that come before this one's."""
    tokens_before: int = 0
    """Their tokens."""
    squares_before: int = 0
    """The sum of their squared lengths: attention has so many probabilities a head."""
    words_before: int = 0
    """Words of 128 bits, a head, that attention's dropout takes for them on a GPU (`laid.py`)."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where sequences stand in tiles, for masks of attention: a tile is [heads, length, length]."""

    sequences: NDArray[np.int64]
    """Their numbers in the stream, [S]."""
    tiles: NDArray[np.int64]
    """The tile of each, ascending, [S]."""
    starts: NDArray[np.int64]
    """Where in its tile each starts, [S]."""
    lengths: NDArray[np.int64]
    """Tokens of each, [S]."""

    @property
    def slots(self) -> NDArray[np.int64]:
        """Each sequence's number within its tile, [S]."""
        return np.arange(len(self.tiles)) - np.searchsorted(self.tiles, self.tiles)

    def corners(self, first_only: bool) -> Iterator[tuple[int, int, int, int, int]]:
        """Of each sequence: its number, tile, first row, first column, tokens. first_only: one row for each, by its slot."""
        rows = self.slots if first_only else self.starts
        tiles, columns, counts = self.tiles.tolist(), self.starts.tolist(), self.lengths.tolist()
        yield from zip(self.sequences.tolist(), tiles, rows.tolist(), columns, counts, strict=True)


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Of which micro-batch each row of activations is; what `Noise.rows` takes, of all of a pass."""

    bounds: list[int]
    """Where each one's rows start, and their number at the end, [M + 1]."""
    existing: list[NDArray[np.int64] | None]
    before: list[int]


@dataclass(frozen=True, slots=True)
class Noise:
    """The dropout of one training pass; one key a micro-batch."""

    keys: Sequence[NoiseKey]
    _source: np.random.SFC64 = field(default_factory=lambda: np.random.SFC64(0), repr=False)

    def rates(self, rate: float) -> list[float]:
        """Each micro-batch's rate at a place where the backbone has this one, [M]."""
        return [rate if key.rate is None else key.rate for key in self.keys]

    def bits(self, batch: int, count: int, *name: str | int, skipped: int = 0) -> NDArray[np.int16]:
        """So many uniform 16-bit numbers, -32768 to 32767, of one micro-batch and purpose, after those that are skipped."""
        key = self.keys[batch]
        words = np.frombuffer(digest(key.seed, "dropout", key.step, *name), dtype=np.uint64)
        self._source.state = {
            "bit_generator": "SFC64",
            "state": {"state": words},
            "has_uint32": 0,
            "uinteger": 0,
        }
        raw: NDArray[np.uint64] = self._source.random_raw(-(-(skipped + count) // 4))  # type: ignore[assignment]
        return raw.view(np.int16)[skipped : skipped + count]

    def every(
        self, rates: Sequence[float], out: Tensor, rows: BatchRows, *name: str | int
    ) -> Tensor:
        """Write the multipliers of all micro-batches' rows of activations into `out`, [rows, width], and return it."""
        for m, rate in enumerate(rates):
            part = out[rows.bounds[m] : rows.bounds[m + 1]]
            self.rows(m, rate, part, rows.existing[m], rows.before[m], *name)
        return out

    def rows(
        self,
        batch: int,
        rate: float,
        out: Tensor,
        existing: NDArray[np.int64] | None,
        before: int,
        *name: str | int,
    ) -> Tensor:
        """Write the multiplier of one micro-batch's rows of activations into `out`, [rows, width], and return it.

        0 where dropped, 1 / kept share elsewhere. existing: which of the rows hold tokens; padding gets no bits, since its
        amount depends on the company, and is multiplied by 1. None where every row counts. before: rows of the
        micro-batch that come before these and are not in this pass.
        """
        skipped = before * out.shape[1]
        if existing is None:
            return multiply_into(out, self.bits(batch, out.numel(), *name, skipped=skipped), rate)
        own = out.new_empty(len(existing), out.shape[1])
        multiply_into(own, self.bits(batch, own.numel(), *name, skipped=skipped), rate)
        out.fill_(1.0)
        out[torch.from_numpy(existing)] = own
        return out

    def attention(
        self,
        rate: float,
        buckets: Sequence[Blocks],
        batch_offsets: NDArray[np.int64],
        outs: Sequence[Tensor],
        *name: str | int,
        first_only: bool = False,
    ) -> None:
        """Write the multipliers of sequences' attention probabilities into `outs`, each [tiles, heads, Q, L].

        The buckets together hold every sequence of the pass once. batch_offsets: as in `Stream`. The backbone's rate holds where
        a key has none.
        What lies beyond the sequences stays as it was. first_only: of each sequence the probabilities of its first token
        alone, Q counts a tile's sequences.
        """
        raws = [_raw(out) for out in outs]
        heads, dtype = outs[0].shape[1], outs[0].dtype
        corners = _corners(buckets, first_only)
        for m, own_rate in enumerate(self.rates(rate)):
            own = corners[batch_offsets[m] : batch_offsets[m + 1]]
            # One draw for all of its sequences: a small one for each took a tenth of a step.
            counts = [heads * n * (1 if first_only else n) for *_, n in own]
            before = self.keys[m].tokens_before if first_only else self.keys[m].squares_before
            drawn = np.empty(sum(counts), dtype=raws[0].dtype)
            bits = self.bits(m, len(drawn), *name, skipped=heads * before)
            _multiply(drawn, bits, own_rate, dtype)
            end = 0
            for (number, tile, top, left, n), count in zip(own, counts, strict=True):
                end += count
                block = drawn[end - count : end].reshape(heads, -1, n)
                raws[number][tile, :, top : top + block.shape[1], left : left + n] = block


def _corners(buckets: Sequence[Blocks], first_only: bool) -> list[tuple[int, int, int, int, int]]:
    """Of each sequence of the pass, in its order: bucket, tile, first row, first column, tokens."""
    found: dict[int, tuple[int, int, int, int, int]] = {}
    for number, b in enumerate(buckets):
        for sequence, tile, top, left, n in b.corners(first_only):
            found[sequence] = (number, tile, top, left, n)
    return [found[sequence] for sequence in range(len(found))]


def multiply_into(out: Tensor, drawn: NDArray[np.int16], rate: float) -> Tensor:
    """Write 0 where the drawn number falls below the rate, 1 / kept share elsewhere; `out` has as many numbers."""
    if out.is_contiguous():
        _multiply(_raw(out), drawn.reshape(out.shape), rate, out.dtype)
        return out
    return out.copy_(multiply_into(torch.empty(out.shape, dtype=out.dtype), drawn, rate))


def _multiply(out: NDArray[Any], drawn: NDArray[np.int16], rate: float, dtype: torch.dtype) -> None:
    threshold, scale = _scale(rate, dtype)
    kept = np.greater_equal(drawn, threshold - _LEVELS // 2)
    # numpy, and for bfloat16 on its bit patterns (that of 0 is 0): torch compares 16-bit integers and turns truth values
    # into bfloat16 one by one, which takes four times as long altogether.
    np.multiply(kept.view(np.uint8), scale, out=out, dtype=out.dtype)


def level(rate: float) -> tuple[int, float]:
    """Of 2^16 levels those that are dropped, and what the others are multiplied by."""
    threshold = min(round(rate * _LEVELS), _LEVELS - 1)
    return threshold, _LEVELS / (_LEVELS - threshold)


@cache
def _scale(rate: float, dtype: torch.dtype) -> tuple[int, Any]:
    """The same, the multiplier as its raw pattern."""
    threshold, scale = level(rate)
    return threshold, _raw(torch.tensor([scale], dtype=dtype))[0]


def _raw(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as an array: bfloat16, which numpy lacks, as its 16-bit patterns."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
