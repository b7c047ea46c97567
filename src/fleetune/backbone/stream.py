"""What one pass through the backbone carries besides the hidden states: where trials and sequences begin and end.

Notation: K trials, M micro-batches, B sequences, T tokens, L tokens of the longest sequence. In the packed layout the hidden
states are `[1, T, D]`, in the padded one `[B, L, D]`; after pooling both are `[B, ..., D]`. "Rows" are all but the last axis laid
flat; the rows of one trial are always contiguous, which is what lets every leaf act on slices. A trial's micro-batches
follow one another; each has dropout of its own, and to all else they are one slice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.laid import Laid, LaidRows
from fleetune.backbone.noise import BatchRows, Blocks, Noise
from fleetune.backbone.send import send

# A sequence joins the bucket of a longer one while it is at least this long: shorter steps would save padding but cost
# more and smaller products. Assumption, to be measured.
BUCKET_SHARE = 0.85
# Sequences up to this length share tiles of this length with others of their trial. On a CPU the softmax over rows of 32
# bfloat16 numbers and its gradient take 2 ns a number, over rows of 13 they take 17 (docs/lab-notes.md, "short rows").
TILE = 32


@dataclass(frozen=True, slots=True)
class Bucket(Blocks):
    """Tiles of one length whose attention is computed together: [n_tiles, length].

    A tile holds one sequence, or several short ones of the same trial, one after the other; the rest is padding. A trial
    whose numbers are no longer finite thus spoils tiles of its own only.
    """

    n_tiles: int
    length: int

    def owners(self) -> NDArray[np.int64]:
        """The slot of the sequence that each place of each tile belongs to, -1 for padding, [n_tiles, length]."""
        found = np.full((self.n_tiles, self.length), -1, dtype=np.int64)
        placed = zip(self.tiles, self.starts, self.lengths, self.slots, strict=True)
        for tile, start, n, slot in placed:
            found[tile, start : start + n] = slot
        return found

    def visible(self, window: int | None, *, first_only: bool) -> NDArray[np.bool_] | None:
        """Which places each query may look at, [n_tiles, queries, length]; None where each may look at all.

        window: places i and j see each other where |i - j| <= window - 1. Queries are all places, or the first of each
        sequence alone; one axis of length 1 stands for queries that all see the same. Padding looks at the tile's first
        sequence, so that its softmax has a value.
        """
        owner = self.owners()
        wide = window is None or self.length <= window
        if wide and (owner == 0).all():
            return None
        if wide and (owner <= 0).all():
            return (owner == 0)[:, None, :]
        asks = np.maximum(owner, 0)
        seen = asks[:, :, None] == owner[:, None, :]
        if not wide:
            place = np.arange(self.length)
            near = np.abs(place[:, None] - place[None, :]) < window
            seen &= near[None] | (owner < 0)[:, :, None]
        return np.take_along_axis(seen, self.firsts()[:, :, None], axis=1) if first_only else seen

    def firsts(self) -> NDArray[np.int64]:
        """Where each sequence of each tile starts, [n_tiles, most sequences of a tile]; 0 where a tile has fewer."""
        slots = self.slots
        found = np.zeros((self.n_tiles, int(slots.max()) + 1), dtype=np.int64)
        found[self.tiles, slots] = self.starts
        return found


class _Bounds(NamedTuple):
    """Where the rows of trials, or of micro-batches, start, and their number at the end."""

    tokens: list[int]
    sequences: list[int]


@dataclass(frozen=True)
class Stream:
    """The layout of one pass.

    sequence_offsets: where each sequence's tokens start, and T at the end, [B + 1].
    trial_offsets: where each trial's sequences start, and B at the end, [K + 1]. batches: where each micro-batch's start, and B
    at the end, [M + 1]; None: each trial has one. noise: dropout of the micro-batches; None for evaluation.
    first_tokens_only: the last layer, behind its keys and values, is computed for each sequence's first token alone, since
    nothing else is read.
    """

    sequence_offsets: NDArray[np.int64]
    trial_offsets: NDArray[np.int64]
    layout: Literal["packed", "padded"]
    device: torch.device
    noise: Noise | None = None
    first_tokens_only: bool = False
    laid: Laid | None = None
    """The same on a GPU that does all trials at once (`laid.py`); packed layout only."""
    spare: int = 0
    """Rows at the end that hold no token; they count as the last trial's."""
    batches: NDArray[np.int64] | None = None
    multiple: int = 1
    """Tiles of sequences longer than TILE have a multiple of this length."""
    pooled: Tensor | None = None
    """What the head reads of each sequence, [B, D], where it is known already: then no encoder runs."""
    entry: tuple[int, Tensor] | None = None
    """An encoder layer and what comes into it, [T, D], where that is known already: then no layer below it runs."""
    asked: int | None = None
    """The encoder layer whose input is all that is wanted of this pass: it goes into `kept`, and no layer from it on runs."""
    calls: dict[str, int] = field(default_factory=dict[str, int])
    """How often each leaf has run in this pass: shared leaves (albert) and heads run more than once."""
    kept: dict[Any, Any] = field(default_factory=dict[Any, Any])
    """What was worked out for one layer and holds for the next ones too: indices and masks of attention."""

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [B]."""
        return np.diff(self.sequence_offsets)

    @property
    def n_trials(self) -> int:
        return len(self.trial_offsets) - 1

    @property
    def batch_offsets(self) -> NDArray[np.int64]:
        """Where each micro-batch's sequences start, and B at the end, [M + 1]."""
        return self.trial_offsets if self.batches is None else self.batches

    @cached_property
    def batches_of(self) -> list[range]:
        """Each trial's micro-batches, by their numbers in the pass, [K]."""
        if len(self.batch_offsets) == len(self.trial_offsets):
            return [range(k, k + 1) for k in range(self.n_trials)]
        cuts = np.searchsorted(self.batch_offsets, self.trial_offsets).tolist()
        return [range(low, high) for low, high in pairwise(cuts)]

    @cached_property
    def n_sequences(self) -> int:
        return len(self.sequence_offsets) - 1

    @cached_property
    def n_tokens(self) -> int:
        return int(self.sequence_offsets[-1])

    @cached_property
    def longest(self) -> int:
        return int(self.lengths.max())

    @cached_property
    def n_token_rows(self) -> int:
        """Rows of the hidden states before pooling: T and the spare ones packed, B * L padded."""
        return (
            self.n_tokens + self.spare
            if self.layout == "packed"
            else self.n_sequences * self.longest
        )

    @cached_property
    def _trial_bounds(self) -> _Bounds:
        return self._bounds_of(self.trial_offsets)

    @cached_property
    def _batch_bounds(self) -> _Bounds:
        return self._bounds_of(self.batch_offsets)

    def _bounds_of(self, offsets: NDArray[np.int64]) -> _Bounds:
        if self.layout == "packed":
            found: list[int] = self.sequence_offsets[offsets].tolist()
            return _Bounds([*found[:-1], found[-1] + self.spare], offsets.tolist())
        return _Bounds((offsets * self.longest).tolist(), offsets.tolist())

    def bounds(self, rows: int) -> list[int]:
        """Where each trial's part of so many rows starts, and their number at the end, [K + 1]."""
        return self._in(self._trial_bounds, rows)

    def batch_bounds(self, rows: int) -> list[int]:
        """Where each micro-batch's part of so many rows starts, and their number at the end, [M + 1]."""
        return self._in(self._batch_bounds, rows)

    def reduce(self) -> None:
        """From here on, a sequence has one row: whatever ran with this stream before had its tokens."""
        self.kept["reduced"] = True

    def _kind(self, rows: int) -> Literal["tokens", "sequences"] | None:
        """What so many rows are. Where each sequence has one token, their number does not say, and the place in the pass does."""
        tokens, sequences = rows == self.n_token_rows, rows == self.n_sequences
        if tokens and not (sequences and "reduced" in self.kept):
            return "tokens"
        return "sequences" if sequences else None

    def laid_rows(self, rows: int) -> LaidRows:
        """Whose so many rows are, where the pass is laid out on its device."""
        assert self.laid is not None
        return self.laid.sequences if self._kind(rows) == "sequences" else self.laid.tokens

    def _in(self, bounds: _Bounds, rows: int) -> list[int]:
        kind = self._kind(rows)
        if kind is not None:
            return bounds.tokens if kind == "tokens" else bounds.sequences
        # Rows that belong to no token or sequence, such as a table of relative positions.
        alone = len(bounds.tokens) == 2
        assert alone, f"{rows} rows belong to no trial, so trials cannot share them"
        return [0, rows]

    @cached_property
    def token_rows(self) -> NDArray[np.int64] | None:
        """The rows that hold tokens in the padded layout, [T]; None in the packed one, where all do."""
        if self.layout == "packed":
            return None
        starts = np.arange(self.n_sequences) * self.longest
        return np.concatenate(
            [start + np.arange(n) for start, n in zip(starts, self.lengths, strict=True)]
        )

    def holds(self, lead: tuple[int, ...]) -> Literal["tokens", "sequences"] | None:
        """What the rows of activations [*lead, width] stand for; None: neither, such as a table of relative positions.

        Limit: beside a single sequence, deberta-v2's projections see such a table as they see tokens, [1, rows, D], and take
        it for them where both have as many rows; so they do for sequences where their number is the table's.
        """
        rows = math.prod(lead)
        kind = self._kind(rows)
        if kind == "tokens" and not (
            self.layout == "packed" or lead == (self.n_sequences, self.longest)
        ):
            return "sequences" if rows == self.n_sequences else None
        return kind

    def existing(self, lead: tuple[int, ...], batch: int) -> NDArray[np.int64] | None:
        """Which of a micro-batch's rows of [*lead, width] hold tokens, counted from its first; None where all of them count."""
        if self.token_rows is None or self.holds(lead) != "tokens":
            return None
        low, high = self._batch_bounds.tokens[batch : batch + 2]
        return self.token_rows[(self.token_rows >= low) & (self.token_rows < high)] - low

    def before(self, lead: tuple[int, ...], batch: int) -> int:
        """How many rows of a micro-batch come before its rows of this pass, [*lead, width], and are not in it.

        None before those that stand for nothing in it: every part of a micro-batch holds all of them.
        """
        assert self.noise is not None
        key = self.noise.keys[batch]
        counts = {"tokens": key.tokens_before, "sequences": key.rows_before, None: 0}
        return counts[self.holds(lead)]

    def batch_rows(self, lead: tuple[int, ...]) -> BatchRows:
        """Of which micro-batch each row of [*lead, width] is, for dropout."""
        batches = range(len(self.batch_offsets) - 1)
        return BatchRows(
            self.batch_bounds(math.prod(lead)),
            [self.existing(lead, m) for m in batches],
            [self.before(lead, m) for m in batches],
        )

    def by_batch(self, values: Sequence[float]) -> list[float]:
        """Each trial's value for each of its micro-batches, [M]."""
        return [value for value, own in zip(values, self.batches_of, strict=True) for _ in own]

    def next_call(self, name: str) -> int:
        """How many times this leaf ran before in this pass."""
        before = self.calls.get(name, 0)
        self.calls[name] = before + 1
        return before

    @cached_property
    def first_tokens(self) -> Tensor:
        """The packed row of each sequence's first token, [B]."""
        if self.laid is not None:
            return self.laid.first_tokens
        return send(self.sequence_offsets[:-1], self.device)

    @cached_property
    def sequence_of_token(self) -> Tensor:
        """The sequence of each packed token, [T]."""
        return send(np.repeat(np.arange(self.n_sequences), self.lengths), self.device)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The sequences in tiles: the long ones by near-equal length, longest first, then the short ones."""
        order = np.argsort(-self.lengths, kind="stable")
        long = order[self.lengths[order] > TILE]
        groups: list[list[int]] = []
        for sequence in long.tolist():
            n = int(self.lengths[sequence])
            if not groups or self._tile(n) < BUCKET_SHARE * self._tile(
                int(self.lengths[groups[-1][0]])
            ):
                groups.append([])
            groups[-1].append(sequence)
        found = [self._bucket(np.asarray(g), np.arange(len(g)), np.zeros(len(g))) for g in groups]
        if len(long) < len(order):
            found.append(self._tiled(order[len(long) :]))
        return tuple(found)

    def _tiled(self, short: NDArray[np.int64]) -> Bucket:
        """Each trial's short sequences, longest first, each into the trial's first tile with room."""
        trials = np.searchsorted(self.trial_offsets, short, side="right") - 1
        short = short[np.argsort(trials, kind="stable")]
        tiles, starts = np.empty(len(short), np.int64), np.empty(len(short), np.int64)
        filled: list[int] = []
        first, trial = 0, -1
        for i, (sequence, own) in enumerate(
            zip(short.tolist(), np.sort(trials).tolist(), strict=True)
        ):
            if own != trial:
                first, trial = len(filled), own
            n = int(self.lengths[sequence])
            at = next((t for t in range(first, len(filled)) if filled[t] + n <= TILE), len(filled))
            if at == len(filled):
                filled.append(0)
            tiles[i], starts[i] = at, filled[at]
            filled[at] += n
        by_tile = np.lexsort((starts, tiles))
        return self._bucket(short[by_tile], tiles[by_tile], starts[by_tile], TILE)

    def _tile(self, length: int) -> int:
        return -(-length // self.multiple) * self.multiple

    def _bucket(
        self, sequences: NDArray[Any], tiles: NDArray[Any], starts: NDArray[Any], length: int = 0
    ) -> Bucket:
        lengths = self.lengths[sequences]
        return Bucket(
            sequences.astype(np.int64),
            tiles.astype(np.int64),
            starts.astype(np.int64),
            lengths,
            int(tiles.max()) + 1,
            length or self._tile(int(lengths.max())),
        )


class Current(threading.local):
    """The stream of the pass now running; every opened leaf holds the same one. Each thread has a pass of its own."""

    stream: Stream | None = None
    active: Any = None
    """What the trials of the pass own, as the leaves look it up (see `cohort.layers`)."""

    def require(self) -> Stream:
        """The stream of this pass."""
        assert self.stream is not None, "an opened backbone runs only inside a pass"
        return self.stream
