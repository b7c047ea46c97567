"""How the rows that trials are evaluated on are laid into passes.

Passes side by side must weigh the same, or one lane waits for another: rows that go side by side are neighbours in length. And
the sequences of one pass are neighbours in length too, so that they fall into few buckets.

Not covered: the passes themselves (engine.py), and when memory does not suffice for them (train.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, takewhile

import numpy as np
from numpy.typing import NDArray

# Of a pass, where lanes have each their own. Half of what training asks (passes.py), since there is no gradient; with 16 and
# more requests at once 192 answered a tenth to a fifth more of them than 384, and 96 no more (two cores, MiniLM, by hand).
LEAST_TOKENS = 192

Batch = tuple[int, NDArray[np.int64]]
"""Of which trial, by its place, and which of its rows, by theirs."""


def fitting(largest: Iterable[int], max_tokens: int) -> int:
    """How many of the first trials are evaluated together: as many as have their largest batches fit one pass; at least one.

    largest: tokens of each one's largest batch (`eval_tokens`); no more of them are asked for than it takes.
    """
    return max(sum(1 for _ in takewhile(lambda held: held <= max_tokens, accumulate(largest))), 1)


def evaluation_passes(
    lengths: Sequence[NDArray[np.int64]], batch_sizes: Sequence[int], tokens: int, lanes: int
) -> list[list[Batch]]:
    """The passes of some trials' rows; every row is in one of them, and a pass has a batch of each trial, in their order.

    lengths: tokens of each trial's rows. batch_sizes: the most rows that each may have in a pass. tokens: what all passes hold
    (`places`). As many passes as fill the lanes evenly, if they suffice for that (`LEAST_TOKENS` each).
    """
    least = max(-(-len(own) // size) for own, size in zip(lengths, batch_sizes, strict=True))
    even = -(-least // lanes) * lanes
    fills = tokens >= LEAST_TOKENS * even
    count, side_by_side = (even, lanes) if fills else (least, 1)
    dealt = [_dealt(own, count // side_by_side, side_by_side) for own in lengths]
    passes = [[(k, own[i]) for k, own in enumerate(dealt) if len(own[i])] for i in range(count)]
    return [one for one in passes if one]


def _dealt(lengths: NDArray[np.int64], turns: int, side_by_side: int) -> list[NDArray[np.int64]]:
    """The places of a trial's rows in so many passes for each turn, the longest first; numbers of rows differ by one at most."""
    cut = np.array_split(np.argsort(-lengths, kind="stable"), turns)
    return [turn[lane::side_by_side] for turn in cut for lane in range(side_by_side)]
