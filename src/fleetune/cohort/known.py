"""What the frozen part of an encoder gives for each row, worked out once.

Below the first layer that a trial trains, the encoder never changes; without dropout, nothing else does. A trial that trains
the head alone enters behind the encoder: what the head reads of each row is known. One that trains upper layers alone
(`layers_to_transform`) enters at the lowest of them: what comes into it is known for each token.

The values of a whole table of tokens are computed at once, when a trial first asks for one of its rows, in passes of fixed
batches: they depend on no trial and no company. They stay in memory: what the head reads in float32 (float64 when computing
in float64), what a layer reads in the compute dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.shortage import if_it_fits
from fleetune.cohort.lanes import Lanes
from fleetune.cohort.open import OpenBackbone
from fleetune.data.packing import pack
from fleetune.data.tokens import TokenTable

Entry = int | None
"""The encoder layer at which a row enters: 0 for the whole encoder, None for the head alone."""
# Of all tables together; a table beyond it goes through the encoder. With 384 numbers a row, what the head reads takes 103 MB
# for all of SST-2, and what a layer reads in bfloat16 about 0.7 GB.
MOST_BYTES = 1 << 30
# Tokens of one pass, padding to its longest row included; on two cores larger passes were no faster (plan.py).
_TOKENS = 4096


class Known:
    """Known values by table and entry, while all of them together stay within `MOST_BYTES`."""

    def __init__(self, backbone: OpenBackbone, lanes: Lanes) -> None:
        self._backbone = backbone
        self._lanes = lanes
        # The tables are kept too, so that no other gets the identity of one that has gone. None: too large for memory.
        self._found: dict[tuple[int, Entry], tuple[TokenTable, Tensor | None]] = {}
        self._bytes = 0

    def holds(self, table: TokenTable, entry: Entry) -> bool:
        """Whether a table's values are there; the first question computes them, if they may take the memory."""
        key = (id(table), entry)
        if key not in self._found:
            self._found[key] = (table, self._tried(table, entry))
        return self._found[key][1] is not None

    def of(self, table: TokenTable, entry: Entry, rows: NDArray[Any]) -> Tensor:
        """The values of some rows of a table that it holds: [rows, D] for the head, [their tokens, D] for a layer."""
        values = self._found[id(table), entry][1]
        assert values is not None, "only what it holds can be asked for"
        return values[_places(table, entry, rows)]

    def size(self, table: TokenTable, entry: Entry) -> int:
        """Bytes of a table's values, whether it holds them or not."""
        count = places(table.lengths, entry)
        dtype = self._backbone.head_dtype if entry is None else self._backbone.dtype
        return count * int(self._backbone.config.hidden_size) * torch.finfo(dtype).bits // 8

    def _tried(self, table: TokenTable, entry: Entry) -> Tensor | None:
        size = self.size(table, entry)
        if self._bytes + size > MOST_BYTES:
            return None
        values = if_it_fits(lambda: self._compute(table, entry))
        if values is not None:
            self._bytes += size
        return values

    def _compute(self, table: TokenTable, entry: Entry) -> Tensor:
        # By length, so that the sequences of one pass fall into few buckets.
        order = np.argsort(-table.lengths, kind="stable")
        batches = _batches(table.lengths[order], order)

        def run(batch: NDArray[np.int64]) -> Tensor:
            packed = pack([(table, batch)])
            with torch.no_grad():
                if entry is None:
                    return self._backbone.pooled(packed).cpu()
                return self._backbone.entering(packed, entry).cpu()

        found = torch.cat(self._lanes.map(run, batches))
        values = torch.empty_like(found)
        values[_places(table, entry, order)] = found
        return values


def places(lengths: NDArray[Any], entry: Entry) -> int:
    """How many places rows of these lengths take where they enter: one a row for the head, one a token for a layer."""
    return len(lengths) if entry is None else int(lengths.sum())


def _batches(lengths: NDArray[Any], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of falling lengths cut into passes."""
    found: list[NDArray[np.int64]] = []
    at = 0
    while at < len(rows):
        count = max(_TOKENS // int(lengths[at]), 1)
        found.append(rows[at : at + count])
        at += count
    return found


def _places(table: TokenTable, entry: Entry, rows: NDArray[Any]) -> Tensor:
    """Where the values of some rows stand: one place a row for the head, one a token for a layer."""
    if entry is None:
        return torch.from_numpy(rows)
    lengths = table.lengths[rows]
    shifts = table.offsets[rows] - (np.cumsum(lengths) - lengths)
    return torch.from_numpy(np.repeat(shifts, lengths) + np.arange(lengths.sum()))
