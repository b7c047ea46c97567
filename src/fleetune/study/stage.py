"""One stage of a run: trials of one task and phase that train together, followed through the journal.

After a cut a stage goes on from its last snapshot: with exactly the trials that the cohort held, at the same round, and with
its schedule as it was then. Who shares a pass changes the last bits of a product, so trials of the snapshot that have ended
since end a second time, and leave no trace. Without a snapshot a search starts again from its beginning and makes the same
trials, since what it decides depends on scores alone.

Where fewer may train at once than before, the first of them go on. The others wait, their states on the disk as they were, and
take the places that come free before the schedule names another trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fleetune.artifact.check import NoNumbers
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
from fleetune.cohort.plan import Limits, Planned
from fleetune.cohort.room import HighWater
from fleetune.cohort.schedule import Resumable
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Trial
from fleetune.errors import DataError
from fleetune.methods.base import count_parameters
from fleetune.study import checkpoints
from fleetune.study.journal import Journal
from fleetune.study.keep import Workbench
from fleetune.study.saving import Saving, Stop, deferred

Watch = Callable[[Event], None]
Finish = Callable[[Trial, int], Mapping[str, Any]]
"""What is done with a trial at its end, and how many tokens a pass without gradients may hold then; the facts for the journal.
Raises NoNumbers where it has none."""


class Stage:
    """name: of this stage, unique in its run. run: what tells its run from others. finish: called once for each trial that
    trained to its end."""

    def __init__(
        self,
        name: str,
        bench: Workbench,
        schedule: Resumable,
        journal: Journal,
        folder: Path,
        run: str,
        finish: Finish,
    ) -> None:
        self.name = name
        self.bench = bench
        self.schedule = schedule
        self.journal = journal
        self.folder = folder
        self.run = run
        self.finish = finish
        self.settled: set[str] = set()
        """Parked trials whose state is on the disk as it is."""

    def train(self, limits: Limits, saving: Saving, watch: Watch) -> None:
        """Train what is left of the stage."""
        cohort = Cohort(
            self.bench.engine, self.schedule, size=limits.trials, max_tokens=limits.tokens
        )
        held = HighWater(self.bench.engine.backbone.device)
        self._go_on(cohort, watch)
        saving.saved(cohort.active)
        with deferred() as stop:
            for event in cohort.run():
                if isinstance(event, Advanced):
                    self._save_if_due(cohort, saving, stop)
                else:
                    event = self._follow(cohort, event)
                watch(event)
                stop.check()
        self.journal.append("stage-done", stage=self.name, peak_bytes=held.bytes)

    def _go_on(self, cohort: Cohort, watch: Watch) -> None:
        snapshot = checkpoints.newest(self.folder, self.name)
        if snapshot is None:
            return
        try:
            placed = self._placed(cohort, snapshot)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                str(self.folder / f"snapshot-{snapshot.number}.json"),
                [
                    f"its checksums hold, but it is no snapshot of these trials ({type(error).__name__}: {error}); "
                    "restore the run's folder from a copy, or give another --output-dir; if nobody changed it, please report this"
                ],
            ) from error
        for trial in placed:
            watch(self._follow(cohort, Started(trial)))

    def _placed(self, cohort: Cohort, snapshot: checkpoints.Snapshot) -> list[Trial]:
        """Put schedule and cohort where they were; the trials that train."""
        note, given = snapshot.note, self.schedule.given
        self.schedule.restore(note["schedule"])
        # As before the cut, where that fits: who shares a pass changes the last bits of a product.
        cohort.size = min(note["size"], cohort.size)
        cohort.max_tokens = min(note["max_tokens"], cohort.max_tokens)
        cohort.max_eval_tokens = min(note["max_eval_tokens"], cohort.max_eval_tokens)
        for ident in note["active"][cohort.size :]:
            cohort.wait(given(ident), partial(snapshot.state, ident))
        for ident in note["parked"]:
            cohort.place(given(ident), snapshot.state(ident), parked=True)
        first = note["active"][: cohort.size]
        return [cohort.place(given(ident), snapshot.state(ident)) for ident in first]

    def _follow(self, cohort: Cohort, event: Event) -> Event:
        """Write down what happened. Gives what watchers are told of it: a trial whose end left no scores has failed."""
        ends = self.journal.history.ends
        if isinstance(event, EpochDone):
            self.schedule.observe(event.trial.id, event.result)
        if isinstance(event, PassesShrunk):
            self.journal.append(
                "passes-shrunk", training=event.training, evaluation=event.evaluation
            )
        elif isinstance(event, Advanced | Planned) or event.trial.id in ends:
            # Ended before the cut; see the module's docstring.
            if isinstance(event, TrialDone) and ends[event.trial.id]["kind"] == "trial-failed":
                return TrialFailed(event.trial, ends[event.trial.id]["reason"])
        elif isinstance(event, Started):
            self._started(event.trial)
        elif isinstance(event, EpochDone):
            self._epoch(event.trial, event.result.epoch)
        elif isinstance(event, TrialDone):
            self.journal.check_place()
            try:
                facts = self.finish(event.trial, cohort.max_eval_tokens)
            except NoNumbers as error:
                return self._follow(cohort, TrialFailed(event.trial, str(error)))
            self.journal.append("trial-done", id=event.trial.id, **facts)
        elif isinstance(event, TrialFailed):
            self.journal.append("trial-failed", id=event.trial.id, reason=event.reason)
        elif isinstance(event, TrialStopped):
            self.journal.append(
                "trial-stopped",
                id=event.trial.id,
                epoch=len(event.trial.results),
                best_epoch=event.trial.best_epoch,
                seconds=round(event.trial.seconds, 3),
            )
        else:
            assert isinstance(event, TrialParked)
        return event

    def _started(self, trial: Trial) -> None:
        spec = trial.given.spec
        counted = count_parameters(trial.given.method, self.bench.engine.sites)
        self.journal.append(
            "trial-started",
            id=spec.id,
            stage=self.name,
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
        for e in self.journal.history.epochs(trial.id):
            if e["epoch"] == number and (e["loss"], e["selection"]) == (r.loss, dict(r.selection)):
                return  # written before a cut
        self.journal.append(
            "epoch", id=trial.id, epoch=r.epoch, loss=r.loss, selection=dict(r.selection), step=r.step,
            seconds=round(r.seconds, 3),
        )  # fmt: skip

    def _save_if_due(self, cohort: Cohort, saving: Saving, stop: Stop) -> None:
        """A snapshot of the whole cohort where an epoch ends, just before its evaluation, from time to time, and at an end."""
        if not (saving.due(cohort.active) or (stop.wanted is not None and cohort.active)):
            return
        self.journal.check_place()
        parked = set(cohort.parked)
        self.settled &= parked
        states = {t.id: t.checkpoint() for t in cohort.active}
        states |= {i: t.checkpoint() for i, t in cohort.parked.items() if i not in self.settled}
        note = {
            "stage": self.name,
            "run": self.run,
            "schedule": self.schedule.state(),
            "active": [*(t.id for t in cohort.active), *cohort.waiting],
            "parked": list(cohort.parked),
            "size": cohort.size,
            "events": len(self.journal.history),
            "max_tokens": cohort.max_tokens,
            "max_eval_tokens": cohort.max_eval_tokens,
        }
        keep = self.settled.union(cohort.waiting)
        checkpoints.write_all(self.folder, states, note=note, keep=keep)
        self.settled = parked
        saving.saved(cohort.active)
