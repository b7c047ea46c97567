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


@dataclass(frozen=True, slots=True)
class Noise:
    """The dropout of one training pass; one key a trial."""

    keys: Sequence[NoiseKey]
    _source: np.random.SFC64 = field(default_factory=lambda: np.random.SFC64(0), repr=False)

    def rates(self, rate: float) -> list[float]:
        """Each trial's rate at a place where the backbone has this one."""
        return [rate if key.rate is None else key.rate for key in self.keys]

    def bits(self, trial: int, count: int, *name: str | int) -> NDArray[np.int16]:
        """So many uniform 16-bit numbers, -32768 to 32767, of one trial and purpose."""
        key = self.keys[trial]
        words = np.frombuffer(digest(key.seed, "dropout", key.step, *name), dtype=np.uint64)
        self._source.state = {
            "bit_generator": "SFC64",
            "state": {"state": words},
            "has_uint32": 0,
            "uinteger": 0,
        }
        raw: NDArray[np.uint64] = self._source.random_raw(-(-count // 4))  # type: ignore[assignment]
        return raw.view(np.int16)[:count]

    def rows(
        self,
        trial: int,
        rate: float,
        shape: tuple[int, int],
        existing: NDArray[np.int64] | None,
        like: Tensor,
        *name: str | int,
    ) -> Tensor:
        """The multiplier of one trial's rows of activations: 0 where dropped, 1 / kept share elsewhere; [rows, width].

        existing: which of the rows hold tokens; padding gets no bits, since its amount depends on the company. None
        where every row counts.
        """
        if existing is None:
            return multiplier(self.bits(trial, shape[0] * shape[1], *name), rate, like).view(shape)
        out = like.new_ones(shape)
        own = self.bits(trial, len(existing) * shape[1], *name)
        out[torch.from_numpy(existing)] = multiplier(own, rate, like).view(-1, shape[1])
        return out

    def attention(
        self,
        rate: float,
        sequences: NDArray[np.int64],
        lengths: NDArray[np.int64],
        trial_offsets: NDArray[np.int64],
        out: Tensor,
        *name: str | int,
    ) -> Tensor:
        """Write the multipliers of some sequences' attention probabilities into `out`, [b, heads, L, L], and return it.

        The backbone's rate holds where a trial's key has none. `out` must come filled with ones.
        """
        rates = self.rates(rate)
        owners = np.searchsorted(trial_offsets, sequences, side="right") - 1
        for place, (sequence, trial) in enumerate(
            zip(sequences.tolist(), owners.tolist(), strict=True)
        ):
            if rates[trial] == 0.0:
                continue
            n, heads = int(lengths[sequence]), out.shape[1]
            own = sequence - int(trial_offsets[trial])
            block = multiplier(self.bits(trial, heads * n * n, *name, own), rates[trial], out)
            out[place, :, :n, :n] = block.view(heads, n, n)
        return out


def multiplier(drawn: NDArray[np.int16], rate: float, like: Tensor) -> Tensor:
    """0 where the drawn number falls below the rate, 1 / kept share elsewhere; dtype and device of `like`, flat."""
    threshold = round(rate * _LEVELS)
    kept = _LEVELS - threshold
    mask = torch.from_numpy(drawn) >= threshold - _LEVELS // 2
    return mask.to(device=like.device, dtype=like.dtype).mul_(_LEVELS / kept)
