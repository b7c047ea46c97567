"""The training loop: many trials, one pass.

Each round every active trial brings its next micro-batch, or several of its accumulation group (passes.py); rounds are cut
into passes that hold a bounded number of tokens; each pass is one forward and one backward through the frozen backbone;
then every trial steps by itself.
A trial that ends leaves, and the schedule names the one that takes its place. K = 1 is the ordinary case and no other
path.

Who shares a pass changes the last bits of a product. So a round is cut by its tokens alone, before anything is known of
how it goes: a trial that fails in it leaves its mates what it would have left them by ending there. Where memory does not
suffice for a pass, the passes become smaller and stay so; what was done of the failed one is undone first. A
micro-batch that does not fit by itself is done in parts, one after the other.

`Cohort.run` is a generator of events: whoever reads them writes journals, draws progress, saves, or stops reading.
Events come between rounds, never within one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.shortage import Found, if_it_fits
from fleetune.cohort.charge import charge, work_in
from fleetune.cohort.engine import Engine
from fleetune.cohort.evaluation import fitting
from fleetune.cohort.events import (
    Advanced,
    EpochDone,
    Event,
    PassesShrunk,
    Started,
    TrialDone,
    TrialFailed,
    TrialParked,
    TrialStopped,
)
from fleetune.cohort.graphs import Work
from fleetune.cohort.known import Entry
from fleetune.cohort.loss import selection_metrics
from fleetune.cohort.passes import (
    Part,
    Passed,
    are_alone,
    cut,
    divide,
    micro_batches,
    run_pass,
    work_of,
)
from fleetune.cohort.room import Returned
from fleetune.cohort.schedule import FixedList, Schedule
from fleetune.cohort.trial import Trial, TrialInput, Undo, eval_rows, eval_tokens

State = tuple[dict[str, Tensor], dict[str, Any]]
"""What `Trial.checkpoint` gives."""


@dataclass(frozen=True, slots=True)
class _Laid:
    """The passes of a round."""

    moment: tuple[object, ...]
    """What decided them."""
    groups: list[list[Part]]
    first: Work | None = None
    """The first of them, laid out before its turn on a GPU."""


class Cohort:
    """Trials that train together.

    schedule: who trains next, or simply the trials. size: how many train at once. max_tokens: how many tokens one pass
    may hold; a single trial's micro-batch may be more.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule | Sequence[TrialInput],
        *,
        size: int,
        max_tokens: int,
    ) -> None:
        self.engine = engine
        self.schedule = FixedList(schedule) if isinstance(schedule, Sequence) else schedule
        self.size = size
        self.max_tokens = max_tokens
        self.max_eval_tokens = max_tokens
        self.active: list[Trial] = []
        self.parked: dict[str, Trial] = {}
        self.waiting: dict[str, tuple[TrialInput, Callable[[], State]]] = {}
        """Trials that had a place before a cut and have none yet; each with what gives its state."""
        self._returned = Returned()
        self._ahead: _Laid | None = None
        """The next round, where it has been laid out already."""
        self._refused: dict[tuple[str, Entry], int] = {}
        """Of how many tokens of a trial the memory did not suffice for a pass of them alone; the fewest."""

    def place(self, given: TrialInput, state: State, *, parked: bool = False) -> Trial:
        """Put a trial that the schedule has named before a cut where it was then."""
        trial = self._restored(given, state)
        if parked:
            self.parked[trial.id] = trial
        else:
            self.active.append(trial)
        return trial

    def wait(self, given: TrialInput, state: Callable[[], State]) -> None:
        """Let a trial that had a place before a cut wait for one that comes free, before any that the schedule names.

        state: asked now, so that what is no state of this trial is refused before anything is trained, and again at its turn:
        until then it takes no memory.
        """
        self._restored(given, state())
        self.waiting[given.spec.id] = given, state

    def _restored(self, given: TrialInput, state: State) -> Trial:
        trial = Trial(given, self.engine.start(given))
        trial.restore(*state)
        return trial

    def run(self) -> Iterator[Event]:
        """Train all trials to their ends."""
        self._returned.now()
        while True:
            # A checkpoint may lie between the last step of an epoch and its evaluation.
            yield from self._evaluate()
            yield from self._admit()
            if not self.active:
                assert not self.parked, "a schedule must call or drop whom it parked"
                return
            if not any(trial.at_epoch_end for trial in self.active):
                yield from self._round()
                self._returned.if_grown()

    def _admit(self) -> Iterator[Event]:
        while len(self.active) < self.size and (trial := self._next()) is not None:
            self.active.append(trial)
            yield Started(trial)

    def _next(self) -> Trial | None:
        """The trial for a free place; None where none may train now."""
        if self.waiting:
            given, state = self.waiting.pop(next(iter(self.waiting)))
            return self._restored(given, state())
        if (given := self.schedule.next()) is None:
            return None
        return self.parked.pop(given.spec.id, None) or Trial(given, self.engine.start(given))

    def _round(self) -> Iterator[Event]:
        began = time.perf_counter()
        lanes = self.engine.lanes
        limit = self.max_tokens
        passed: list[Passed] = []
        failed: dict[str, tuple[Trial, str]] = {}
        laid = self._laid()
        groups = laid.groups

        def tried(group: Sequence[Part]) -> Passed | None:
            if self._is_refused(group):
                return None
            return self._try_pass(group, laid.first if group is laid.groups[0] else None)

        while groups:
            alone: list[list[Part]] = []
            waiting: list[Part] = []
            for group, found in zip(groups, lanes.map(tried, groups), strict=True):
                if found is None and len(group) == 1 < min(len(groups), lanes.count):
                    found = tried(group)  # another pass took the memory; now it is free
                if found is not None:
                    passed.append(found)
                elif len(group) > 1 and group[0].entry is None:
                    # The limit is one of tokens in the encoder, and these trials leave it out.
                    alone += [[part] for part in group]
                elif len(group) > 1:
                    held = sum(part.tokens for part in group)
                    self.max_tokens = min(self.max_tokens, held // 2)
                    waiting += group
                elif (trial := group[0].trial).id not in failed:
                    done, lacking = self._in_halves(group[0])
                    passed += done
                    if lacking is not None:
                        failed[trial.id] = (trial, _too_large(lacking))
            groups = alone + self._cut(waiting)
        failed |= self._step(passed, failed.keys())
        charge(time.perf_counter() - began, work_in(passed))
        for trial, reason in failed.values():
            yield from self._fail(trial, reason)
        yield from self._drop()
        if self.max_tokens < limit:
            yield PassesShrunk(self.max_tokens, self.max_eval_tokens)
        parts = [part for one in passed for part in one.parts]
        rows = sum(len(part.rows) for part in parts)
        tokens = sum(int(part.lengths.sum()) for part in parts)
        yield Advanced(tuple(self.active), rows, tokens)

    def _cut(self, parts: Sequence[Part]) -> list[list[Part]]:
        steady = self.engine.graphs is not None
        return cut(parts, self.max_tokens, self.engine.lanes.count, steady=steady)

    def _laid(self) -> _Laid:
        """The passes of the next round."""
        ahead, self._ahead = self._ahead, None
        moment = (self.max_tokens, *((trial, trial.micro_step) for trial in self.active))
        if ahead is not None and ahead.moment == moment:
            return ahead
        parts = micro_batches(self.engine, self.active, self.max_tokens)
        return _Laid(moment, self._cut(parts))

    def _lay_ahead(self) -> None:
        """Lay out the next round while a GPU works on this one; whether all of its trials go on is not known yet."""
        if self.engine.graphs is None or any(t.ended or t.begins_epoch for t in self.active):
            return
        laid = self._laid()
        self._ahead = replace(laid, first=work_of(self.engine, laid.groups[0]))

    def _step(
        self, passed: Sequence[Passed], failed: Collection[str]
    ) -> dict[str, tuple[Trial, str]]:
        """Let every trial of a round go on, and say which of them must end, and why."""
        if not passed:
            return {}
        parts = [part for one in passed for part in one.parts]
        trials = {part.trial.id: part.trial for part in parts if part.trial.id not in failed}
        for one in passed:
            one.add_gradients()
        counts = {part.trial.id: part.ahead + 1 for part in sorted(parts, key=lambda p: p.ahead)}
        norms = {
            t.id: norm for t in trials.values() if (norm := t.advance(counts[t.id])) is not None
        }
        self._lay_ahead()
        # All numbers of the round come at once: each one asked for by itself would make a GPU wait.
        asked = [*(one.losses for one in passed), *(norm[None] for norm in norms.values())]
        numbers: list[float] = torch.cat(asked).tolist()
        norm_of = dict(zip(norms, numbers[len(parts) :], strict=True))
        losses = {ident: [0.0] * counts[ident] for ident in trials}
        rows = {ident: [0] * counts[ident] for ident in trials}
        for part, loss in zip(parts, numbers[: len(parts)], strict=True):
            if (ident := part.trial.id) in trials:
                losses[ident][part.ahead] += loss
                rows[ident][part.ahead] = part.total
        told = [
            (trial, trial.account(losses[ident], norm_of.get(ident), rows[ident]))
            for ident, trial in trials.items()
        ]
        return {trial.id: (trial, reason) for trial, reason in told if reason is not None}

    def _is_refused(self, group: Sequence[Part]) -> bool:
        """Whether a pass need not be tried, since fewer tokens of its trial did not fit and it can be divided."""
        part = group[0]
        if len(group) > 1 or len(part.rows) == 1:
            return False
        return part.tokens >= self._refused.get((part.trial.id, part.entry), math.inf)

    def _in_halves(self, part: Part) -> tuple[list[Passed], Part | None]:
        """A part that does not fit by itself, in two, those that do not fit either in two, and so on.

        One after the other, and each adds its gradient at once, so that as little as possible is held. With the row that does
        not fit alone, where there is one: then the others are not tried.
        """
        if len(part.rows) == 1:
            return [], part
        place = part.trial.id, part.entry
        self._refused[place] = min(part.tokens, self._refused.get(place, part.tokens))
        done: list[Passed] = []
        for half in divide(part, 2):
            found = None if self._is_refused([half]) else self._try_pass([half])
            more, lacking = self._in_halves(half) if found is None else ([found.added()], None)
            done += more
            if lacking is not None:
                return done, lacking
        return done, None

    def _try_pass(self, group: Sequence[Part], work: Work | None = None) -> Passed | None:
        """One pass; None where memory did not suffice: then every gradient is as it was before."""
        return self._or_again(lambda: self._pass(group, work))

    def _pass(self, group: Sequence[Part], work: Work | None) -> Passed | None:
        undo: Undo | None = None

        def run() -> Passed:
            nonlocal undo
            if self.engine.graphs is not None:
                # Passes on a GPU follow one another, and each adds at its end, so there is nothing to undo.
                return run_pass(self.engine, group, work).added()
            # What is not alone adds nothing yet.
            if are_alone(group):
                undo = Undo({part.trial.id: part.trial for part in group}.values())
            return run_pass(self.engine, group)

        found = if_it_fits(run)
        if found is None and undo is not None:
            undo.restore()
        return found

    def _evaluate(self) -> Iterator[Event]:
        due = [trial for trial in self.active if trial.at_epoch_end]
        if not due:
            return
        limit = self.max_eval_tokens
        # What training has freed and what evaluation needs are of different sizes, and the other way round.
        self._returned.now()
        found = self._predictions([trial for trial in due if len(trial.given.selection)])
        self._returned.now()
        if self.max_eval_tokens < limit:
            yield PassesShrunk(self.max_tokens, self.max_eval_tokens)
        for trial in due:
            own = found.get(trial.id)
            if isinstance(own, str):
                yield from self._fail(trial, own)
                continue
            if own is not None and not np.isfinite(own).all():
                yield from self._fail(trial, f"its predictions are not finite at step {trial.step}")
                continue
            result = trial.finish_epoch({} if own is None else selection_metrics(own, trial.given))
            yield EpochDone(trial, result)
            if trial.ended:
                yield from self._leave(trial)
            elif self.schedule.parks(trial.id, result):
                self._park(trial)
                yield TrialParked(trial)
        yield from self._drop()

    def _predictions(self, judged: Sequence[Trial]) -> dict[str, NDArray[Any] | str]:
        """Each trial's logits on its selection split, or why it has none; by id."""
        found: dict[str, NDArray[Any] | str] = {}
        waiting = list(judged)
        while waiting:
            began = time.perf_counter()
            limit = self.max_eval_tokens
            group = waiting[: fitting((eval_tokens(t.given, limit) for t in waiting), limit)]
            logits = self._try_predict(group)
            if logits is not None:
                tokens = [self.engine.tokens(t.owned, t.given.selection) for t in group]
                charge(time.perf_counter() - began, list(zip(group, tokens, strict=True)))
                found.update({t.id: own for t, own in zip(group, logits, strict=True)})
            elif len(group) > 1 or eval_rows(group[0].given, limit) > 1:
                self.max_eval_tokens = sum(eval_tokens(t.given, limit) for t in group) // 2
                continue
            else:
                found[group[0].id] = (
                    "one row of its selection split does not fit in memory; lower max_length"
                )
            waiting = waiting[len(group) :]
        return found

    def _try_predict(self, group: Sequence[Trial]) -> list[NDArray[Any]] | None:
        """The logits of some trials; None where memory did not suffice."""

        def run() -> list[NDArray[Any]]:
            return self.engine.predict(
                [t.owned for t in group],
                [t.given.selection for t in group],
                [eval_rows(t.given, self.max_eval_tokens) for t in group],
            )

        return self._or_again(lambda: if_it_fits(run))

    def _or_again(self, tried: Callable[[], Found | None]) -> Found | None:
        """What it gives; where that is None, for want of memory, what it gives once the engine has given way."""
        found = tried()
        return tried() if found is None and self.engine.gives_way() else found

    def _park(self, trial: Trial) -> None:
        self._remove(trial)
        self.parked[trial.id] = trial

    def _remove(self, trial: Trial) -> None:
        self.active.remove(trial)
        if self.engine.graphs is not None:
            self.engine.graphs.forget(trial.owned)

    def _drop(self) -> Iterator[Event]:
        for ident in self.schedule.dropped():
            yield TrialStopped(self.parked.pop(ident))

    def _fail(self, trial: Trial, reason: str) -> Iterator[Event]:
        self._remove(trial)
        self.schedule.left(trial.id, failed=True)
        yield TrialFailed(trial, reason)

    def _leave(self, trial: Trial) -> Iterator[Event]:
        self._remove(trial)
        trial.take_best()
        self.schedule.left(trial.id, failed=False)
        yield TrialDone(trial)


def _too_large(part: Part) -> str:
    return (
        f"its micro-batch of {part.total} rows does not fit in memory: even {len(part.rows)} of them "
        f"({int(part.lengths.sum()):,} tokens) does not alone; lower max_length, train fewer trials at once, or free memory"
    )
