"""What one pass through the backbone carries besides the hidden states: where trials and sequences begin and end.

Notation: K trials, B sequences, T tokens, L tokens of the longest sequence. In the packed layout the hidden states are
`[1, T, D]`, in the padded one `[B, L, D]`; after pooling both are `[B, ..., D]`. "Rows" are all but the last axis laid
flat; the rows of one trial are always contiguous, which is what lets every leaf act on slices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.noise import Noise

# A sequence joins the bucket of a longer one while it is at least this long: shorter steps would save padding but cost
# more and smaller products. Assumption, to be measured.
BUCKET_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences of near-equal length whose attention is computed together, padded to the longest of them."""

    sequences: NDArray[np.int64]
    """Their numbers in the stream."""
    length: int
    """Tokens of the longest."""
    valid: Tensor | None
    """Which of [b, length] are tokens and not padding; None when all are."""


@dataclass(frozen=True)
class Stream:
    """The layout of one pass.

    sequence_offsets: where each sequence's tokens start, and T at the end, [B + 1].
    trial_offsets: where each trial's sequences start, and B at the end, [K + 1].
    noise: dropout of the trials; None for evaluation.
    """

    sequence_offsets: NDArray[np.int64]
    trial_offsets: NDArray[np.int64]
    layout: Literal["packed", "padded"]
    device: torch.device
    noise: Noise | None = None
    calls: dict[str, int] = field(default_factory=dict[str, int])
    """How often each leaf has run in this pass: shared leaves (albert) and heads run more than once."""

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [B]."""
        return np.diff(self.sequence_offsets)

    @property
    def n_trials(self) -> int:
        return len(self.trial_offsets) - 1

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
        """Rows of the hidden states before pooling: T packed, B * L padded."""
        return self.n_tokens if self.layout == "packed" else self.n_sequences * self.longest

    @cached_property
    def token_bounds(self) -> list[int]:
        """Where each trial's token rows start, and their number at the end, [K + 1]."""
        if self.layout == "packed":
            return self.sequence_offsets[self.trial_offsets].tolist()
        return (self.trial_offsets * self.longest).tolist()

    @cached_property
    def sequence_bounds(self) -> list[int]:
        """Where each trial's sequence rows start, and B at the end, [K + 1]."""
        return self.trial_offsets.tolist()

    def bounds(self, rows: int) -> list[int]:
        """Where each trial's part of so many rows starts, and their number at the end, [K + 1]."""
        # Token rows first: where both counts agree, each sequence has one row and both bounds are the same.
        if rows == self.n_token_rows:
            return self.token_bounds
        if rows == self.n_sequences:
            return self.sequence_bounds
        # Rows that belong to no token or sequence, such as a table of relative positions.
        assert self.n_trials == 1, f"{rows} rows belong to no trial, so trials cannot share them"
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

    def existing(self, rows: int, trial: int) -> NDArray[np.int64] | None:
        """Which of one trial's token rows hold tokens, counted from its first; None where all of them count."""
        if self.token_rows is None or rows != self.n_token_rows:
            return None
        low, high = self.token_bounds[trial], self.token_bounds[trial + 1]
        return self.token_rows[(self.token_rows >= low) & (self.token_rows < high)] - low

    def next_call(self, name: str) -> int:
        """How many times this leaf ran before in this pass."""
        before = self.calls.get(name, 0)
        self.calls[name] = before + 1
        return before

    @cached_property
    def first_tokens(self) -> Tensor:
        """The packed row of each sequence's first token, [B]."""
        return torch.from_numpy(self.sequence_offsets[:-1]).to(self.device)

    @cached_property
    def sequence_of_token(self) -> Tensor:
        """The sequence of each packed token, [T]."""
        return torch.from_numpy(np.repeat(np.arange(self.n_sequences), self.lengths)).to(
            self.device
        )

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The sequences by length, longest first, in groups of near-equal length."""
        order = np.argsort(-self.lengths, kind="stable")
        groups: list[list[int]] = []
        for sequence in order.tolist():
            n = self.lengths[sequence]
            if not groups or n < BUCKET_SHARE * self.lengths[groups[-1][0]]:
                groups.append([])
            groups[-1].append(sequence)
        return tuple(self._bucket(np.asarray(group)) for group in groups)

    def _bucket(self, sequences: NDArray[np.int64]) -> Bucket:
        lengths = self.lengths[sequences]
        length = int(lengths.max())
        if (lengths == length).all():
            return Bucket(sequences, length, None)
        valid = np.arange(length)[None, :] < lengths[:, None]
        return Bucket(sequences, length, torch.from_numpy(valid).to(self.device))

    @cached_property
    def regrouping(self) -> tuple[Tensor, Tensor]:
        """Index from stream to buckets and back.

        The first, [P], names for each place of all buckets laid end to end the packed row that goes there (padding
        repeats the sequence's first token); the second, [T], names for each packed row its place in the buckets.
        """
        there: list[NDArray[np.int64]] = []
        back = np.empty(self.n_tokens, dtype=np.int64)
        place = 0
        for bucket in self.buckets:
            starts = self.sequence_offsets[bucket.sequences]
            steps = np.arange(bucket.length)[None, :]
            real = steps < self.lengths[bucket.sequences][:, None]
            rows = np.where(real, starts[:, None] + steps, starts[:, None]).reshape(-1)
            places = place + np.arange(rows.size)
            back[rows[real.reshape(-1)]] = places[real.reshape(-1)]
            there.append(rows)
            place += rows.size
        index = np.concatenate(there)
        return torch.from_numpy(index).to(self.device), torch.from_numpy(back).to(self.device)


class Current:
    """The stream of the pass now running; every opened leaf holds the same one."""

    stream: Stream | None = None
    active: Any = None
    """What the trials of the pass own, as the leaves look it up (see `cohort.layers`)."""

    def require(self) -> Stream:
        """The stream of this pass."""
        assert self.stream is not None, "an opened backbone runs only inside a pass"
        return self.stream
