"""What a cohort needs of a machine's memory.

Notation: K trials, P trainable parameters of one, T tokens of a pass, L tokens of a sequence. Formulas: docs/scaling.md.

A cohort holds (1) the backbone's weights, and the values that trials start from; (2) for each trial its parameters, their
gradients, AdamW's two moments and the best epoch's copy; (3) for trials that enter above what never changes, its values
(known.py); (4) while a pass runs, what its backward needs, which grows with the tokens and with the squares of the rows'
lengths. (1) to (3) are counted; (4) depends on family, methods and every kernel on the way, so it is measured (measured.py).

Not covered: what the process holds besides (torch, the tables of tokens, compiled kernels), and what other processes take
meanwhile. Where a prediction fails, `Cohort` makes its passes smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, float64

from fleetune.cohort.company import all_share
from fleetune.cohort.drawn import Drawn, Load, altogether, drawn, load_of
from fleetune.cohort.engine import Engine
from fleetune.cohort.evaluation import evaluation_passes, fitting
from fleetune.cohort.known import MOST_BYTES, Entry
from fleetune.cohort.measured import Cost, Rates, measure
from fleetune.cohort.owned import Owned
from fleetune.cohort.passes import (
    are_divided,
    are_sliced,
    at_once,
    balanced,
    fits_round,
)
from fleetune.cohort.trial import Rows, TrialInput, eval_tokens, rows_within, typical_tokens
from fleetune.methods.base import count_parameters

# Parameter, gradient, two moments, best epoch's copy.
COPIES = 5
# Beside them on a GPU, bytes for each number: where it stands in the tables (`Layout`, kept of a few companies), their values in
# bfloat16, their gradients, and what they are gathered from. Counted, not measured.
STACKED = 30
# The C library's allocator keeps holes, and the kernels a little scratch; measured by tests/cohort/test_memory.py.
OVERHEAD = 0.05


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
    wide = 8 if engine.backbone.dtype == float64 else 4
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


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of some trials before they train."""

    engine: Engine
    inputs: Sequence[TrialInput]
    rates: Rates
    known: int
    """Bytes of what never changes, at whatever number of trials and tokens."""
    drawn: Drawn
    """The micro-batches of their first epoch."""
    padding: float
    """How many rows a pass computes by the token: more than one only in the padded layout, and at most this."""
    longest: int
    """Tokens of the longest row."""

    def needs(self, *, trials: int, tokens: int, parked: int = 0) -> Needs:
        """What so many of them at once take, in passes of so many tokens; parked: how many more keep their states."""
        states = sorted((state_bytes(one, self.engine) for one in self.inputs), reverse=True)
        training, shared_by = self._training(trials, tokens)
        # What is not alone of its trial in a round has a gradient of its own in each pass until all are added.
        gradients = shared_by * sum(states[:trials]) // COPIES if shared_by > 1 else 0
        return Needs(
            backbone_bytes(self.engine),
            sum(states[: trials + parked]) + gradients,
            self.known,
            training,
            self._evaluation(trials, tokens),
        )

    def _training(self, trials: int, tokens: int) -> tuple[int, int]:
        """Bytes of a round's passes where they need most, and how many passes hold a part of one trial."""
        typical = sorted((typical_tokens(one) for one in self.inputs), reverse=True)[:trials]
        count = self._at_once(typical, tokens)
        most = shared_by = 0
        for loads in self.drawn.heaviest(trials, count, tokens, self.rates.training.weigh):
            passes, parts = _passes_of(self.engine, loads, count, tokens)
            most = max(most, self._running(self.rates.training, passes))
            shared_by = max(shared_by, parts)
        return most, shared_by

    def _at_once(self, typical: Sequence[float], tokens: int) -> int:
        """How many micro-batches of each trial a round holds; typical: tokens of one, by which rounds are laid out."""
        ahead = min(one.settings.gradient_accumulation_steps for one in self.inputs)
        shares = all_share([one.method for one in self.inputs], self.engine.backbone.family)
        fits = takewhile(
            lambda n: fits_round([n * b for b in typical], tokens, self.engine),
            range(2, (ahead if shares else 1) + 1),
        )
        return max(fits, default=1)

    def _evaluation(self, trials: int, tokens: int) -> int:
        """Bytes of the passes that run at once where so many trials' evaluation needs most."""
        return max(
            self._running(self.rates.evaluation, _laid(company, tokens, self.engine.lanes.count))
            for company in _companies(self.inputs, trials, tokens)
        )

    def _running(self, cost: Cost, passes: Sequence[Load]) -> int:
        """Bytes of the largest that run at once: one a lane, but one alone where there are fewer (`Lanes.map`)."""
        lanes = self.engine.lanes.count
        held = sorted((self._padded(load) for load in passes), key=cost.of, reverse=True)
        running = held[: lanes if len(held) >= lanes else 1]
        return cost.of(altogether(running), len(running))

    def _padded(self, load: Load) -> Load:
        """What the padded layout makes of a load at most: every row as long as the longest."""
        if self.padding == 1.0:
            return load
        tokens = load.tokens * self.padding
        return Load(tokens, tokens * self.longest)


def estimate(engine: Engine, inputs: Sequence[TrialInput]) -> Estimate:
    """Of these trials; small passes of each distinct method run through the backbone."""
    owned = {
        name: engine.start(given)
        for name, given in {repr(given.method): given for given in inputs}.items()
    }
    longest = _longest(inputs)
    rates = measure(engine, inputs, list(owned.values()), longest)
    known = known_bytes(engine, inputs, [owned[repr(given.method)] for given in inputs])
    padding = 1.0
    if engine.backbone.family.layout != "packed":
        padding = longest / float(np.concatenate([_lengths(g.train) for g in inputs]).mean())
    return Estimate(engine, inputs, rates, known, drawn(inputs), padding, longest)


def _longest(inputs: Sequence[TrialInput]) -> int:
    """Tokens of the longest row that a pass of these may hold."""
    own = {(id(r.table), id(r.rows)): r for g in inputs for r in (g.train, g.selection) if len(r)}
    return max(int(_lengths(rows).max()) for rows in own.values())


def _lengths(rows: Rows) -> NDArray[np.int64]:
    return rows.table.lengths[rows.rows]


def _passes_of(
    engine: Engine, loads: Sequence[Load], count: int, tokens: int
) -> tuple[list[Load], int]:
    """The passes of a round, and how many hold a part of one trial; loads: what each trial brings in `count` micro-batches."""
    lanes = engine.lanes.count
    total = altogether(loads)
    if engine.graphs is not None:
        one = total.tokens / count
        held = min(count, at_once(one, tokens)) * one
        largest = max(load.tokens / count for load in loads)
        share = max(min(tokens, held), largest) / total.tokens
        return [Load(total.tokens * share, total.squares * share)], 1
    slices = [load.tokens for load in loads]
    if count > 1 and are_sliced(slices, tokens, lanes):
        return _grouped(loads, balanced(slices, tokens, lanes)), 1
    divided = lanes if are_divided(len(loads) * count, round(total.tokens), lanes) else 1
    parts = [load / (count * divided) for load in loads for _ in range(count * divided)]
    passes = balanced([part.tokens for part in parts], tokens, lanes)
    return _grouped(parts, passes), min(count * divided, len(passes))


def _grouped(loads: Sequence[Load], passes: Sequence[Sequence[int]]) -> list[Load]:
    return [altogether(loads[i] for i in own) for own in passes]


def _companies(
    inputs: Sequence[TrialInput], trials: int, tokens: int
) -> list[list[tuple[Rows, int]]]:
    """The rows that are scored together, each with the most rows of a batch, where so many trials train at once."""
    judged = [given for given in inputs if len(given.selection)]
    waiting = sorted(
        ((eval_tokens(given, tokens), k) for k, given in enumerate(judged)), reverse=True
    )[:trials]
    # At its end a trial alone is scored on rows that are not known here; those that it was trained on stand for them.
    last = max(inputs, key=lambda given: int(_lengths(given.train).max()))
    found: dict[tuple[int, ...], list[tuple[Rows, int]]] = {
        (): [(last.train, last.settings.per_device_eval_batch_size)]
    }
    while waiting:
        count = fitting((largest for largest, _ in waiting), tokens)
        company, waiting = waiting[:count], waiting[count:]
        own = [judged[k] for _, k in company]
        # Trials that have the same to do are looked at once.
        found.setdefault(
            tuple(largest for largest, _ in company),
            [(given.selection, given.settings.per_device_eval_batch_size) for given in own],
        )
    return list(found.values())


def _laid(company: Sequence[tuple[Rows, int]], tokens: int, lanes: int) -> list[Load]:
    """The passes of some trials' rows; with each the most rows of a batch."""
    lengths = [_lengths(own) for own, _ in company]
    sizes = [rows_within(own, most, tokens) for own, most in company]
    passes = evaluation_passes(lengths, sizes, sum(int(own.sum()) for own in lengths), lanes)
    return [altogether(load_of(lengths[k][places]) for k, places in one) for one in passes]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
