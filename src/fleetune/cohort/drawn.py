"""What trials draw: the order of an epoch's rows, and how many tokens each round of micro-batches has.

Notation: N trials, R rounds of an epoch (of the trial that has most).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.cohort.trial import Rows, TrialInput, epoch_rows


@dataclass(frozen=True, slots=True)
class Drawn:
    """The rounds of a first epoch, as trials that start together have them; who has fewer begins again."""

    tokens: NDArray[np.float64]
    """Of each trial's micro-batch in each round, [N, R]."""
    squares: NDArray[np.float64]
    """Sums of squared lengths, [N, R]."""

    def heaviest(self, trials: int) -> NDArray[np.float64]:
        """The tokens of each micro-batch, the largest first, in the round that has most: of the trials with most in all."""
        busiest = np.argsort(-self.tokens.sum(1), kind="stable")[:trials]
        own = self.tokens[busiest]
        return np.sort(own[:, own.sum(0).argmax()])[::-1]

    def longest(self) -> float:
        """The length whose sequences need by the token what those of a round need, where that is most."""
        return float((self.squares.sum(0) / self.tokens.sum(0)).max())


def drawn(inputs: Sequence[TrialInput]) -> Drawn:
    """What these trials draw in their first epoch."""
    found = [_sums(given) for given in inputs]
    rounds = max(tokens.size for tokens, _ in found)
    tokens, squares = (
        np.stack([np.resize(one, rounds) for one in part]) for part in zip(*found, strict=True)
    )
    return Drawn(tokens, squares)


def typical_length(rows: Rows) -> int:
    """The length whose sequences need by the token what these rows need: the mean over tokens, not over rows."""
    lengths = rows.table.lengths[rows.rows].astype(np.float64)
    return max(round(float((lengths**2).sum() / lengths.sum())), 1)


def worst_batch(given: TrialInput) -> int:
    """Tokens of the largest micro-batch that a trial could draw."""
    lengths = np.sort(given.train.table.lengths[given.train.rows])
    return int(lengths[-given.settings.per_device_train_batch_size :].sum())


def _sums(given: TrialInput) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lengths = given.train.table.lengths[epoch_rows(given, 0)].astype(np.float64)
    starts = np.arange(0, len(lengths), given.settings.per_device_train_batch_size)
    return np.add.reduceat(lengths, starts), np.add.reduceat(lengths**2, starts)
