"""Train the trials of a run and keep everything: the journal first, then checkpoints, models, results.

A run is a list of stages (stage.py): for each task the search, where there is one, and then the trials that are measured on
the test rows. `train` is a study with fixed settings and no search. The same command again goes on where the last one
stopped: finished trials are not touched, started ones continue from their checkpoints, and the numbers come out the same.
Other settings in the same folder are refused, with the difference. What was found damaged is told, in the journal too.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from fleetune.backbone.families import family_of
from fleetune.cohort.plan import groups
from fleetune.cohort.room import Returned
from fleetune.cohort.schedule import FixedList, Resumable
from fleetune.cohort.trial import Trial, TrialInput
from fleetune.durable import make_folder, remove_leftovers, sha256, write_bytes, write_json
from fleetune.errors import DataError, RefusedError
from fleetune.study import checkpoints, journal, limits, machine, plan
from fleetune.study.folder import (
    CHECKPOINTS,
    ENVIRONMENT,
    STUDY,
    TRIALS,
    locked,
    refuse_changes,
    refuse_foreign,
    refuse_lost,
)
from fleetune.study.journal import Journal
from fleetune.study.keep import Trained, keep, open_workbench
from fleetune.study.prepare import Prepared, PreparedTask
from fleetune.study.results import write_results
from fleetune.study.saving import SAVE_SECONDS as SAVE_SECONDS
from fleetune.study.saving import Saving
from fleetune.study.seal import Seal
from fleetune.study.search import Chosen, Search, choose
from fleetune.study.settings import TRAIN, as_toml
from fleetune.study.stage import Finish, Stage, Watch


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    done: int
    failed: int
    skipped: int
    """Trials that an earlier command had finished."""


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"fleetune: {text}\n")


class Run:
    """The folder of one run, locked while it trains.

    trials: how many may train at once; None: what suits the device. save_steps: see saving.py. tell: takes a sentence about
    what was found damaged or changed; by default it goes to stderr.
    """

    begun = False
    """Whether this process has had a run to go on with."""

    def __init__(
        self,
        folder: Path,
        prepared: Prepared,
        device: str = "cpu",
        trials: int | None = None,
        save_steps: int | None = None,
        tell: Callable[[str], None] = _to_stderr,
    ) -> None:
        self.folder = folder
        self.prepared = prepared
        self.device = device
        self.trials = trials
        self.save_steps = save_steps
        self.tell = tell
        self.bench: Any = None
        self.family = family_of(prepared.backbone.config)

    def train(self, watch: Watch, *, held: bool = False) -> Outcome:
        """Train what is not yet done. RefusedError: another command has the folder, or it holds another run.

        held: the caller has the folder locked (given.py).
        """
        refuse_foreign(self.folder)
        with contextlib.nullcontext() if held else locked(self.folder):
            changed = self._open_folder()
            self.journal = Journal(self.folder / journal.NAME)
            with contextlib.closing(self.journal):
                self._refuse_other_trials()
                try:
                    self._mend(changed)
                    return self._train(watch)
                except BaseException as error:
                    # Where the disk refuses this too, the first error is the one to tell.
                    with contextlib.suppress(OSError, RefusedError):
                        self.journal.append("stopped", reason=type(error).__name__)
                    raise

    def _refuse_other_trials(self) -> None:
        """RefusedError where the test rows are sealed for others; before anything is written down of this call.

        What a study measures is known once its search is over: `_task` asks then.
        """
        for task in self.prepared.tasks:
            if own := self._fixed_trials(task):
                Seal(self.journal, task).check(own)

    def _fixed_trials(self, task: PreparedTask) -> list[TrialInput]:
        """The trials of a task that are known without a search."""
        return [i for i in self.prepared.inputs if i.spec.task == task.dataset.task.name]

    def _open_folder(self) -> list[str]:
        """Refuse another run; make what is not there yet. What has changed in the machine, since rounding may follow it."""
        text = tomli_w.dumps(as_toml(self.prepared.settings))
        path = self.folder / STUDY
        if path.exists():
            refuse_changes(path, text)
        for folder in (self.folder, self.folder / TRIALS, self.folder / CHECKPOINTS):
            make_folder(folder)
            remove_leftovers(folder)
        found = machine.describe(self.prepared, self.device)
        environment = self.folder / ENVIRONMENT
        if path.exists():
            refuse_lost(self.folder)
            Run.begun = True
            return machine.refuse_changes(environment, found)
        write_json(environment, found)
        # Last, since its presence says that this is a run.
        write_bytes(path, text.encode())
        Run.begun = True
        return []

    def _mend(self, changed: Sequence[str]) -> None:
        """Tell what a cut or damage has left, set aside what cannot be used, and write that down.

        DataError where environment.json is not what the run began with.
        """
        history = self.journal.history
        began = history.first("run-started")
        if began is not None and began.get("environment") != sha256(self.folder / ENVIRONMENT):
            raise DataError(
                str(self.folder / ENVIRONMENT),
                [
                    "changed since the run began; restore it from a copy, or give another --output-dir"
                ],
            )
        if self.journal.repaired:
            told = f"{journal.NAME}: {self.journal.repaired} bytes of a last line that is unfinished or damaged were cut off"
            self._mended("journal-repaired", told, bytes=self.journal.repaired)
        if changed:
            told = f"going on elsewhere ({'; '.join(changed)}): numbers may differ in their last digits"
            self._mended("machine-changed", told, changes=list(changed))
        folder = self.folder / CHECKPOINTS
        for told in checkpoints.set_aside_damaged(folder, self.journal.found, self._name()):
            self._mended("checkpoint-damaged", f"{CHECKPOINTS}/: {told}", told=told)
        begun = {e["id"] for e in history.all("epoch")} - history.ends.keys()
        if begun and not checkpoints.any_whole(folder):
            told = f"{CHECKPOINTS}/: no whole snapshot is left; the trials that had not ended start again"
            self._mended("checkpoint-damaged", told, told=told)
        done = [e["id"] for e in history.all("trial-done") if e["test"]]
        gone = [ident for ident in done if not (self.folder / TRIALS / ident).is_dir()]
        if gone:
            told = f"{TRIALS}/: the saved models of {', '.join(gone)} are missing; their scores are kept"
            self._mended("models-missing", told, trials=gone)

    def _mended(self, kind: str, text: str, **facts: Any) -> None:
        self.journal.append(kind, **facts)
        self.tell(text)

    def _train(self, watch: Watch) -> Outcome:
        inputs = self.prepared.inputs
        ends = self.journal.history.ends
        before = len(ends)
        self.journal.append(
            "run-started",
            trials=[i.spec.id for i in inputs],
            waiting=len(inputs) - before if inputs else None,
            environment=sha256(self.folder / ENVIRONMENT),
        )
        for task in self.prepared.tasks:
            self._task(task, watch)
        checkpoints.clear(self.folder / CHECKPOINTS)
        write_results(self.folder, self.journal.history)
        failed = sum(e["kind"] == "trial-failed" for e in ends.values())
        self.journal.append("run-done", failed=failed)
        return Outcome(len(ends) - failed, failed, before)

    def _task(self, task: PreparedTask, watch: Watch) -> None:
        """Search where there is something to search, then train what is measured."""
        self._unload()
        settings = self.prepared.settings
        if self.prepared.optimistic:
            main, _ = task.dataset.main_test
            self._tell("test-selects", task=task.dataset.task.name, sets=[main])
        if settings.phase == TRAIN:
            inputs = self._fixed_trials(task)
        else:
            chosen = self._search(task, watch)
            inputs = plan.confirm_trials(self.prepared, task, chosen)
            self._tell(
                "phase-started",
                task=task.dataset.task.name,
                phase=settings.phase,
                trials=[i.spec.id for i in inputs],
                arms=plan.trials_by_arm(self.prepared, chosen, inputs),
            )
        seal = Seal(self.journal, task)
        seal.declare(inputs)
        for number, group in enumerate(groups(inputs, lambda i: i.method, self.family)):
            ends = self.journal.history.ends
            members = group.members
            if all(i.spec.id in ends for i in members):
                continue
            name = f"{task.dataset.task.name}/{settings.phase}/{number}"
            snapshot = checkpoints.newest(self.folder / CHECKPOINTS, name)
            done = any(self.journal.history.all("trial-done", id=i.spec.id) for i in members)
            if snapshot is None and done:
                members = [i for i in members if i.spec.id not in ends]
            finish = partial(self._finish, seal)
            self._stage(name, task, FixedList(members), group.members, finish, watch, group.why)

    def _search(self, task: PreparedTask, watch: Watch) -> dict[str, Chosen]:
        """The setting of each arm, from the journal where it is there."""
        name = task.dataset.task.name
        found = {
            e["arm"]: Chosen(**{f.name: e[f.name] for f in fields(Chosen)})
            for e in self.journal.history.all("chosen", task=name)
        }
        arms = plan.budgets(self.prepared)
        for arm, budget in arms:
            if budget.trials == 0 and arm.name not in found:
                found[arm.name] = Chosen(arm.name, {}, None, None)
                self.journal.append("chosen", task=name, **asdict(found[arm.name]))
        searched = [arm for arm, budget in arms if budget.trials]
        for number, group in enumerate(groups(searched, plan.method, self.family)):
            if all(arm.name in found for arm in group.members):
                continue
            search = plan.search(self.prepared, task, group.members, self.journal)
            sample = plan.search_sample(self.prepared, task, group.members)
            finish = partial(_searched, self.prepared.optimistic)
            stage = f"{name}/search/{number}"
            self._stage(stage, task, search, sample, finish, watch, group.why)
            for one_arm in search.arms:
                if one_arm.arm.name in found:
                    continue  # a cut came between the arms of a group
                best = choose(one_arm, fixed_epochs=self.prepared.settings.data.protocol == "cv")
                found[one_arm.arm.name] = best
                self.journal.append("chosen", task=name, **asdict(best))
        return found

    def _stage(
        self,
        name: str,
        task: PreparedTask,
        schedule: Resumable,
        sample: Sequence[TrialInput],
        finish: Finish,
        watch: Watch,
        alone: str | None,
    ) -> None:
        """sample: its trials, or what stands for them. alone: why they train one after the other; None: they share."""
        self._load(task)
        place = self.folder / CHECKPOINTS
        stage = Stage(name, self.bench, schedule, self.journal, place, self._name(), finish)
        found = limits.known(name, self.bench.engine, self.journal)
        if found is None or (self.trials is not None and found.trials > self.trials):
            planned = limits.planned(
                name,
                self.bench.engine,
                sample,
                self.journal,
                parked=len(sample) if isinstance(schedule, Search) else 0,
                size=self.trials,
                alone=alone,
            )
            watch(planned)
            found = planned.limits
        stage.train(found, Saving(self.save_steps, SAVE_SECONDS), watch)

    def _name(self) -> str:
        """What tells this run from others: its settings, and the data and backbone that it began with."""
        told = "".join(sha256(self.folder / name) for name in (STUDY, ENVIRONMENT))
        return hashlib.sha256(told.encode()).hexdigest()

    def _load(self, task: PreparedTask) -> None:
        if self.bench is None:
            p = self.prepared
            self.bench = open_workbench(
                task.dataset.task, p.backbone, p.dtype, p.max_length, task.rows.table, self.device
            )

    def _unload(self) -> None:
        """Free the backbone of the task before, since the next one's is planned by the memory that is left."""
        if self.bench is not None:
            self.bench = None
            # Opened modules and what is hooked into them know one another, so that only the collector frees them.
            gc.collect()
            Returned().now()

    def _finish(self, seal: Seal, trial: Trial, max_tokens: int) -> Mapping[str, Any]:
        """Open the test set and save the model; only then the trial is said to be done."""
        best = trial.results[trial.best_epoch - 1]
        return keep(
            self.folder / TRIALS / trial.id,
            self.bench,
            Trained(
                trial.given,
                trial.owned,
                trial.best_epoch,
                best.selection,
                trial.seconds,
                _tokens_trained(trial),
                max_tokens,
            ),
            seal.open(trial.given),
            optimistic=self.prepared.optimistic,
        )

    def _tell(self, kind: str, **facts: Any) -> None:
        """An event that a resumed run does not repeat."""
        if self.journal.history.first(kind, **facts) is None:
            self.journal.append(kind, **facts)


def _searched(optimistic: bool, trial: Trial, _: int) -> dict[str, Any]:
    """What a search trial leaves: its scores on the selection rows, and no prediction of the test rows."""
    best = trial.results[trial.best_epoch - 1]
    return {
        "best_epoch": trial.best_epoch,
        "selection": {**best.selection, "n": len(trial.given.selection)},
        "test": None,
        "tests": {},
        "optimistic": optimistic,
        "seconds": round(trial.seconds, 3),
    }


def _tokens_trained(trial: Trial) -> int:
    """Tokens of all the sequences that a trial has trained on, over its epochs."""
    rows = trial.given.train
    return round(
        int(rows.table.lengths[rows.rows].sum()) * trial.micro_step / trial.micro_per_epoch
    )
