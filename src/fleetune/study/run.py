"""Train the trials of a run and keep everything: the journal first, then checkpoints, models, results.

The same command again goes on where the last one stopped: finished trials are not touched, started ones continue from
their checkpoints, and the numbers come out the same. Other settings in the same folder are refused, with the difference.
"""

from __future__ import annotations

import fcntl
import os
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fleetune.cohort.plan import cohorts, default_limits
from fleetune.cohort.train import Advanced as Advanced
from fleetune.cohort.train import (
    Cohort,
    EpochDone,
    Event,
    PassesShrunk,
    Started,
    TrialDone,
    TrialFailed,
)
from fleetune.cohort.trial import Trial, TrialInput
from fleetune.durable import TEMPORARY, remove_leftovers, write_bytes, write_json
from fleetune.errors import RefusedError
from fleetune.methods.base import count_parameters
from fleetune.study import checkpoints, journal, machine
from fleetune.study.journal import Journal
from fleetune.study.keep import Trained, keep, open_workbench
from fleetune.study.prepare import Prepared, as_toml
from fleetune.study.results import epochs, write_results

STUDY = "study.toml"
ENVIRONMENT = "environment.json"
TRIALS = "trials"
CHECKPOINTS = "checkpoints"
# A cut costs at most this much work. Writing a cohort's state takes well under a second.
SAVE_SECONDS = 300.0

Watch = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    done: int
    failed: int
    skipped: int
    """Trials that an earlier command had finished."""


class Run:
    """The folder of one run, locked while it trains."""

    def __init__(self, folder: Path, prepared: Prepared, device: str = "cpu") -> None:
        self.folder = folder
        self.prepared = prepared
        self.device = device
        self.saved_at = time.monotonic()

    def train(self, watch: Watch) -> Outcome:
        """Train what is not yet done. RefusedError: another command has the folder, or it holds another run."""
        refuse_foreign(self.folder)
        with locked(self.folder):
            self._open_folder()
            self.journal = Journal(self.folder / journal.NAME)
            try:
                return self._train(watch)
            except BaseException as error:
                self.journal.append("stopped", reason=type(error).__name__)
                raise
            finally:
                self.journal.close()

    def _open_folder(self) -> None:
        text = tomli_w.dumps(as_toml(self.prepared.settings))
        path = self.folder / STUDY
        if path.exists():
            refuse_changes(path, text)
        for folder in (self.folder, self.folder / TRIALS, self.folder / CHECKPOINTS):
            folder.mkdir(exist_ok=True)
            remove_leftovers(folder)
        found = machine.describe(self.prepared, self.device)
        environment = self.folder / ENVIRONMENT
        if environment.exists() and path.exists():
            machine.refuse_changes(environment, found)
        else:
            write_json(environment, found)
        # Last, since its presence says that this is a run.
        if not path.exists():
            write_bytes(path, text.encode())

    def _train(self, watch: Watch) -> Outcome:
        inputs = self.prepared.inputs
        self.ended = {
            e["id"]: e["kind"]
            for e in self.journal.events
            if e["kind"] in ("trial-done", "trial-failed")
        }
        skipped = len(self.ended)
        waiting = len(inputs) - skipped
        self.journal.append("run-started", trials=[i.spec.id for i in inputs], waiting=waiting)
        if waiting:
            self._load()
            states = checkpoints.read_all(self.folder / CHECKPOINTS)
            for group in cohorts(inputs, self.engine.backbone.family.shares):
                self._train_group(group, states, watch)
        checkpoints.clear(self.folder / CHECKPOINTS)
        write_results(self.folder, self.journal.events)
        failed = sum(kind == "trial-failed" for kind in self.ended.values())
        self.journal.append("run-done", failed=failed)
        return Outcome(len(inputs) - failed, failed, skipped)

    def _train_group(
        self, group: list[TrialInput], states: Mapping[str, checkpoints.State], watch: Watch
    ) -> None:
        """Train what is left of one cohort, from its last snapshot.

        Who shares a pass changes the last bits of a product. So the cohort goes on with exactly the trials that it held,
        at the same round: those of the snapshot that have ended since end a second time, and leave no trace.
        """
        ids = [given.spec.id for given in group]
        if all(ident in self.ended for ident in ids):
            return
        again = {ident for ident in ids if ident in states}
        if not again and "trial-done" not in [self.ended.get(ident) for ident in ids]:
            again = set(ids)  # from the beginning, with those that have failed since
        members = [g for g in group if g.spec.id in again or g.spec.id not in self.ended]
        limits = default_limits(self.device)
        cohort = Cohort(self.engine, members, size=limits.trials, max_tokens=limits.tokens)
        cohort.checkpoints.update({ident: states[ident] for ident in ids if ident in states})
        self._follow(cohort, watch)

    def _load(self) -> None:
        p = self.prepared
        rows = next(iter(p.test_tables.values()))
        self.bench = open_workbench(
            p.dataset.task, p.backbone, p.dtype, p.max_length, rows, self.device
        )
        self.engine = self.bench.engine

    def _follow(self, cohort: Cohort, watch: Watch) -> None:
        for event in cohort.run():
            if isinstance(event, Advanced):
                self._save_states(event.trials)
            elif isinstance(event, PassesShrunk):
                self.journal.append(
                    "passes-shrunk", training=event.training, evaluation=event.evaluation
                )
            elif event.trial.id in self.ended:
                pass  # ended before the cut; see _train_group
            elif isinstance(event, Started):
                self._started(event.trial)
            elif isinstance(event, EpochDone):
                self._epoch(event.trial, event.result.epoch)
            elif isinstance(event, TrialDone):
                self._finish(event.trial)
                self.ended[event.trial.id] = "trial-done"
            elif isinstance(event, TrialFailed):
                self.journal.append("trial-failed", id=event.trial.id, reason=event.reason)
                self.ended[event.trial.id] = "trial-failed"
            watch(event)

    def _started(self, trial: Trial) -> None:
        spec = trial.given.spec
        counted = count_parameters(trial.given.method, self.engine.sites)
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

    def _save_states(self, trials: Sequence[Trial]) -> None:
        """A snapshot of the whole cohort where an epoch ends, just before its evaluation, and from time to time."""
        due = any(trial.at_epoch_end for trial in trials)
        if due or (trials and time.monotonic() - self.saved_at > SAVE_SECONDS):
            checkpoints.write_all(
                self.folder / CHECKPOINTS, {trial.id: trial.checkpoint() for trial in trials}
            )
            self.saved_at = time.monotonic()

    def _finish(self, trial: Trial) -> None:
        """Open the test set, save the model, and only then say that the trial is done."""
        prepared = self.prepared
        if not any(e["kind"] == "test-opened" and e["id"] == trial.id for e in self.journal.events):
            self.journal.append("test-opened", id=trial.id, sets=list(prepared.test_tables))
        tests = {n: (prepared.dataset.tests[n], table) for n, table in prepared.test_tables.items()}
        best = trial.results[trial.best_epoch - 1]
        facts = keep(
            self.folder / TRIALS / trial.id,
            self.bench,
            Trained(trial.given, trial.owned, trial.best_epoch, best.selection, trial.seconds),
            tests,
            optimistic=prepared.optimistic,
        )
        self.journal.append("trial-done", id=trial.id, **facts)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold a run's folder; RefusedError (exit 6) while another process does. A killed process's lock is no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RefusedError(
                f"{folder}: another fleetune command is working in it; wait for it, or give another --output-dir"
            ) from None
        yield
    finally:
        os.close(handle)


def refuse_foreign(folder: Path) -> None:
    """RefusedError for a folder that holds anything but a run, or the beginning of one that a cut left."""
    if folder.exists() and not folder.is_dir():
        raise RefusedError(f"{folder}: is a file; give --output-dir a new folder")
    if not folder.exists() or (folder / STUDY).exists():
        return
    for path in folder.iterdir():
        empty = path.name in (TRIALS, CHECKPOINTS) and path.is_dir() and not any(path.iterdir())
        if not (empty or path.name in (".lock", ENVIRONMENT) or path.name.startswith(TEMPORARY)):
            raise RefusedError(
                f"{folder}: not empty, and not a run of fleetune; give --output-dir a new folder"
            )


def refuse_changes(path: Path, text: str) -> None:
    old, new = _flat(tomllib.loads(path.read_text(encoding="utf-8"))), _flat(tomllib.loads(text))
    changed = [
        f"  {key}: {old.get(key, 'unset')!r} there, {new.get(key, 'unset')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        listing = "\n".join(changed)
        raise RefusedError(
            f"{path.parent}: holds a run with other settings; give another --output-dir, or the same settings to go on\n{listing}"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{prefix}.{key}".strip(".")).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {
            k: v
            for i, inner in enumerate(value)
            for k, v in _flat(inner, f"{prefix}.{i + 1}").items()
        }
    return {prefix: value}
