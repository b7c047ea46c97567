"""One stage of a run: trials of one task and phase that train together, followed through the journal.

After a cut a stage goes on from its last snapshot: with exactly the trials that the cohort held, at the same round, and with
its schedule as it was then. Who shares a pass changes the last bits of a product, so trials of the snapshot that have ended
since end a second time, and leave no trace. Without a snapshot a search starts again from its beginning and makes the same
trials, since what it decides depends on scores alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fleetune.cohort.plan import Limits
from fleetune.cohort.schedule import Resumable
from fleetune.cohort.train import (
    Advanced,
    Cohort,
    EpochDone,
    Event,
    PassesShrunk,
    Started,
    TrialDone,
    TrialFailed,
    TrialParked,
    TrialStopped,
)
from fleetune.cohort.trial import Trial
from fleetune.methods.base import count_parameters
from fleetune.study import checkpoints
from fleetune.study.journal import Journal
from fleetune.study.keep import Workbench
from fleetune.study.results import epochs

Watch = Callable[[Event], None]
Finish = Callable[[Trial], Mapping[str, Any]]
"""What is done with a trial at its end; gives the facts for the journal."""
ENDINGS = ("trial-done", "trial-failed", "trial-stopped")


class Stage:
    """name: of this stage, unique in its run. finish: called once for each trial that trained to its end."""

    def __init__(
        self,
        name: str,
        bench: Workbench,
        schedule: Resumable,
        journal: Journal,
        folder: Path,
        finish: Finish,
    ) -> None:
        self.name = name
        self.bench = bench
        self.schedule = schedule
        self.journal = journal
        self.folder = folder
        self.finish = finish
        self.ended = ended(journal)
        self.saved_at = time.monotonic()
        self.settled: set[str] = set()
        """Parked trials whose state is on the disk as it is."""

    def train(self, limits: Limits, save_seconds: float, watch: Watch) -> None:
        """Train what is left of the stage."""
        cohort = Cohort(
            self.bench.engine, self.schedule, size=limits.trials, max_tokens=limits.tokens
        )
        self._go_on(cohort, watch)
        for event in cohort.run():
            self._follow(event, cohort, save_seconds)
            watch(event)

    def _go_on(self, cohort: Cohort, watch: Watch) -> None:
        note = checkpoints.read_note(self.folder)
        if note.get("stage") != self.name:
            return
        states = checkpoints.read_all(self.folder)
        self.schedule.restore(note["schedule"])
        cohort.max_tokens = min(note["max_tokens"], cohort.max_tokens)
        for ident, parked in [(i, False) for i in note["active"]] + [
            (i, True) for i in note["parked"]
        ]:
            trial = self._placed(cohort, ident, states.get(ident), parked)
            if not parked:
                event = Started(trial)
                self._follow(event, cohort, float("inf"))
                watch(event)

    def _placed(
        self, cohort: Cohort, ident: str, state: checkpoints.State | None, parked: bool
    ) -> Trial:
        given = self.schedule.given(ident)
        if state is None:  # set aside as damaged: it starts again
            state = Trial(given, cohort.engine.start(given)).checkpoint()
        return cohort.place(given, state, parked=parked)

    def _follow(self, event: Event, cohort: Cohort, save_seconds: float) -> None:
        if isinstance(event, EpochDone):
            self.schedule.observe(event.trial.id, event.result)
        if isinstance(event, Advanced):
            self._save(cohort, save_seconds)
        elif isinstance(event, PassesShrunk):
            self.journal.append(
                "passes-shrunk", training=event.training, evaluation=event.evaluation
            )
        elif event.trial.id in self.ended:
            pass  # ended before the cut; see the module's docstring
        elif isinstance(event, Started):
            self._started(event.trial)
        elif isinstance(event, EpochDone):
            self._epoch(event.trial, event.result.epoch)
        elif isinstance(event, TrialDone):
            facts = self.finish(event.trial)
            self._end(event.trial.id, "trial-done", **facts)
        elif isinstance(event, TrialFailed):
            self._end(event.trial.id, "trial-failed", reason=event.reason)
        elif isinstance(event, TrialStopped):
            facts = {"epoch": len(event.trial.results), "best_epoch": event.trial.best_epoch}
            self._end(
                event.trial.id, "trial-stopped", **facts, seconds=round(event.trial.seconds, 3)
            )
        else:
            assert isinstance(event, TrialParked)

    def _end(self, ident: str, kind: str, **facts: Any) -> None:
        self.journal.append(kind, id=ident, **facts)
        self.ended[ident] = kind

    def _started(self, trial: Trial) -> None:
        spec = trial.given.spec
        counted = count_parameters(trial.given.method, self.bench.engine.sites)
        self.journal.append(
            "trial-started",
            id=spec.id,
            task=spec.task,
            method=spec.method,
            hyperparameters=dict(spec.hyperparameters),
            training=dict(spec.training),
            seed=spec.seed,
            phase=spec.phase,
            trainable_parameters={"encoder": counted.encoder, "head": counted.head},
            total_steps=trial.total_steps,
            step=trial.step,
        )

    def _epoch(self, trial: Trial, number: int) -> None:
        r = trial.results[number - 1]
        for e in epochs(self.journal.events, trial.id):
            if e["epoch"] == number and (e["loss"], e["selection"]) == (r.loss, dict(r.selection)):
                return  # written before a cut
        self.journal.append(
            "epoch", id=trial.id, epoch=r.epoch, loss=r.loss, selection=dict(r.selection), step=r.step,
            seconds=round(r.seconds, 3),
        )  # fmt: skip

    def _save(self, cohort: Cohort, save_seconds: float) -> None:
        """A snapshot of the whole cohort where an epoch ends, just before its evaluation, and from time to time."""
        due = any(trial.at_epoch_end for trial in cohort.active)
        if not (due or (cohort.active and time.monotonic() - self.saved_at > save_seconds)):
            return
        parked = set(cohort.parked)
        self.settled &= parked
        states = {t.id: t.checkpoint() for t in cohort.active}
        states |= {i: t.checkpoint() for i, t in cohort.parked.items() if i not in self.settled}
        note = {
            "stage": self.name,
            "schedule": self.schedule.state(),
            "active": [t.id for t in cohort.active],
            "parked": list(cohort.parked),
            "max_tokens": cohort.max_tokens,
        }
        checkpoints.write_all(self.folder, states, note=note, keep=self.settled)
        self.settled = parked
        self.saved_at = time.monotonic()


def ended(journal: Journal) -> dict[str, str]:
    """How each trial that has ended did so."""
    return {e["id"]: e["kind"] for e in journal.events if e["kind"] in ENDINGS}
