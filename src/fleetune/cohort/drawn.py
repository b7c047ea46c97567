"""What rows ask of a pass, and what trials draw: the order of an epoch's rows, and the load of each round of micro-batches.

Notation: N trials, R rounds of an epoch (of the trial that has most).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.cohort.trial import Rows, TrialInput, epoch_rows


@dataclass(frozen=True, slots=True)
class Load:
    """What a pass has to hold for some rows."""

    tokens: float
    squares: float
    """The sum of the rows' squared lengths, which attention's part follows."""

    def __truediv__(self, parts: int) -> Load:
        return Load(self.tokens / parts, self.squares / parts)


NOTHING = Load(0.0, 0.0)


def altogether(loads: Iterable[Load]) -> Load:
    own = [(one.tokens, one.squares) for one in loads]
    return Load(*(sum(part) for part in zip(*own, strict=True))) if own else NOTHING


def load_of(lengths: NDArray[np.int64]) -> Load:
    """Of rows of so many tokens each."""
    wide = lengths.astype(np.float64)
    return Load(float(wide.sum()), float((wide**2).sum()))


@dataclass(frozen=True, slots=True)
class Drawn:
    """The rounds of a first epoch, as trials that start together have them; who has fewer begins again."""

    tokens: NDArray[np.float64]
    """Of each trial's micro-batch in each round, [N, R]."""
    squares: NDArray[np.float64]
    """Sums of squared lengths, [N, R]."""

    def heaviest(
        self,
        trials: int,
        count: int,
        tokens: int,
        weigh: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    ) -> list[list[Load]]:
        """What each of the trials that have most brings to the rounds that could need most, the largest first.

        count: how many of a trial's micro-batches a round holds. tokens: the most of a pass. weigh: what a pass needs for so many
        tokens and squares. A round that just fits one pass may need more at once than a heavier one that is cut in two, so the
        rounds are the heaviest of those with as many passes, and the ones with the heaviest load and by the token.
        """
        busiest = np.argsort(-self.tokens.sum(1), kind="stable")[:trials]
        starts = np.arange(0, self.tokens.shape[1], count)
        loads = np.add.reduceat(self.tokens[busiest], starts, axis=1)
        squares = np.add.reduceat(self.squares[busiest], starts, axis=1)
        weight = weigh(loads, squares)
        whole, total = weight.sum(0), loads.sum(0)
        passes = np.ceil(total / tokens)
        rounds = {weight.max(0).argmax(), (whole / total).argmax()}
        rounds |= {np.where(passes == n, whole, -1.0).argmax() for n in np.unique(passes)}
        return [
            [
                Load(float(loads[i, at]), float(squares[i, at]))
                for i in np.argsort(-loads[:, at], kind="stable")
            ]
            for at in sorted(rounds)
        ]


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
    load = load_of(rows.table.lengths[rows.rows])
    return max(round(load.squares / load.tokens), 1)


def worst_batch(given: TrialInput) -> int:
    """Tokens of the largest micro-batch that a trial could draw."""
    lengths = np.sort(given.train.table.lengths[given.train.rows])
    return int(lengths[-given.settings.per_device_train_batch_size :].sum())


def _sums(given: TrialInput) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lengths = given.train.table.lengths[epoch_rows(given, 0)].astype(np.float64)
    starts = np.arange(0, len(lengths), given.settings.per_device_train_batch_size)
    return np.add.reduceat(lengths, starts), np.add.reduceat(lengths**2, starts)
