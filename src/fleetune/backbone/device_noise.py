"""Dropout masks on a GPU: the same promises as noise.py's, other bits, drawn for all trials of a pass at once.

A trial's numbers are named by (seed, step, site, call) and counted in the order of its micro-batch, as there. So a trial
drops the same activations alone and in company on a GPU too, but others than on a CPU.

Not covered: a GPU's own generators, whose bits depend on how many numbers are drawn at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.noise import BatchRows, Blocks, Noise, NoiseKey, level
from fleetune.backbone.philox import Drawn, Streams, multiply
from fleetune.backbone.send import send
from fleetune.seeds import digest


@dataclass(frozen=True, slots=True)
class DeviceNoise(Noise):
    """The dropout of one training pass; one key a micro-batch."""

    _kept: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any], repr=False)
    """Which numbers rows take: the same in every layer."""

    def every(
        self, rates: Sequence[float], out: Tensor, rows: BatchRows, *name: str | int
    ) -> Tensor:
        """As the base class, by one kernel."""
        width = out.shape[1]
        # A table of relative positions may have as many rows as there are tokens, and takes its numbers from the first on.
        padded = tuple(existing is not None for existing in rows.existing)
        kept = ("rows", len(out), width, tuple(rows.before), padded)
        if kept not in self._kept:
            self._kept[kept] = _drawn(_of_rows(rows, width), out.device)
        if any(padded):
            out.fill_(1.0)
        multiply(out, self._kept[kept], self._streams(rates, out, *name))
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
        """As the base class."""
        alone = type(self)([self.keys[batch]])
        return alone.every([rate], out, BatchRows([0, len(out)], [existing], [before]), *name)

    def attention(
        self,
        rate: float,
        buckets: Sequence[Blocks],
        batch_offsets: NDArray[np.int64],
        outs: Sequence[Tensor],
        *name: str | int,
        first_only: bool = False,
    ) -> None:
        """As the base class, by one kernel for each bucket."""
        shapes = [tuple(out.shape) for out in outs]
        kept = ("attention", first_only, *shapes)
        if kept not in self._kept:
            found = self._of_tiles(buckets, batch_offsets, shapes, first_only)
            self._kept[kept] = [_drawn(one, outs[0].device) for one in found]
        streams = self._streams(self.rates(rate), outs[0], *name)
        for out, drawn in zip(outs, self._kept[kept], strict=True):
            multiply(out.view(-1, out.shape[-1]), drawn, streams)

    def _streams(self, rates: Sequence[float], like: Tensor, *name: str | int) -> Streams:
        words = [digest(key.seed, "dropout", key.step, *name)[:8] for key in self.keys]
        levels = [level(rate) for rate in rates]
        scales = torch.tensor([scale for _, scale in levels], dtype=like.dtype)
        return Streams(
            send(np.frombuffer(b"".join(words), dtype=np.int64).copy(), like.device),
            send(np.asarray([threshold for threshold, _ in levels]), like.device),
            send(scales, like.device),
        )

    def _of_tiles(
        self,
        buckets: Sequence[Blocks],
        batch_offsets: NDArray[np.int64],
        shapes: Sequence[tuple[int, ...]],
        first_only: bool,
    ) -> list[tuple[NDArray[np.int64], ...]]:
        """Of each bucket: micro-batch, start, low and high of its rows, a row for each tile, head and query."""
        count = int(batch_offsets[-1])
        lengths = np.zeros(count, dtype=np.int64)
        for b in buckets:
            lengths[b.sequences] = b.lengths
        batch_of = np.repeat(np.arange(len(batch_offsets) - 1), np.diff(batch_offsets))
        sizes = lengths if first_only else lengths**2
        before = np.cumsum(sizes) - sizes
        skipped = [k.tokens_before if first_only else k.squares_before for k in self.keys]
        own = before - before[batch_offsets[:-1]][batch_of] + np.asarray(skipped)[batch_of]
        found: list[tuple[NDArray[np.int64], ...]] = []
        for b, (tiles, heads, queries, _) in zip(buckets, shapes, strict=True):
            whose, start, low, high = np.zeros((4, tiles, heads, queries), dtype=np.int64)
            for sequence, tile, top, left, n in b.corners(first_only):
                rows = 1 if first_only else n
                here = (tile, slice(None), slice(top, top + rows))
                # [heads, rows]: head after head, each row n numbers.
                at = np.arange(heads * rows).reshape(heads, rows) * n
                whose[here], low[here], high[here] = batch_of[sequence], left, left + n
                start[here] = heads * own[sequence] + at - left
            found.append(tuple(values.reshape(-1) for values in (whose, start, low, high)))
        return found


def noise_on(device: torch.device, keys: Sequence[NoiseKey]) -> Noise:
    """The dropout of a pass on a device."""
    return Noise(keys) if device.type == "cpu" else DeviceNoise(keys)


def _of_rows(rows: BatchRows, width: int) -> tuple[NDArray[np.int64], ...]:
    """Micro-batch, start, low and high of each row of activations; padding takes no number."""
    count = rows.bounds[-1]
    trial, place = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    high = np.full(count, width, dtype=np.int64)
    for k, (existing, before) in enumerate(zip(rows.existing, rows.before, strict=True)):
        own = slice(rows.bounds[k], rows.bounds[k + 1])
        trial[own] = k
        if existing is None:
            place[own] = before + np.arange(own.stop - own.start)
        else:
            high[own] = 0
            at = own.start + existing
            high[at], place[at] = width, before + np.arange(len(existing))
    return trial, place * width, np.zeros(count, dtype=np.int64), high


def _drawn(values: Sequence[NDArray[np.int64]], device: torch.device) -> Drawn:
    """Of micro-batch, start, low and high of each row."""
    return Drawn(*(send(one, device) for one in values))
