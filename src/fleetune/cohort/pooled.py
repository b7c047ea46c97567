"""What the head reads of each row, worked out once: for trials that train the head alone, the encoder never changes.

The vectors of a whole table of tokens are computed at once, when a trial first asks for one of its rows, in passes of
fixed batches: they depend on no trial and no company. They stay in memory, float32 (float64 when computing in float64).

Not covered: activations inside the encoder, for methods that train its upper layers alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.cohort.lanes import Lanes
from fleetune.cohort.open import OpenBackbone
from fleetune.cohort.shortage import is_out_of_memory
from fleetune.data.packing import pack
from fleetune.data.tokens import TokenTable

# All of SST-2 takes 103 MB with 384 numbers a row; beyond this, head-only trials go through the encoder as others do.
MOST_BYTES = 1 << 30
_BATCH = 64


class PooledCache:
    """The pooled vectors of tables, [rows, D], while all of them together stay within `MOST_BYTES`."""

    def __init__(self, backbone: OpenBackbone, lanes: Lanes) -> None:
        self._backbone = backbone
        self._lanes = lanes
        # The tables are kept too, so that no other gets the identity of one that has gone. None: too large for memory.
        self._found: dict[int, tuple[TokenTable, Tensor | None]] = {}
        self._bytes = 0

    def holds(self, table: TokenTable) -> bool:
        """Whether a table's vectors are there; the first question computes them, if they may take the memory."""
        if id(table) not in self._found:
            self._found[id(table)] = (table, self._tried(table))
        return self._found[id(table)][1] is not None

    def of(self, table: TokenTable) -> Tensor:
        """The vectors of every row of a table that it holds."""
        vectors = self._found[id(table)][1]
        assert vectors is not None, "only what it holds can be asked for"
        return vectors

    def _tried(self, table: TokenTable) -> Tensor | None:
        backbone = self._backbone
        width = int(backbone.config.hidden_size)
        size = len(table) * width * torch.finfo(backbone.head_dtype).bits // 8
        if self._bytes + size > MOST_BYTES:
            return None
        try:
            vectors = self._compute(table)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        self._bytes += size
        return vectors

    def _compute(self, table: TokenTable) -> Tensor:
        # By length, so that the sequences of one pass fall into few buckets.
        order = np.argsort(-table.lengths, kind="stable")
        batches = [order[at : at + _BATCH] for at in range(0, len(order), _BATCH)]

        def run(batch: NDArray[np.int64]) -> Tensor:
            with torch.no_grad():
                return self._backbone.pooled(pack([(table, batch)])).cpu()

        found = torch.cat(self._lanes.map(run, batches))
        vectors = torch.empty_like(found)
        vectors[torch.from_numpy(order)] = found
        return vectors
