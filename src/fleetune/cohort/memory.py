"""What a cohort needs of a machine's memory.

Notation: K trials, P trainable parameters of one, T tokens of a pass, L tokens of a sequence. Formulas: docs/scaling.md.

A cohort holds (1) the backbone's weights, and the values that trials start from; (2) for each trial its parameters, their
gradients, AdamW's two moments and the best epoch's copy; (3) for trials that enter above what never changes, its values
(known.py); (4) while a pass runs, what its backward needs, which grows with the tokens. (1) to (3) are counted; (4) depends
on family, methods and every kernel on the way, so it is not modelled but measured: small passes of these very methods
through this backbone, every allocation counted, give a rate by the token.

Not covered: what the process holds besides (torch, the tables of tokens, compiled kernels), and what other processes take
meanwhile. Where a prediction fails, `Cohort` makes its passes smaller.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fleetune.backbone.device_noise import noise_on
from fleetune.backbone.noise import Noise, NoiseKey
from fleetune.cohort.company import all_share
from fleetune.cohort.drawn import Drawn, drawn, typical_length
from fleetune.cohort.engine import Engine
from fleetune.cohort.evaluation import evaluation_passes, fitting
from fleetune.cohort.known import MOST_BYTES, Entry
from fleetune.cohort.owned import Owned
from fleetune.cohort.passes import (
    are_divided,
    are_sliced,
    at_once,
    balanced,
    fits_round,
)
from fleetune.cohort.trial import Rows, TrialInput, eval_tokens, rows_within, typical_tokens
from fleetune.data.packing import Packed, pack
from fleetune.data.tokens import TokenTable
from fleetune.methods.base import count_parameters

# Parameter, gradient, two moments, best epoch's copy.
COPIES = 5
# Beside them on a GPU, bytes for each number: where it stands in the tables (`Layout`, kept of a few companies), their values in
# bfloat16, their gradients, and what they are gathered from. Counted, not measured.
STACKED = 30
# The C library's allocator keeps holes, and the kernels a little scratch; measured by tests/cohort/test_memory.py.
OVERHEAD = 0.05
# Tokens of the two passes that are measured: enough that attention's tiles are as full as in a large pass.
_PROBE_TOKENS = (512, 1536)


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes alive at once at the worst moment of a pass: `fixed + by_token * T`."""

    fixed: float
    by_token: float

    def at(self, tokens: int, passes: int = 1) -> int:
        """Bytes at so many tokens, in so many passes side by side."""
        return round(self.fixed * passes + self.by_token * tokens)

    def within(self, budget: float) -> int:
        """The most tokens that so many bytes hold."""
        return max(int((budget - self.fixed) / self.by_token), 0) if self.by_token else 1 << 40


@dataclass(frozen=True, slots=True)
class Rates:
    """What passes of some methods need, beyond weights and states."""

    training: Line
    evaluation: Line
    length: int
    """Tokens of the sequences that were measured: attention's share of the rate grows with them."""
    judged: int
    """The same in evaluation."""
    known: int
    """Bytes, at whatever number of trials and tokens."""
    drawn: Drawn
    """The micro-batches of their first epoch."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a cohort takes, in bytes."""

    backbone: int
    """Weights in their compute dtype, and the values that trials start from in float32 (float64 in float64)."""
    states: int
    """Of all trials that train at once, with the gradients of their parts where they are divided among lanes."""
    known: int
    """Values that never change, of every table that one of them reads above the encoder's first layer."""
    training: int
    """The largest training passes, one in each lane."""
    evaluation: int
    """The same in evaluation."""

    @property
    def beyond_backbone(self) -> int:
        """What is still to be had once the backbone is loaded."""
        passes = max(self.training, self.evaluation)
        return round((self.states + self.known + passes) * (1 + OVERHEAD))

    @property
    def total(self) -> int:
        return self.backbone + self.beyond_backbone


# -- counted --------------------------------------------------------------------------------------


def backbone_bytes(engine: Engine) -> int:
    """Weights as the engine holds them, and the starting values beside them."""
    weights = [*engine.backbone.model.parameters(), *engine.backbone.model.buffers()]
    every = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights}
    return sum(every.values()) + sum(_bytes(value) for value in engine.pretrained.values())


def state_bytes(given: TrialInput, engine: Engine) -> int:
    """One trial's parameters, gradients, moments and best copy; a further copy while a group of micro-batches runs."""
    wide = 8 if engine.backbone.dtype == torch.float64 else 4
    accumulates = given.settings.gradient_accumulation_steps > 1
    count = count_parameters(given.method, engine.sites).total
    stacked = 0 if engine.graphs is None else STACKED
    return count * (wide * (COPIES + accumulates) + stacked)


def known_bytes(engine: Engine, inputs: Sequence[TrialInput], owned: Sequence[Owned]) -> int:
    """Of the tables that these trials read above the encoder's first layer; owned: their states.

    Their training tables too, though dropout may send them through all of the encoder: a trial's own rows may be scored at
    its end.
    """
    sizes: dict[tuple[int, Entry], int] = {}
    for given, own in zip(inputs, owned, strict=True):
        entry = engine.highest_entry(own, dropout=0.0)
        for rows in (given.train, given.selection):
            if len(rows) and entry != 0:
                sizes[id(rows.table), entry] = engine.known.size(rows.table, entry)
    # A table that alone is too large goes through the encoder; of the others whatever fits is kept, in the order asked for.
    return min(sum(size for size in sizes.values() if size <= MOST_BYTES), MOST_BYTES)


def needs(
    engine: Engine,
    inputs: Sequence[TrialInput],
    rates: Rates,
    *,
    trials: int,
    tokens: int,
    parked: int = 0,
) -> Needs:
    """What these trials take, so many at once, in passes of so many tokens; parked: how many more keep their states."""
    states = sorted((state_bytes(given, engine) for given in inputs), reverse=True)
    batches = sorted((round(typical_tokens(given)) for given in inputs), reverse=True)[:trials]
    padding = padding_share(engine, inputs)
    passes, shared_by = _passes_of(engine, inputs, batches, rates.drawn.heaviest(trials), tokens)
    lanes = engine.lanes.count
    running = _side_by_side(passes, lanes)
    judged = _side_by_side(_evaluated(inputs, trials, tokens, lanes), lanes)
    # What is not alone of its trial in a round has a gradient of its own in each pass until all are added.
    gradients = shared_by * sum(states[:trials]) // COPIES if shared_by > 1 else 0
    return Needs(
        backbone_bytes(engine),
        sum(states[: trials + parked]) + gradients,
        rates.known,
        rates.training.at(round(sum(running) * padding), len(running)),
        rates.evaluation.at(round(sum(judged) * padding), len(judged)),
    )


def _passes_of(
    engine: Engine,
    inputs: Sequence[TrialInput],
    typical: Sequence[int],
    heaviest: Sequence[float] | NDArray[np.float64],
    tokens: int,
) -> tuple[list[float], int]:
    """The tokens of each pass of a round, and how many passes hold a part of one trial.

    typical: tokens of each trial's micro-batches on the average, by which rounds are laid out. heaviest: in the round that has
    most, where a round holds one of each.
    """
    lanes = engine.lanes.count
    ahead = min(given.settings.gradient_accumulation_steps for given in inputs)
    shares = all_share([given.method for given in inputs], engine.backbone.family)
    most = ahead if shares else 1
    several = takewhile(
        lambda n: fits_round([n * b for b in typical], tokens, engine), range(2, most + 1)
    )
    count = max(several, default=1)
    batches = typical if count > 1 else [float(n) for n in heaviest]
    if engine.graphs is not None:
        held = min(count, at_once(sum(batches), tokens)) * sum(batches)
        return [float(max(min(tokens, held), max(batches)))], 1
    slices = [float(count * n) for n in batches]
    if count > 1 and are_sliced(slices, tokens, lanes):
        return [sum(slices[i] for i in own) for own in balanced(slices, tokens, lanes)], 1
    sizes = [float(n) for n in batches for _ in range(count)]
    divided = lanes if are_divided(len(sizes), round(count * sum(batches)), lanes) else 1
    sizes = [n / divided for n in sizes for _ in range(divided)]
    passes = [sum(sizes[i] for i in own) for own in balanced(sizes, tokens, lanes)]
    return passes, min(count * divided, len(passes))


def _side_by_side(passes: Sequence[float], lanes: int) -> list[float]:
    """The tokens of the largest passes that run at once: one a lane, but one alone where there are fewer (`Lanes.map`)."""
    count = lanes if len(passes) >= lanes else 1
    return sorted(passes, reverse=True)[:count]


def _evaluated(inputs: Sequence[TrialInput], trials: int, tokens: int, lanes: int) -> list[float]:
    """The tokens of each pass where so many trials' evaluation needs most."""
    judged = [given for given in inputs if len(given.selection)]
    waiting = sorted(
        ((eval_tokens(given, tokens), k) for k, given in enumerate(judged)), reverse=True
    )[:trials]
    # At its end a trial alone is scored on rows that are not known here; those that it was trained on stand for them.
    last = max(inputs, key=lambda given: int(given.train.table.lengths[given.train.rows].max()))
    companies: dict[tuple[int, ...], list[tuple[Rows, int]]] = {
        (): [(last.train, last.settings.per_device_eval_batch_size)]
    }
    while waiting:
        count = fitting((largest for largest, _ in waiting), tokens)
        company, waiting = waiting[:count], waiting[count:]
        own = [judged[k] for _, k in company]
        # Trials that have the same to do are looked at once.
        companies.setdefault(
            tuple(largest for largest, _ in company),
            [(given.selection, given.settings.per_device_eval_batch_size) for given in own],
        )
    found = [_laid(company, tokens, lanes) for company in companies.values()]
    return max(found, key=lambda passes: sum(_side_by_side(passes, lanes)))


def _laid(company: Sequence[tuple[Rows, int]], tokens: int, lanes: int) -> list[float]:
    """The tokens of each pass of some trials' rows; with each the most rows of a batch."""
    lengths = [own.table.lengths[own.rows] for own, _ in company]
    sizes = [rows_within(own, most, tokens) for own, most in company]
    passes = evaluation_passes(lengths, sizes, sum(int(own.sum()) for own in lengths), lanes)
    return [sum(float(lengths[k][places].sum()) for k, places in one) for one in passes]


def padding_share(engine: Engine, inputs: Sequence[TrialInput]) -> float:
    """How many rows a pass computes by the token: more than one only in the padded layout, and at most this."""
    if engine.backbone.family.layout == "packed":
        return 1.0
    lengths = np.concatenate([g.train.table.lengths[g.train.rows] for g in inputs])
    return float(lengths.max() / lengths.mean())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# -- measured -------------------------------------------------------------------------------------


def measure(engine: Engine, inputs: Sequence[TrialInput]) -> Rates:
    """What passes of these trials' methods need, by two small passes in training and two in evaluation.

    Each distinct method takes part once, with as many tokens as every other; where they cannot share a pass, each is measured
    alone, and the most counts. No trial is changed, nor is the backbone.
    """
    distinct = {repr(given.method): given for given in inputs}
    kinds = list(distinct.values())
    draws = drawn(inputs)
    length = max(round(draws.longest()), *(typical_length(given.train) for given in kinds))
    # At its end a trial is scored on other rows, of which those that it was trained on tell the length.
    judged = max(typical_length(own) for g in kinds for own in (g.train, g.selection) if len(own))
    owned = [engine.start(given) for given in kinds]
    rate = max((k.settings.dropout for k in kinds if k.settings.dropout is not None), default=None)
    if any(k.settings.dropout is None for k in kinds):
        rate = None
    shares = all_share([given.method for given in kinds], engine.backbone.family)
    together = [owned] if shares else [[one] for one in owned]
    lines = [_lines(engine, company, length, judged, rate) for company in together]
    training, evaluation = (_highest(each) for each in zip(*lines, strict=True))
    state_of = dict(zip(distinct, owned, strict=True))
    known = known_bytes(engine, inputs, [state_of[repr(given.method)] for given in inputs])
    if engine.graphs is not None:
        for one in owned:
            engine.graphs.forget(one)
    return Rates(training, evaluation, length, judged, known, draws)


def _lines(
    engine: Engine, owned: Sequence[Owned], length: int, judged: int, rate: float | None
) -> tuple[Line, Line]:
    """What these trials' passes need by the token, in training and in evaluation; length, judged: of the sequences there."""
    device = engine.backbone.device

    def noise() -> Noise:
        return noise_on(device, [NoiseKey(0, 0, rate) for _ in owned])

    def train(packed: Packed) -> Callable[[], None]:
        drawn_here = noise()
        return lambda: _backward(engine, owned, packed, drawn_here)

    if device.type == "cuda":
        # Libraries take memory for good when they are first called, and what trials own is laid out in tables.
        _backward(engine, owned, _even(len(owned), 1, length), noise())
    training = _line(engine, len(owned), length, train)
    evaluation = _line(
        engine, len(owned), judged, lambda packed: lambda: _forward(engine, owned, packed)
    )
    return training, evaluation


def _line(
    engine: Engine, trials: int, length: int, work: Callable[[Packed], Callable[[], None]]
) -> Line:
    """Through the peaks of two passes of equal sequences."""
    points: list[tuple[int, int]] = []
    for tokens in _PROBE_TOKENS:
        rows = -(-tokens // (length * trials)) + len(points)
        points.append((rows * length * trials, _peak(engine, work(_even(trials, rows, length)))))
    (t0, low), (t1, high) = points
    return Line(max(low - (high - low) / (t1 - t0) * t0, 0.0), (high - low) / (t1 - t0))


def _highest(lines: Sequence[Line]) -> Line:
    """A line that none of these rises above."""
    return Line(max(line.fixed for line in lines), max(line.by_token for line in lines))


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
