"""Dropout masks, each trial's from its own stream, whoever else is in the pass.

The bits of one mask are named by (seed, step, site, call) of the trial, and by the sequence as well for attention. They
depend on nothing else: not on the trial's place in the cohort, nor on how sequences are grouped or padded. So a trial
drops the same activations alone and in company, and a resumed trial needs no stored generator.

Bits come from SFC64 (numpy), its state set from a hash of the name; 16 bits decide one activation. A rate is rounded to
a multiple of 2^-16, and kept activations are scaled by what was really kept, so the expectation is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.seeds import digest

_LEVELS = 1 << 16


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """What decides one trial's masks in one pass."""

    seed: int
    step: int
    """The trial's micro-batches before this one, from its start."""
    rate: float | None = None
    """Replaces every dropout rate of the backbone; None keeps them."""
    rows_before: int = 0
    """Sequences of the trial's micro-batch that other passes hold and that come before this one's."""
    tokens_before: int = 0
    """Their tokens."""


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


@dataclass(frozen=True, slots=True)
class Noise:
    """The dropout of one training pass; one key a trial."""

    keys: Sequence[NoiseKey]
    _source: np.random.SFC64 = field(default_factory=lambda: np.random.SFC64(0), repr=False)

    def rates(self, rate: float) -> list[float]:
        """Each trial's rate at a place where the backbone has this one."""
        return [rate if key.rate is None else key.rate for key in self.keys]

    def bits(self, trial: int, count: int, *name: str | int, skipped: int = 0) -> NDArray[np.int16]:
        """So many uniform 16-bit numbers, -32768 to 32767, of one trial and purpose, after those that are skipped."""
        key = self.keys[trial]
        words = np.frombuffer(digest(key.seed, "dropout", key.step, *name), dtype=np.uint64)
        self._source.state = {
            "bit_generator": "SFC64",
            "state": {"state": words},
            "has_uint32": 0,
            "uinteger": 0,
        }
        raw: NDArray[np.uint64] = self._source.random_raw(-(-(skipped + count) // 4))  # type: ignore[assignment]
        return raw.view(np.int16)[skipped : skipped + count]

    def rows(
        self,
        trial: int,
        rate: float,
        out: Tensor,
        existing: NDArray[np.int64] | None,
        before: int,
        *name: str | int,
    ) -> Tensor:
        """Write the multiplier of one trial's rows of activations into `out`, [rows, width], and return it.

        0 where dropped, 1 / kept share elsewhere. existing: which of the rows hold tokens; padding gets no bits, since its
        amount depends on the company, and is multiplied by 1. None where every row counts. before: rows of the
        trial's micro-batch that come before these and are not in this pass.
        """
        skipped = before * out.shape[1]
        if existing is None:
            return multiply_into(out, self.bits(trial, out.numel(), *name, skipped=skipped), rate)
        own = out.new_empty(len(existing), out.shape[1])
        multiply_into(own, self.bits(trial, own.numel(), *name, skipped=skipped), rate)
        out.fill_(1.0)
        out[torch.from_numpy(existing).to(out.device)] = own
        return out

    def attention(
        self,
        rate: float,
        blocks: Blocks,
        trial_offsets: NDArray[np.int64],
        out: Tensor,
        *name: str | int,
        first_only: bool = False,
    ) -> Tensor:
        """Write the multipliers of sequences' attention probabilities into `out`, [tiles, heads, Q, L], and return it.

        The backbone's rate holds where a trial's key has none. What lies beyond the sequences stays as it was. first_only:
        of each sequence the probabilities of its first token alone, Q counts a tile's sequences.
        """
        rates, heads = self.rates(rate), out.shape[1]
        owners = np.searchsorted(trial_offsets, blocks.sequences, side="right") - 1
        before = np.asarray([key.rows_before for key in self.keys])
        own = blocks.sequences - trial_offsets[owners] + before[owners]
        host = out if out.is_cpu else out.cpu()
        raw = _raw(host)
        of_sequence = (owners, own, blocks.tiles, blocks.starts, blocks.lengths, blocks.slots)
        for trial, number, tile, start, n, slot in zip(
            *(values.tolist() for values in of_sequence), strict=True
        ):
            queries = slice(slot, slot + 1) if first_only else slice(start, start + n)
            block = raw[tile, :, queries, start : start + n]
            bits = self.bits(trial, block.size, *name, number).reshape(heads, -1, n)
            _multiply(block, bits, rates[trial], out.dtype)
        return out if out.is_cpu else out.copy_(host)


def multiply_into(out: Tensor, drawn: NDArray[np.int16], rate: float) -> Tensor:
    """Write 0 where the drawn number falls below the rate, 1 / kept share elsewhere; `out` has as many numbers."""
    if out.is_cpu and out.is_contiguous():
        _multiply(_raw(out), drawn.reshape(out.shape), rate, out.dtype)
        return out
    return out.copy_(multiply_into(torch.empty(out.shape, dtype=out.dtype), drawn, rate))


def _multiply(out: NDArray[Any], drawn: NDArray[np.int16], rate: float, dtype: torch.dtype) -> None:
    threshold = min(round(rate * _LEVELS), _LEVELS - 1)
    scale = _raw(torch.tensor([_LEVELS / (_LEVELS - threshold)], dtype=dtype))[0]
    kept = np.greater_equal(drawn, threshold - _LEVELS // 2)
    # numpy, and for bfloat16 on its bit patterns (that of 0 is 0): torch compares 16-bit integers and turns truth values
    # into bfloat16 one by one, which takes four times as long altogether.
    np.multiply(kept.view(np.uint8), scale, out=out, dtype=out.dtype)


def _raw(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as an array: bfloat16, which numpy lacks, as its 16-bit patterns."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
