"""What a run is doing just now: built from its events, read by the screen and by plain lines.

Work is counted in tokens trained on, since epochs of two tasks are not equally long. What is left is an estimate: a search
that stops trials early does less than planned, and evaluation is assumed to keep its share of the time.
Not covered: evaluation and saving, which have no events between their beginning and their end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleetune.cohort.events import (
    Advanced,
    EpochDone,
    Event,
    Started,
    TrialDone,
    TrialFailed,
    TrialParked,
    TrialStopped,
)
from fleetune.cohort.plan import Planned
from fleetune.cohort.trial import Rows, Trial
from fleetune.errors import DataError
from fleetune.study import estimate, journal
from fleetune.study.prepare import Prepared
from fleetune.study.rows import epochs_of, length_of

# Speed is that of the last so many rounds, so that it follows a cohort that grows or shrinks.
ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command has before it."""

    trials: int
    """All of the run, those that have ended before included."""
    tokens: int
    """To train on, over all trials and epochs of the run."""
    ended: frozenset[str] = frozenset()
    """Trials that an earlier command has ended, by id."""
    tokens_before: int = 0
    """Tokens of those."""
    optimistic: bool = False
    """Whether what chooses the epoch is the test set."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best score of a method so far, on its selection rows."""

    trial: str
    metric: str
    value: float


def plan_of(prepared: Prepared, folder: Path, device: str = "cpu") -> Plan:
    """What is to do in a run's folder, and how much of it an earlier command has done."""
    if prepared.inputs:
        trials, epochs = len(prepared.inputs), sum(epochs_of(given) for given in prepared.inputs)
        tokens = round(sum(length_of(g) * _epoch_tokens(g.train) for g in prepared.inputs))
    else:
        totals = estimate.estimate(prepared, device)["totals"]
        trials, epochs, tokens = totals["trials"], totals["epochs"], totals["tokens"]
    ended, epochs_before = _before(folder)
    done = round(tokens * min(epochs_before / max(epochs, 1), 1.0))
    return Plan(trials, tokens, ended, done, prepared.optimistic)


class State:
    """What is going on. clock: seconds, as time.monotonic gives them."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = plan
        self.clock = clock
        self.started = clock()
        self.active: list[Trial] = []
        self.parked: set[str] = set()
        self.failed = 0
        self.stopping = False
        """Whether a signal has asked for an end."""
        self.task = self.phase = ""
        self.bests: dict[tuple[str, str], Best] = {}
        """By task and method, of the running phase."""
        self.tokens = plan.tokens_before
        self._ended = set(plan.ended)
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self._rounds: deque[tuple[float, int, int]] = deque([(clock(), 0, 0)], maxlen=ROUNDS)

    def follow(self, event: Event) -> None:
        """Take an event in."""
        if isinstance(event, Started):
            self._start(event.trial)
        elif isinstance(event, Advanced):
            self.tokens += event.tokens
            self.active = list(event.trials)
            self._rounds.append((self.clock(), event.rows, event.tokens))
        elif isinstance(event, EpochDone):
            self._judge(event.trial)
        elif isinstance(event, TrialParked):
            self._leave(event.trial)
            self.parked.add(event.trial.id)
        elif isinstance(event, TrialDone | TrialFailed | TrialStopped):
            self._leave(event.trial)
            self.parked.discard(event.trial.id)
            self._ended.add(event.trial.id)
            if isinstance(event, TrialFailed):
                self.failed += 1
                self._give_up(event.trial)

    def news(self, event: Event) -> list[str]:
        """What a plan says that no earlier one has said: cohorts of one trial each have the same reason to be apart."""
        said = event.why if isinstance(event, Planned) else ()
        found = [sentence for sentence in said if sentence not in self._told]
        self._told.update(found)
        return found

    @property
    def ended(self) -> int:
        """Trials that have ended, by whatever command."""
        return len(self._ended)

    @property
    def examples_per_second(self) -> float:
        """Over the last rounds; 0 before there was one."""
        return self._rate(1)

    @property
    def seconds_left(self) -> float | None:
        """Until the run has ended, as far as can be told; None before anything was measured."""
        rate = self._rate(2)
        return max(self.plan.tokens - self.tokens, 0) / rate if rate else None

    @property
    def share(self) -> float:
        """Of the run's work that is done, 0 to 1."""
        return min(self.tokens / self.plan.tokens, 1.0) if self.plan.tokens else 1.0

    @property
    def seconds(self) -> float:
        """Since this command began."""
        return self.clock() - self.started

    def _rate(self, what: int) -> float:
        rounds = list(self._rounds)
        took = rounds[-1][0] - rounds[0][0]
        return sum(one[what] for one in rounds[1:]) / took if took > 0 else 0.0

    def _start(self, trial: Trial) -> None:
        spec = trial.given.spec
        if (spec.task, spec.phase) != (self.task, self.phase):
            self.task, self.phase = spec.task, spec.phase
            self.bests = {}
        self.parked.discard(trial.id)
        if trial.id not in self._seen:
            # What a snapshot brought along was trained by an earlier command.
            self._seen.add(trial.id)
            part = trial.micro_step / trial.micro_per_epoch
            self.tokens += round(_epoch_tokens(trial.given.train) * part)
        if all(trial.id != other.id for other in self.active):
            self.active.append(trial)
        self._judge(trial)

    def _judge(self, trial: Trial) -> None:
        given, spec, scores = trial.given, trial.given.spec, scores_of(trial)
        if scores is None:
            return
        value, key = scores[1], (spec.task, spec.method)
        best = self.bests.get(key)
        if best is None or (value > best.value if given.higher_is_better else value < best.value):
            self.bests[key] = Best(trial.id, given.best_metric, value)

    def _give_up(self, trial: Trial) -> None:
        """What a failed trial will not train on is nothing to wait for."""
        at, of = epoch_of(trial)
        self.tokens += round(_epoch_tokens(trial.given.train) * max(of - at, 0.0))

    def _leave(self, trial: Trial) -> None:
        self.active = [other for other in self.active if other.id != trial.id]


def epoch_of(trial: Trial) -> tuple[float, float]:
    """Epochs done, a running one as its share, and epochs in all."""
    per_epoch = trial.given.settings.steps_per_epoch(trial.rows)
    return trial.step / per_epoch, trial.last_step / per_epoch


def loss_of(trial: Trial) -> float | None:
    """The mean loss of the running epoch, else of the last one; None before the first batch."""
    if trial.rows_seen:
        return trial.loss_sum / trial.rows_seen
    return trial.results[-1].loss if trial.results else None


def scores_of(trial: Trial) -> tuple[float, float] | None:
    """The last and the best score on the selection rows; None where none was computed."""
    if not trial.results or not trial.results[-1].selection:
        return None
    metric = trial.given.best_metric
    return (
        trial.results[-1].selection[metric],
        trial.results[trial.best_epoch - 1].selection[metric],
    )


def clock(seconds: float) -> str:
    """Seconds as 4:05 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _epoch_tokens(rows: Rows) -> int:
    return int(rows.table.lengths[rows.rows].sum())


def _before(folder: Path) -> tuple[frozenset[str], int]:
    """Which trials have ended in a run's folder, and their epochs. A damaged journal is the run's to refuse."""
    try:
        history = journal.read(folder / journal.NAME)
    except (OSError, DataError):
        return frozenset(), 0
    return frozenset(history.ends), sum(len(history.epochs(ident)) for ident in history.ends)
