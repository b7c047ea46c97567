"""Rows of tokenised text laid end to end: many trials' batches as one stream, without padding.

Notation: K trials, M micro-batches, B sequences of all trials together, T tokens of all sequences together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from fleetune.data.tokens import TokenTable


@dataclass(frozen=True, slots=True)
class Packed:
    """One packed stream. Sequences of one trial are contiguous, in the trial's own order."""

    ids: NDArray[np.int64]
    """Token ids, [T]."""
    positions: NDArray[np.int64]
    """Place of each token in its sequence, from 0, [T]."""
    type_ids: NDArray[np.int64] | None
    """Segment ids, [T], where the tokenizer gives them."""
    offsets: NDArray[np.int64]
    """Where each sequence starts, and T at the end, [B + 1]."""
    trials: NDArray[np.int64]
    """Where each trial's sequences start, and B at the end, [K + 1]."""
    batches: NDArray[np.int64]
    """Where each micro-batch's start, and B at the end, [M + 1]: of a trial it has one or several, one after the other."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [B]."""
        return np.diff(self.offsets)


def pack(
    parts: Sequence[tuple[TokenTable, NDArray[np.int64]]], counts: Sequence[int] | None = None
) -> Packed:
    """Lay the given rows of each trial's table end to end; `parts` holds one pair a micro-batch.

    counts: how many of them each trial has, [K]; None: one.
    """
    # Neighbours that take rows of the same table are gathered at once.
    runs = [list(run) for _, run in groupby(parts, key=lambda part: id(part[0]))]
    gathered = [_gather(run[0][0], np.concatenate([rows for _, rows in run])) for run in runs]
    lengths = np.concatenate([length for _, _, length in gathered])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    positions = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    types = [types for _, types, _ in gathered]
    batches = np.cumsum([0, *(len(rows) for _, rows in parts)])
    return Packed(
        ids=np.concatenate([ids for ids, _, _ in gathered]).astype(np.int64),
        positions=positions,
        type_ids=None
        if any(t is None for t in types)
        else np.concatenate([t for t in types if t is not None]).astype(np.int64),
        offsets=offsets,
        trials=batches if counts is None else batches[np.cumsum([0, *counts])],
        batches=batches,
    )


def _gather(
    table: TokenTable, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None, NDArray[np.int64]]:
    """Tokens, segment ids and lengths of some rows, without a loop over them."""
    starts = table.offsets[rows]
    lengths = table.offsets[rows + 1] - starts
    ends = np.cumsum(lengths)
    index = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return table.ids[index], None if table.type_ids is None else table.type_ids[index], lengths
