"""A round's micro-batches laid into passes, and one pass: forward, losses, backward.

Notation: K trials of a pass, M parts, B sequences of all of them.

A round holds the next micro-batch of every trial, and more of their accumulation groups: until the step they depend on nothing
but the same weights. So a few trials keep the lanes as busy as many do, and small micro-batches of one trial go through a pass
as one slice of it. A pass holds whole micro-batches where their number fills the lanes evenly, and an equal part of every
micro-batch where it does not (one trial on two cores, say). A part draws the dropout that its rows have in the whole micro-batch,
and weighs what they weigh there, so all of this is the same computation up to the order of sums.

Not covered: what happens when a pass fails, and the steps that follow (train.py).
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.device_noise import noise_on
from fleetune.backbone.laid import eighths
from fleetune.backbone.noise import NoiseKey
from fleetune.backbone.send import make_current, send
from fleetune.cohort.company import all_share
from fleetune.cohort.engine import Engine
from fleetune.cohort.graphs import Work
from fleetune.cohort.known import Entry, places
from fleetune.cohort.loss import Targets, sequence_losses, sums
from fleetune.cohort.tables import Tables
from fleetune.cohort.trial import Trial
from fleetune.data.packing import pack

# From so many trials a lane on, one trial more or less on a lane makes little difference.
EVEN_ENOUGH = 4
# A part of fewer tokens costs more in calls than a second lane gives: MiniLM on two cores trained one trial on SST-2, 220
# tokens a micro-batch, at two thirds of the speed in two parts (docs/lab-notes.md, "parts of a micro-batch").
LEAST_TOKENS = 384
# A trial's micro-batches of one pass are one slice of it. Until a slice holds this share of a pass, what its calls cost is
# worth a longer round.
SLICE = 0.25
# A round on a GPU has up to so many passes: the processor lays out all but the first while the GPU works, and between rounds it
# waits for it.
ROUND_PASSES = 8


@dataclass(frozen=True, eq=False)
class Part:
    """Some neighbouring rows of a trial's micro-batch."""

    trial: Trial
    rows: NDArray[np.int64]
    total: int
    """Rows of the whole micro-batch."""
    entry: Entry = 0
    """Where these rows enter the encoder (`Engine.entry`)."""
    ahead: int = 0
    """Which micro-batch of this round it is, of this trial."""
    siblings: int = 1
    """Parts of this trial in the round, with this one."""
    rows_before: int = 0
    """Rows of the micro-batch before these."""
    tokens_before: int = 0
    """Their tokens."""
    squares_before: int = 0
    """The sum of their squared lengths."""
    words_before: int = 0
    """As `NoiseKey` has it."""

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.trial.given.train.table.lengths[self.rows]

    @cached_property
    def tokens(self) -> int:
        """Tokens that its pass holds for it: one a row where the encoder is left out."""
        return places(self.lengths, self.entry)

    @property
    def noise_key(self) -> NoiseKey:
        """What decides its dropout."""
        return replace(
            self.trial.noise_key(self.ahead),
            rows_before=self.rows_before,
            tokens_before=self.tokens_before,
            squares_before=self.squares_before,
            words_before=self.words_before,
        )


@dataclass(frozen=True, slots=True)
class Passed:
    """What one pass gave."""

    parts: tuple[Part, ...]
    losses: Tensor
    """Each part's share of its micro-batch's mean loss, [M]."""
    gradients: tuple[tuple[Tensor, Tensor], ...]
    """Gradients still to be added, with what they are added to; none where the pass has all of its trials: then they
    have been."""
    tables: Tables | None
    """On a GPU, those that trials own stacked."""
    seconds: float
    """From its first operation to its last; of a GPU, until the last was handed over."""

    def add_gradients(self) -> None:
        """Add them; passes do so one after the other, so that the sum has one order."""
        if self.tables is not None:
            self.tables.add_gradients()
        for into, gradient in self.gradients:
            into.add_(gradient)

    def added(self) -> Passed:
        """The same once its gradients are added: it holds no memory for them."""
        self.add_gradients()
        return replace(self, gradients=(), tables=None)


def micro_batches(engine: Engine, trials: Sequence[Trial], max_tokens: int = 0) -> list[Part]:
    """The next micro-batch of each trial, whole or, where that pays, in as many parts as there are lanes.

    First those that leave the encoder out. max_tokens: of a pass; while `fits_round` says so, the micro-batches after these are
    among them, of every trial as many, none beyond its accumulation group. Those of a trial follow one another.
    """
    of = [[_part(trial, 0, _entry(engine, trial))] for trial in trials]
    if all_share([t.given.method for t in trials], engine.backbone.family):
        for ahead in range(1, min((trial.left_in_group for trial in trials), default=0)):
            more = [[*own, _part(own[0].trial, ahead, own[0].entry)] for own in of]
            if not fits_round([_tokens(engine, own) for own in more], max_tokens, engine):
                break
            of = more
    quick = [part for own in of for part in own if part.entry is None]
    slow = [part for own in of for part in own if part.entry is not None]
    every = [*quick, *_in_parts(slow, engine.lanes.count)]
    counts = Counter(part.trial.id for part in every)
    return [replace(part, siblings=counts[part.trial.id]) for part in every]


def _part(trial: Trial, ahead: int, entry: Entry) -> Part:
    """The whole micro-batch so many after a trial's next one."""
    rows = trial.batch(ahead)
    return Part(trial, rows, len(rows), entry, ahead)


def _tokens(engine: Engine, own: Sequence[Part]) -> float:
    """Tokens of a trial's micro-batches; on a GPU those that they have on the average, so that rounds have one form."""
    typical = len(own) * own[0].trial.typical
    return sum(part.tokens for part in own) if engine.graphs is None else typical


def fits_round(tokens: Sequence[float], max_tokens: int, engine: Engine) -> bool:
    """Whether a round may hold several micro-batches of each trial, so many tokens of each altogether.

    It may while all of them fit one pass a lane, or each trial's are a small slice of a pass. On a GPU while all fit some passes
    (`ROUND_PASSES`).
    """
    if engine.graphs is not None:
        return sum(tokens) <= ROUND_PASSES * max_tokens
    return max(tokens) <= SLICE * max_tokens or sum(tokens) <= max_tokens * engine.lanes.count


def _entry(engine: Engine, trial: Trial) -> Entry:
    given = trial.given
    return engine.entry(trial.owned, given.train, dropout=given.settings.dropout)


def are_divided(trials: int, tokens: int, lanes: int) -> bool:
    """Whether each of so many micro-batches of so many tokens altogether is divided among the lanes."""
    even = trials % lanes == 0 or trials >= EVEN_ENOUGH * lanes
    return not even and tokens >= LEAST_TOKENS * lanes


def _in_parts(whole: list[Part], lanes: int) -> list[Part]:
    if not are_divided(len(whole), sum(part.tokens for part in whole), lanes):
        return whole
    return [half for part in whole for half in divide(part, lanes)]


def divide(part: Part, count: int) -> list[Part]:
    """A micro-batch, or a part of one, in at most so many parts of near-equal tokens; each has a row.

    Of those that come in the place of a part, `siblings` counts them all.
    """
    ends = np.cumsum(part.lengths)
    wanted = ends[-1] * np.arange(1, count) / count
    cuts = [0, *(1 + np.abs(ends[:, None] - wanted).argmin(0)).tolist(), len(ends)]
    bounds = [(low, high) for low, high in pairwise(cuts) if low < high]
    return [replace(_some(part, *own), siblings=part.siblings - 1 + len(bounds)) for own in bounds]


def _some(part: Part, low: int, high: int) -> Part:
    before = part.lengths[:low]
    return replace(
        part,
        rows=part.rows[low:high],
        rows_before=part.rows_before + low,
        tokens_before=part.tokens_before + int(before.sum()),
        squares_before=part.squares_before + int((before**2).sum()),
        words_before=part.words_before + int((before * eighths(before)).sum()),
    )


def cut(
    parts: Sequence[Part], max_tokens: int, lanes: int, *, steady: bool = False
) -> list[list[Part]]:
    """Passes as equal in tokens as they come, none above the limit; what a pass has of one trial stands together, in its order.

    As many passes as fill the lanes evenly. A part is never divided, so one that is larger than the limit is a pass alone.
    Two parts of one micro-batch are never in one pass. Nor are parts that enter the encoder at different places; those that
    leave it out are one pass. A trial's micro-batches are in one pass where trials are many enough to fill the lanes evenly.

    steady: first as many micro-batches of each trial as fit one pass (`at_once`), then the next ones. Passes of neighbouring
    parts, as equal in the tokens that micro-batches of these trials hold on the average, so that the same trials share passes in
    every round (graphs.py); only where that would pass the limit, as equal in what they hold now.
    """
    if not parts:
        return []
    parts = _by_trial(parts)
    entries = list(dict.fromkeys(part.entry for part in parts))
    if len(entries) > 1:
        groups = ([part for part in parts if part.entry == entry] for entry in entries)
        return [one for group in groups for one in cut(group, max_tokens, lanes, steady=steady)]
    if entries == [None]:
        return [list(parts)]
    if steady and len(turns := _turns(parts, max_tokens)) > 1:
        return [one for turn in turns for one in cut(turn, max_tokens, lanes, steady=True)]
    slices = _slices(parts, max_tokens, lanes, steady=steady)
    sizes = [sum(part.tokens for part in one) for one in slices]
    if not steady:
        numbers = balanced(
            sizes, max_tokens, lanes, lambda i, j: _halves(slices[i][0], slices[j][0])
        )
        return [[part for i in own for part in slices[i]] for own in numbers]
    typical = [sum(part.trial.typical for part in one) for one in slices]
    found = _neighbours(slices, typical, max_tokens, lanes)
    if all(sum(part.tokens for part in one) <= max_tokens for one in found if len(one) > 1):
        return found
    return _neighbours(slices, sizes, max_tokens, lanes)


def _by_trial(parts: Sequence[Part]) -> list[Part]:
    """Each trial's parts one after the other. They come otherwise where several passes of a round did not fit into memory."""
    place = {trial: i for i, trial in enumerate(dict.fromkeys(part.trial for part in parts))}
    return sorted(parts, key=lambda part: (place[part.trial], part.ahead, part.rows_before))


def at_once(tokens: float, max_tokens: int) -> int:
    """How many micro-batches of each trial one pass holds, where one of every trial has so many tokens together."""
    return max(1, int(max_tokens // tokens))


def _turns(parts: Sequence[Part], max_tokens: int) -> list[list[Part]]:
    """The parts of a round by whose turn it is: near-equal numbers of micro-batches, of each trial as many."""
    numbers = sorted({part.ahead for part in parts})
    typical = defaultdict[int, float](float)
    for part in parts:
        typical[part.ahead] += part.trial.typical
    count = -(-len(numbers) // at_once(max(typical.values()), max_tokens))
    turns = (set(own.tolist()) for own in np.array_split(np.asarray(numbers), count))
    return [[part for part in parts if part.ahead in turn] for turn in turns]


def _slices(
    parts: Sequence[Part], max_tokens: int, lanes: int, *, steady: bool
) -> list[list[Part]]:
    """What goes into one pass together: each trial's parts, or each part by itself."""
    whole = [list(own) for _, own in groupby(parts, key=lambda part: part.trial)]
    sizes = [sum(part.tokens for part in own) for own in whole]
    undivided = all(len(part.rows) == part.total for part in parts)
    if undivided and are_sliced(sizes, max_tokens, lanes, steady=steady):
        return whole
    return [[part] for part in parts]


def are_sliced(
    sizes: Sequence[float], max_tokens: int, lanes: int, *, steady: bool = False
) -> bool:
    """Whether micro-batches of one trial go into one pass; sizes: the tokens that each trial has in a round."""
    return max(sizes) <= max_tokens and (steady or len(sizes) >= EVEN_ENOUGH * lanes)


def balanced(
    sizes: Sequence[float],
    max_tokens: int,
    lanes: int,
    apart: Callable[[int, int], bool] = lambda i, j: False,
) -> list[list[int]]:
    """Parts of so many tokens in passes: the largest first, each into the one that holds least (Graham 1969).

    apart: whether two parts, by their numbers, may not be in one pass; of at most as many as there are lanes.
    """
    count = _wanted(sum(sizes), len(sizes), max_tokens, lanes)
    while True:
        passes = _dealt(sizes, count, apart)
        fit = all(sum(sizes[i] for i in own) <= max_tokens for own in passes if len(own) > 1)
        if fit or count == len(sizes):
            return passes
        count = min(count + lanes, len(sizes))


def _dealt(
    sizes: Sequence[float], count: int, apart: Callable[[int, int], bool]
) -> list[list[int]]:
    passes: list[list[int]] = [[] for _ in range(count)]
    held = [0.0] * count
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        can = (n for n in range(count) if not any(apart(i, j) for j in passes[n]))
        least = min(can, key=held.__getitem__)
        passes[least].append(i)
        held[least] += sizes[i]
    return [sorted(own) for own in passes]


def _halves(one: Part, other: Part) -> bool:
    """Whether two parts are of one micro-batch."""
    return one.trial is other.trial and one.ahead == other.ahead


def are_alone(parts: Sequence[Part]) -> bool:
    """Whether a pass of these holds all that the round has of their trials."""
    counts = Counter(part.trial.id for part in parts)
    return all(counts[part.trial.id] == part.siblings for part in parts)


def _wanted(tokens: float, parts: int, max_tokens: int, lanes: int) -> int:
    return min(math.ceil(tokens / max_tokens / lanes) * lanes, parts)


def _neighbours(
    slices: Sequence[Sequence[Part]], tokens: Sequence[float], max_tokens: int, lanes: int
) -> list[list[Part]]:
    share = sum(tokens) / max(_wanted(sum(tokens), len(slices), max_tokens, lanes), 1)
    passes: list[list[Part]] = []
    before = held = 0.0
    for one, n in zip(slices, tokens, strict=True):
        again = bool(passes) and any(_halves(one[0], other) for other in passes[-1])
        # The middle of a slice says which share it falls into.
        full = held + n > max_tokens or before + n / 2 > share * len(passes)
        if not passes or again or full:
            passes.append([])
            held = 0.0
        passes[-1] += one
        before, held = before + n, held + n
    return passes


def work_of(engine: Engine, parts: Sequence[Part]) -> Work | None:
    """A pass of these parts, laid out on the processor; None where it can have no fixed form (graphs.py)."""
    slices = [list(own) for _, own in groupby(part.trial for part in parts)]
    owned = [own[0].owned for own in slices]
    graphs = engine.graphs
    if graphs is None or parts[0].entry != 0 or not graphs.takes(owned):
        return None
    return graphs.work(
        owned,
        [part.trial.given for part in parts],
        pack([(p.trial.given.train.table, p.rows) for p in parts], [len(own) for own in slices]),
        [part.noise_key for part in parts],
        _targets(parts),
        max(part.trial.longest for part in parts),
    )


def _targets(parts: Sequence[Part]) -> Targets:
    return Targets(
        np.concatenate([part.trial.given.train.labels[part.rows] for part in parts]),
        tuple(len(part.rows) for part in parts),
        tuple(part.total for part in parts),
        tuple(part.trial.group_size for part in parts),
    )


def run_pass(engine: Engine, parts: Sequence[Part], work: Work | None = None) -> Passed:
    """One forward and one backward; each trial's gradient of its rows. work: as `work_of` gave it, if it has been asked."""
    assert len({part.entry for part in parts}) == 1, "all of a pass enter the encoder at one place"
    began = time.perf_counter()
    make_current(engine.backbone.device)
    if (graphs := engine.graphs) is not None and (work := work or work_of(engine, parts)):
        return Passed(tuple(parts), graphs.run(work), (), None, time.perf_counter() - began)
    trials = [part.trial for part in parts]
    slices = [list(own) for _, own in groupby(trials)]
    owned, counts = [own[0].owned for own in slices], [len(own) for own in slices]
    alone, targets = are_alone(parts), _targets(parts)
    noise = noise_on(engine.backbone.device, [part.noise_key for part in parts])
    rows = [replace(part.trial.given.train, rows=part.rows) for part in parts]
    active = engine.active(owned)
    logits = engine.logits_of(active, rows, noise, parts[0].entry, counts)
    on = {name: send(values, logits.device) for name, values in targets.arrays().items()}
    losses = sequence_losses(logits, on["labels"], targets.counts, [t.given for t in trials])
    # A sequence's loss reaches its own trial's parameters only, so one backward gives every trial its own gradient.
    weights = on["weights"].to(losses.dtype)
    gradients: tuple[tuple[Tensor, Tensor], ...] = ()
    if alone and graphs is None:
        losses.backward(weights)
    else:
        # Another lane may hold more of the same trial, and a pass on a GPU cannot be undone: nothing is added here.
        trained = [
            t for own in {t.id: t.owned for t in trials}.values() for t in own.tensors.values()
        ]
        asks = [] if active.tables is None else [active.tables.asks]
        found = torch.autograd.grad(losses, [*trained, *asks], weights, allow_unused=True)
        into: list[Tensor | None] = [tensor.grad for tensor in trained]
        unused: list[Tensor | None] = list(found[: len(trained)])
        gradients = tuple(
            (mine, gradient)
            for mine, gradient in zip(into, unused, strict=True)
            if mine is not None and gradient is not None
        )
    means = sums(losses, on["counts"]) / on["totals"]
    return Passed(tuple(parts), means, gradients, active.tables, time.perf_counter() - began)
