"""What passes of some methods need of memory, measured on the loaded backbone: every allocation of small passes is counted.

Notation: T tokens of a pass, S the sum of its rows' squared lengths, L tokens of a row.

A pass needs `fixed + by_token T + by_square S` bytes: what its backward keeps of activations grows with T, and attention's
weights with S. Two passes of rows of a usual length give the line by T; one trial's passes at two lengths give the slope by S.

Not covered: rows so short that attention's weights are not what is largest at the worst moment; the slope is then a little high.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fleetune.backbone.device_noise import noise_on
from fleetune.backbone.noise import Noise, NoiseKey
from fleetune.cohort.company import all_share
from fleetune.cohort.drawn import Load, typical_length
from fleetune.cohort.engine import Engine
from fleetune.cohort.owned import Owned
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.data.packing import Packed, pack
from fleetune.data.tokens import TokenTable

# Tokens of the two passes that are measured: enough that attention's tiles are as full as in a large pass.
_PROBE_TOKENS = (512, 1536)
# Rows are measured up to this length where the data have longer ones: beyond it what a pass needs grows with S as before it.
_LONG = 512


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes alive at once at the worst moment of a pass."""

    fixed: float
    by_token: float
    by_square: float

    def of(self, load: Load, passes: int = 1) -> int:
        """Bytes for a load in so many passes side by side."""
        return round(
            self.fixed * passes + self.by_token * load.tokens + self.by_square * load.squares
        )

    def weigh(
        self, tokens: NDArray[np.float64], squares: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What grows with the load, element by element."""
        return self.by_token * tokens + self.by_square * squares


@dataclass(frozen=True, slots=True)
class Rates:
    """What passes of some methods need, beyond weights and states."""

    training: Cost
    evaluation: Cost


# One trial's share of a pass, and what runs it.
_Work = Callable[[Sequence[Owned], Packed], Callable[[], None]]


def measure(
    engine: Engine, inputs: Sequence[TrialInput], owned: Sequence[Owned], longest: int
) -> Rates:
    """What passes of these trials need; owned: what one of each method has; longest: tokens of the longest row.

    Each method takes part with as many tokens as every other, and all with dropout where one has it; where they cannot share a
    pass, each is measured alone, and the most counts. No trial is changed, nor is the backbone.
    """
    lengths = _lengths(max(typical_length(rows) for rows in _train_rows(inputs)), longest)
    rates = {given.settings.dropout for given in inputs}
    # None: the model's own, which may be none.
    rate = max((own for own in rates if own), default=None if None in rates else 0.0)
    shares = all_share([given.method for given in inputs], engine.backbone.family)
    together = [owned] if shares else [[one] for one in owned]
    costs = [_costs(engine, company, lengths, rate) for company in together]
    if engine.graphs is not None:
        for one in owned:
            engine.graphs.forget(one)
    return Rates(*(_highest(each) for each in zip(*costs, strict=True)))


def _train_rows(inputs: Sequence[TrialInput]) -> list[Rows]:
    """Each selection of rows once."""
    return list({id(given.train.rows): given.train for given in inputs}.values())


def _lengths(usual: int, longest: int) -> tuple[int, int, int]:
    """The usual length of rows, and two that lie clearly apart: the usual one and a longer one where there are such rows."""
    if longest >= 1.5 * usual:
        return usual, usual, min(longest, max(_LONG, 2 * usual))
    return usual, max(usual // 2, 1), usual


def _costs(
    engine: Engine, owned: Sequence[Owned], lengths: tuple[int, int, int], rate: float | None
) -> tuple[Cost, Cost]:
    """What these trials' passes need, in training and in evaluation."""
    device = engine.backbone.device

    def noise(trials: int) -> Noise:
        return noise_on(device, [NoiseKey(0, 0, rate)] * trials)

    def train(own: Sequence[Owned], packed: Packed) -> Callable[[], None]:
        drawn = noise(len(own))
        return lambda: _backward(engine, own, packed, drawn)

    def judge(own: Sequence[Owned], packed: Packed) -> Callable[[], None]:
        return lambda: _forward(engine, own, packed)

    if device.type == "cuda":
        # Libraries take memory for good when they are first called, and what trials own is laid out in tables.
        _backward(engine, owned, _even(len(owned), 1, lengths[0]), noise(len(owned)))
    return _cost(engine, owned, lengths, train), _cost(engine, owned, lengths, judge)


def _cost(
    engine: Engine, owned: Sequence[Owned], lengths: tuple[int, int, int], work: _Work
) -> Cost:
    usual, short, long = lengths
    by_square = _by_square(engine, owned, short, long, work)
    points: list[tuple[int, int]] = []
    for tokens in _PROBE_TOKENS:
        rows = -(-tokens // (usual * len(owned))) + len(points)
        packed = _even(len(owned), rows, usual)
        points.append((rows * usual * len(owned), _peak(engine, work(owned, packed))))
    (t0, low), (t1, high) = points
    slope = (high - low) / (t1 - t0)
    return Cost(max(low - slope * t0, 0.0), max(slope - by_square * usual, 0.0), by_square)


def _by_square(engine: Engine, owned: Sequence[Owned], short: int, long: int, work: _Work) -> float:
    """Bytes by S: what a token of long rows needs more than one of short rows, in passes of as many tokens.

    By the trial alone whose backward reaches deepest, since what is kept of a token is the same for all of a pass.
    """
    if long == short:
        return 0.0
    deepest = min(owned, key=lambda one: math.inf if one.lowest_layer is None else one.lowest_layer)
    by_token: list[float] = []
    for length in (short, long):
        rows = -(-max(_PROBE_TOKENS[0], long) // length)
        packed = _even(1, rows, length)
        by_token.append(_peak(engine, work([deepest], packed)) / (rows * length))
    return max((by_token[1] - by_token[0]) / (long - short), 0.0)


def _highest(costs: Sequence[Cost]) -> Cost:
    """One that none of these needs more than."""
    return Cost(
        max(cost.fixed for cost in costs),
        max(cost.by_token for cost in costs),
        max(cost.by_square for cost in costs),
    )


def _even(trials: int, rows: int, length: int) -> Packed:
    """A stream of equal sequences. Which tokens they hold does not matter."""
    table = TokenTable(
        ids=np.zeros(rows * length, dtype=np.int32),
        offsets=np.arange(rows + 1, dtype=np.int64) * length,
        type_ids=None,
        truncated=0,
        max_length=length,
    )
    return pack([(table, np.arange(rows))] * trials)


def _backward(engine: Engine, owned: Sequence[Owned], packed: Packed, noise: Noise) -> None:
    engine.logits(owned, packed, noise).sum().backward()


def _forward(engine: Engine, owned: Sequence[Owned], packed: Packed) -> None:
    with torch.inference_mode():
        engine.logits(owned, packed, None)


def _peak(engine: Engine, run: Callable[[], None]) -> int:
    """Bytes alive at the worst moment of a run, beyond those before it."""
    device = engine.backbone.device
    if device.type != "cuda":
        with _Allocations() as counted:
            run()
        return counted.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What goes in is older than this mode, or known; only what comes out can be new.
        for tensor in _tensors((*args, *(kwargs or {}).values())):
            self._see(tensor, 0)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._see(tensor, tensor.untyped_storage().nbytes())
        return out

    def _see(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = (size, weakref.ref(storage, lambda _: self._gone(key)))
        self.held += size
        self.peak = max(self.peak, self.held)

    def _gone(self, key: int) -> None:
        self.held -= self._alive.pop(key)[0]


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Operators take and give tensors alone, or in tuples and lists."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for each in tree:
            yield from _tensors(each)
