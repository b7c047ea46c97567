"""Where the rows of a pass lie, as a GPU reads it: whose each row is, which of the trial's, and where each trial's end.

A pass on a GPU is laid out on the processor, all of it before the first kernel, and sent in one piece; nothing in the pass
asks for more. So the same kernels can run again on the next pass's numbers (cohort/graphs.py).

Rows at the end of the stream may hold no token ("spare"): they belong to the last trial, take the token that pads, are
seen by no sequence and have no gradient, so they change nothing.

Notation: K trials, M micro-batches (of a trial one or several, one after the other), B sequences, T rows of tokens with the
spare ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.noise import NoiseKey, level
from fleetune.backbone.send import send
from fleetune.seeds import digest

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class LaidRows:
    """Rows of activations of all trials, end to end."""

    trial: Tensor
    """Whose each row is, [N], int32."""
    batch: Tensor
    """Of which micro-batch each row is, [N], int32: that decides its dropout."""
    place: Tensor
    """Its number among the rows of its micro-batch, [N], int32."""
    ends: Tensor
    """Where each trial's rows end, [K], int32."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What a dropout drops, for each micro-batch."""

    thresholds: Tensor
    """A number of 16 bits below it is dropped, [M], int32."""
    scales: Tensor
    """What is kept is multiplied by it, [M], float32."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Which bits a dropout takes."""

    keys: Tensor
    """[M], int64."""
    levels: Levels
    site: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Laid:
    """One pass on its device."""

    tokens: LaidRows
    sequences: LaidRows
    offsets: Tensor
    """Where each sequence's tokens start, and their end, [B + 1], int32."""
    before: Tensor
    """Words of 128 bits, a head, that its micro-batch's earlier sequences take for attention's dropout, [B], int64."""
    first_tokens: Tensor
    """The row of each sequence's first token, [B], int64."""
    keys: Tensor
    """Of each micro-batch's dropout, [M], int64; zero without dropout."""
    longest: int
    """No sequence has more tokens."""
    levels: dict[tuple[float, ...], Levels] = field(default_factory=dict[tuple[float, ...], Levels])
    """What was sent of dropout rates before; shared by the passes of an engine."""

    @property
    def block(self) -> int:
        """How many rows of a sequence attention works on at once."""
        return block_of(len(self.tokens.trial), len(self.sequences.trial))

    def drawing(self, rates: Sequence[float], *site: str | int) -> Drawing:
        """A dropout at a place in the model, each micro-batch's at its own rate; rates: [M]."""
        return Drawing(self.keys, self.levels_of(rates), site_words(*site))

    def levels_of(self, rates: Sequence[float]) -> Levels:
        """The levels of each micro-batch's rate; sent once."""
        key = tuple(rates)
        if key not in self.levels:
            found = [level(rate) for rate in rates]
            device = self.keys.device
            self.levels[key] = Levels(
                send(np.asarray([threshold for threshold, _ in found], np.int32), device),
                send(np.asarray([scale for _, scale in found], np.float32), device),
            )
        return self.levels[key]


@dataclass(frozen=True, slots=True)
class Asked:
    """What attention is asked for (varlen.py)."""

    laid: Laid
    scale: float
    window: int | None
    """Tokens see each other where |i - j| <= window - 1; None: all of a sequence."""
    first_only: bool
    """Only the first token of each sequence asks; the other rows are zero."""
    drawing: Drawing | None


def block_of(rows: int, sequences: int) -> int:
    """How many rows of a sequence attention works on at once: what holds most sequences, 16 to 64."""
    typical = rows / max(sequences, 1)
    return 16 if typical <= 16 else 32 if typical <= 32 else 64


def arrays(
    offsets: NDArray[np.int64],
    trials: NDArray[np.int64],
    keys: Sequence[NoiseKey] | None,
    spare: int = 0,
    batches: NDArray[np.int64] | None = None,
) -> Arrays:
    """The arrays of a pass. offsets, trials, batches: as in `Packed`, None where each trial has one micro-batch; keys: of
    each one's dropout, and what of it comes before its rows."""
    batches = trials if batches is None else batches
    lengths, counts = np.diff(offsets), np.diff(batches)
    ends, cuts = offsets[trials[1:]].copy(), offsets[batches[1:]].copy()
    ends[-1:] += spare
    cuts[-1:] += spare
    whose = np.repeat(np.arange(len(counts)), counts)
    words = lengths * eighths(lengths)
    before = np.cumsum(words) - words
    skipped = np.zeros((len(counts), 3), np.int64)
    if keys is not None:
        skipped[:] = [(key.tokens_before, key.rows_before, key.words_before) for key in keys]
    rows = _rows(ends, cuts, skipped[:, 0])
    sequences = _rows(trials[1:], batches[1:], skipped[:, 1])
    return {
        **{f"tokens.{name}": value for name, value in rows.items()},
        **{f"sequences.{name}": value for name, value in sequences.items()},
        "offsets": offsets.astype(np.int32),
        "before": before
        - before[batches[:-1].clip(max=max(len(before) - 1, 0))][whose]
        + skipped[whose, 2],
        "first_tokens": offsets[:-1].astype(np.int64),
        "keys": np.zeros(len(counts), np.int64) if keys is None else _keys(keys),
    }


def laid(on_device: Mapping[str, Tensor], longest: int, levels: dict[tuple[float, ...], Levels]) -> Laid:  # fmt: skip
    """The pass whose arrays these are."""
    rows = {
        part: LaidRows(
            *(on_device[f"{part}.{name}"] for name in ("trial", "batch", "place", "ends"))
        )
        for part in ("tokens", "sequences")
    }
    others = {n: on_device[n] for n in ("offsets", "before", "first_tokens", "keys")}
    return Laid(rows["tokens"], rows["sequences"], **others, longest=longest, levels=levels)


def eighths(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Words of 128 bits that rows of such widths take: a number of 16 bits a column, the last ones left over."""
    return (widths + 7) // 8


@cache
def site_words(*name: str | int) -> tuple[int, int]:
    """Two words of 31 bits that stand for a place in the model."""
    found = digest(0, "site", *name)
    low, high = (int.from_bytes(found[i : i + 4], "little") for i in (0, 4))
    return low & 0x7FFFFFFF, high & 0x7FFFFFFF


def _rows(ends: NDArray[np.int64], cuts: NDArray[np.int64], before: NDArray[np.int64]) -> Arrays:
    """ends, cuts: where each trial's and each micro-batch's rows end; before: how many of a micro-batch's come before these."""
    counts = np.diff(cuts, prepend=0)
    batch = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(batch)) - np.repeat(cuts - counts - before, counts)
    trial = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    found = {"trial": trial, "batch": batch, "place": place, "ends": ends}
    return {name: value.astype(np.int32) for name, value in found.items()}


def _keys(keys: Sequence[NoiseKey]) -> NDArray[np.int64]:
    words = b"".join(digest(key.seed, "dropout", key.step)[:8] for key in keys)
    return np.frombuffer(words, np.int64).copy()
