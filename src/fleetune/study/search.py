"""A search as a schedule: every arm tries the same number of settings, in batches, and halving stops the worse ones.

Notation: E epochs of a whole training, n settings in a batch, eta = 3. A rung is a number of epochs at which the settings
of a batch wait for one another: E/9, E/3 (as many as n and E allow). At each rung the best n/3, then n/9, go on, the others
are stopped, and whoever waits takes their places at once. This is synchronous successive halving (Jamieson and Talwalkar
2016, arXiv:1502.07943) with one bracket a batch.

What is decided depends on scores and on the order of proposals, never on who finished first. So a cohort of any size makes
the same trials, up to rounding in the scores; ties go to the setting that was proposed first. Every arm has equal batches and
rungs, hence an equal budget in epochs; a failed trial gives its epochs back to nobody.

A setting under protocol "cv" is five trials, one a fold, that count as one; its score is their mean. A setting that is proposed
again is tried with another seed. Its repeats in a batch stand and fall together, by their mean: as many of the best settings go
on as the places hold with all their repeats, and the best one always. So a batch with repeats may cost some epochs more or less.
Assumption, not measured here: the order at a third of a schedule that is laid out for all of E foretells the order at its end.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fleetune.cohort.trial import TrialInput
from fleetune.records import EpochResult
from fleetune.study.propose import DONE, FAILED, STOPPED, Tried
from fleetune.study.rows import epochs_of
from fleetune.study.space import Arm

ETA = 3
Propose = Callable[[Arm, Sequence[Tried], int], list[dict[str, Any]]]
"""(arm, what was tried, how many) to the next settings."""
Make = Callable[[Arm, Mapping[str, Any], int, int], tuple[TrialInput, ...]]
"""(arm, setting, its number, how often it was tried before) to its trials."""


def rungs(settings: int, epochs: int) -> tuple[int, ...]:
    """The epochs at which so many settings of a whole training of so many epochs wait for one another."""
    levels = 0
    while ETA ** (levels + 1) <= min(settings, epochs):
        levels += 1
    found = {max(round(epochs / ETA**k), 1) for k in range(levels, 0, -1)}
    return tuple(sorted(e for e in found if e < epochs))


class Candidate:
    """One setting that is tried: its trials, and their scores so far."""

    def __init__(self, number: int, picks: Mapping[str, Any], units: Sequence[TrialInput]) -> None:
        self.number, self.picks = number, dict(picks)
        self.units = {given.spec.id: given for given in units}
        self.epochs = epochs_of(units[0])
        self.curves: dict[str, list[float]] = {ident: [] for ident in self.units}
        self.done: set[str] = set()
        self.failed = self.stopped = False

    @property
    def key(self) -> str:
        """The setting, to know it again."""
        return _key(self.picks)

    @property
    def in_play(self) -> bool:
        return not (self.failed or self.stopped)

    @property
    def ended(self) -> bool:
        """Whether all its trials have trained to their ends."""
        return self.in_play and len(self.done) == len(self.units)

    def reached(self, epoch: int) -> bool:
        """Whether no trial of it has to train any further to come to this epoch; one may end before it."""
        return all(i in self.done or len(curve) >= epoch for i, curve in self.curves.items())

    @property
    def curve(self) -> tuple[float, ...]:
        """Mean score after each epoch that all its trials have done; higher is better."""
        return tuple(float(np.mean(s)) for s in zip(*self.curves.values(), strict=False))

    @property
    def tried(self) -> Tried:
        state = FAILED if self.failed else STOPPED if self.stopped else DONE
        return Tried(self.picks, self.curve, state)


@dataclass(frozen=True, slots=True)
class Budget:
    """What every arm gets."""

    trials: int
    """Settings to try."""
    batch: int
    """Settings proposed at once."""
    halving: bool


class ArmSearch:
    """One arm's search."""

    def __init__(self, arm: Arm, budget: Budget) -> None:
        self.arm, self.budget = arm, budget
        self.candidates: list[Candidate] = []
        self.repeats: Counter[str] = Counter()
        """How often each setting has been proposed."""
        self.start = 0
        """The first candidate of the running batch."""
        self.level = 0
        self.waiting: deque[str] = deque()

    @property
    def batch(self) -> list[Candidate]:
        return self.candidates[self.start :]

    @property
    def rungs(self) -> tuple[int, ...]:
        if not self.batch or not self.budget.halving:
            return ()
        return rungs(len(self.batch), self.batch[0].epochs)

    @property
    def rung(self) -> int | None:
        """The epoch at which the batch waits next; None on its last stretch."""
        return self.rungs[self.level] if self.level < len(self.rungs) else None

    @property
    def batch_over(self) -> bool:
        return all(c.ended or not c.in_play for c in self.batch)

    @property
    def over(self) -> bool:
        return self.batch_over and len(self.candidates) >= self.budget.trials


class Search:
    """The search of some arms in one cohort; see `cohort.schedule.Resumable`."""

    def __init__(self, arms: Sequence[tuple[Arm, Budget]], propose: Propose, make: Make) -> None:
        self.arms = [ArmSearch(arm, budget) for arm, budget in arms]
        self._propose, self._make = propose, make
        self._places: dict[str, tuple[ArmSearch, Candidate]] = {}
        self._turn = 0
        self._called: deque[str] = deque()
        self._dropped: list[str] = []

    # --- what a cohort asks

    def next(self) -> TrialInput | None:
        if self._called:
            return self.given(self._called.popleft())
        for _ in self.arms:
            one_arm = self.arms[self._turn]
            self._turn = (self._turn + 1) % len(self.arms)
            if not one_arm.waiting and one_arm.batch_over and not one_arm.over:
                self._next_batch(one_arm)
            if one_arm.waiting:
                return self.given(one_arm.waiting.popleft())
        return None

    def observe(self, ident: str, result: EpochResult) -> None:
        _, candidate = self._places[ident]
        given, curve = candidate.units[ident], candidate.curves[ident]
        if result.epoch > len(curve):  # a trial whose checkpoint was damaged does its epochs again
            score = result.selection[given.best_metric]
            curve.append(score if given.higher_is_better else -score)

    def parks(self, ident: str, result: EpochResult) -> bool:
        one_arm, candidate = self._places[ident]
        if not candidate.in_play:  # another fold of the same setting has failed
            self._dropped.append(ident)
            return True
        if one_arm.rung is None or result.epoch < one_arm.rung:
            return False
        self._settle(one_arm)
        return True

    def left(self, ident: str, *, failed: bool) -> None:
        one_arm, candidate = self._places[ident]
        candidate.done.add(ident)
        if failed:
            candidate.failed = True
            self._give_up(one_arm, candidate)
        self._settle(one_arm)

    def dropped(self) -> Sequence[str]:
        found, self._dropped = self._dropped, []
        return found

    # --- how it decides

    def _next_batch(self, one_arm: ArmSearch) -> None:
        one_arm.start, one_arm.level = len(one_arm.candidates), 0
        count = min(one_arm.budget.batch, one_arm.budget.trials - one_arm.start)
        for picks in self._propose(one_arm.arm, [c.tried for c in one_arm.candidates], count):
            candidate = self._add(one_arm, picks)
            one_arm.waiting.extend(candidate.units)

    def _add(self, one_arm: ArmSearch, picks: Mapping[str, Any]) -> Candidate:
        number = len(one_arm.candidates)
        units = self._make(one_arm.arm, picks, number, one_arm.repeats[_key(picks)])
        candidate = Candidate(number, picks, units)
        one_arm.repeats[candidate.key] += 1
        one_arm.candidates.append(candidate)
        self._places.update({ident: (one_arm, candidate) for ident in candidate.units})
        return candidate

    def _settle(self, one_arm: ArmSearch) -> None:
        """Where the whole batch has come to its rung: who goes on, and who is stopped."""
        racing = [c for c in one_arm.batch if c.in_play]
        if one_arm.rung is None or not all(c.reached(one_arm.rung) for c in racing):
            return
        one_arm.level += 1
        going = _best(one_arm.batch, math.ceil(len(one_arm.batch) / ETA**one_arm.level))
        for candidate in (c for c in racing if not c.ended):  # who has ended waits for nothing
            on = candidate in going
            candidate.stopped = not on
            waiting = (i for i in candidate.units if i not in candidate.done)
            (self._called if on else self._dropped).extend(waiting)

    def _give_up(self, one_arm: ArmSearch, candidate: Candidate) -> None:
        """The other folds of a setting that has failed: those that wait are not trained any further."""
        own = set(candidate.units)
        self._dropped.extend(i for i in self._called if i in own)
        if one_arm.rung is not None:
            parked = (i for i, c in candidate.curves.items() if len(c) >= one_arm.rung)
            self._dropped.extend(i for i in parked if i not in candidate.done)
        self._called = deque(i for i in self._called if i not in own)
        one_arm.waiting = deque(i for i in one_arm.waiting if i not in own)

    # --- after a cut

    def given(self, ident: str) -> TrialInput:
        return self._places[ident][1].units[ident]

    def state(self) -> dict[str, Any]:
        return {
            "turn": self._turn,
            "called": list(self._called),
            "dropped": list(self._dropped),
            "lanes": [
                {
                    "start": one_arm.start,
                    "level": one_arm.level,
                    "waiting": list(one_arm.waiting),
                    "candidates": [
                        {
                            "picks": c.picks,
                            "curves": c.curves,
                            "done": sorted(c.done),
                            "failed": c.failed,
                            "stopped": c.stopped,
                        }
                        for c in one_arm.candidates
                    ],
                }
                for one_arm in self.arms
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._turn, self._dropped = state["turn"], list(state["dropped"])
        self._called = deque(state["called"])
        for one_arm, was in zip(self.arms, state["lanes"], strict=True):
            for one in was["candidates"]:
                candidate = self._add(one_arm, one["picks"])
                candidate.curves = {ident: list(c) for ident, c in one["curves"].items()}
                candidate.done = set(one["done"])
                candidate.failed, candidate.stopped = one["failed"], one["stopped"]
            one_arm.start, one_arm.level = was["start"], was["level"]
            one_arm.waiting = deque(was["waiting"])


def _key(picks: Mapping[str, Any]) -> str:
    return json.dumps(picks, sort_keys=True)


def _settings(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates by what they try, each with its repeats, in the order of their first proposals."""
    found: dict[str, list[Candidate]] = {}
    for c in candidates:
        found.setdefault(c.key, []).append(c)
    return list(found.values())


def _best(batch: Sequence[Candidate], places: int) -> list[Candidate]:
    """Who goes on from a rung: whole settings, those without a failed repeat first, then by the mean over the repeats."""
    racing = [(g, [c for c in g if c.in_play]) for g in _settings(batch)]
    ranked = sorted(
        ((_failures(g), -_mean(max(c.curve) for c in left), left) for g, left in racing if left),
        key=lambda told: told[:2],
    )
    going: list[Candidate] = []
    for *_, repeats in ranked:
        if going and len(going) + len(repeats) > places:
            break
        going += repeats
    return going


def _failures(repeats: Sequence[Candidate]) -> int:
    return sum(c.failed for c in repeats)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


# --- what came of it


@dataclass(frozen=True, slots=True)
class Chosen:
    """The setting of an arm that goes on to the confirm phase, and how it was found."""

    arm: str
    picks: Mapping[str, Any] | None
    """What was searched; None where every trial failed."""
    score: float | None
    """Mean score on the selection rows over this setting's trials that did not fail, in the metric's own direction; how one
    that was stopped counts is said in `_score`. None without a search."""
    epochs: int | None
    """Under protocol "cv": how long to train; else each confirm trial chooses its own epoch."""
    trials: tuple[str, ...] = ()
    """The search's trials of this setting."""
    tried: int = 0
    stopped: int = 0
    failed: int = 0
    epochs_trained: int = 0
    """Of all of the arm's search trials."""


def choose(one_arm: ArmSearch, *, fixed_epochs: bool) -> Chosen:
    """The best setting of an arm, by its mean over the seeds it was tried with.

    A setting of which a repeat failed is chosen only where one of every setting did: then the one that failed least often. After
    that, one that trained to its end stands before those that halving stopped, which are chosen where all that went on failed.
    """
    nothing = Chosen(
        one_arm.arm.name,
        picks=None,
        score=None,
        epochs=None,
        tried=len(one_arm.candidates),
        stopped=sum(c.stopped for c in one_arm.candidates),
        failed=sum(c.failed for c in one_arm.candidates),
        epochs_trained=sum(len(s) for c in one_arm.candidates for s in c.curves.values()),
    )
    settings = [g for g in _settings(one_arm.candidates) if _failures(g) < len(g)]
    if not settings:
        return nothing
    # min keeps the first of equals, and they stand in the order of their first proposals.
    best = min(settings, key=lambda g: (_failures(g), not any(c.ended for c in g), -_score(g)))
    score = _score(best)
    sound = [c for c in best if c.ended] or [c for c in best if not c.failed]
    curve = [_mean(at) for at in zip(*(c.curve for c in sound), strict=False)]
    higher = next(iter(best[0].units.values())).higher_is_better
    return replace(
        nothing,
        picks=best[0].picks,
        score=score if higher else -score,
        epochs=int(np.argmax(curve)) + 1 if fixed_epochs else None,
        trials=tuple(i for c in best for i in c.units if c.curves[i] or i in c.done),
    )


def _score(repeats: Sequence[Candidate]) -> float:
    """The mean over the repeats of a setting that did not fail; higher is better.

    A repeat that halving stopped counts at the score that it had, plus what the repeats that trained to their end gained after
    that epoch: left out, a setting would stand by its lucky seeds alone. Assumption: it would have gained as they did.
    """
    ended = [c for c in repeats if c.ended]

    def gained(epochs: int) -> float:
        return _mean(max(c.curve) - max(c.curve[:epochs]) for c in ended) if ended else 0.0

    return _mean(
        max(c.curve) + (0.0 if c.ended else gained(len(c.curve))) for c in repeats if not c.failed
    )
