"""`report_to`: what a run finds, also for TensorBoard or trackio, where the user asked for them.

The journal stays the truth. When a command begins, every trial of the journal is given to the writers anew, and a point that a
writer has is not given again; so a run that was cut has neither gaps nor doubled points, and `report_to` may be added later.
A writer never ends a run: where one fails this is said, and training goes on without it.

The names are those of `transformers.TrainingArguments.report_to`. Nothing is imported and nothing written unless it is named.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fleetune.artifact import layout
from fleetune.cohort.events import EpochDone, Event, Started, TrialDone, TrialFailed, TrialStopped
from fleetune.errors import EnvironmentProblem, SettingsError, did_you_mean, printable
from fleetune.study import journal
from fleetune.study.folder import TRIALS
from fleetune.study.stage import Watch

NONE = "none"


@dataclass(frozen=True, slots=True)
class Point:
    """What an epoch gave, by tag: "train/loss", "selection/accuracy", ..."""

    epoch: int
    step: int
    time: float
    """Seconds since 1970."""
    values: Mapping[str, float]


class Writer(Protocol):
    """Each trial is a run, or a folder, of its own; a writer is told of it in this order."""

    def begin(self, ident: str, settings: Mapping[str, Any]) -> None:
        """A trial whose points follow, from the first. What is there of it from an earlier command makes way."""
        ...

    def add(self, ident: str, point: Point) -> None:
        """One epoch."""
        ...

    def end(self, ident: str, scores: Mapping[str, float]) -> None:
        """The trial has ended. scores: on the test sets by tag, where it was measured."""
        ...

    def close(self) -> str:
        """Write what is held back. Returns how to look at it."""
        ...


# Name to (module of ours, class, what must be installed). The extra of pyproject.toml has the name too.
WRITERS = {
    "tensorboard": ("fleetune.live.to_tensorboard", "TensorBoard", "tensorboard"),
    "trackio": ("fleetune.live.to_trackio", "Trackio", "trackio"),
}


def report_names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The writers that are asked for. SettingsError for an unknown name, EnvironmentProblem for a missing package."""
    words = [given] if isinstance(given, str) else given or ()
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    names = [name for name in dict.fromkeys(names) if name != NONE]
    wrong = [n for n in names if n not in WRITERS]
    if wrong:
        raise SettingsError(
            "report_to", [f'there is no "{n}"{did_you_mean(n, (*WRITERS, NONE))}' for n in wrong]
        )
    for name in names:
        package = WRITERS[name][2]
        if find_spec(package) is None:
            raise EnvironmentProblem(
                f"report_to {name}: the package {package} is not installed; pip install 'fleetune[{name}]', "
                "or leave report_to out"
            )
    return tuple(names)


@contextmanager
def reported(folder: Path, names: Sequence[str]) -> Generator[Watch]:
    """A function to be told every event of the run in this folder; it does nothing where no writer is named."""
    if not names:
        yield lambda event: None
        return
    reporter = Reporter(folder, names)
    try:
        yield reporter.watch
        reporter.open()  # where nothing was left to train, nothing was told
    finally:
        reporter.close()


class Reporter:
    """Gives what the journal knows, and then what happens, to the writers."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names
        self.writers: dict[str, Writer] = {}
        self.opened = self.optimistic = False
        self._begun: set[str] = set()
        self._told: set[tuple[str, int]] = set()
        self._ended: set[str] = set()

    def open(self) -> None:
        """Give the writers what earlier commands have found; only now is the folder known to be a run, and ours."""
        if self.opened:
            return
        self.opened = True
        for name in self.names:
            module, kind, _ = WRITERS[name]
            self._try(name, lambda m=module, k=kind, n=name: self._make(n, m, k))
        history = journal.read(self.folder / journal.NAME)
        self.optimistic = history.first("test-selects") is not None
        for ident, begun in history.begun.items():
            self._begin(ident, begun)
            for e in history.epochs(ident):
                self._add(ident, e["epoch"], e, e["time"])
        for ident, end in history.ends.items():
            self._end(ident, test_tags(end))

    def watch(self, event: Event) -> None:
        """Take an event in."""
        self.open()
        if isinstance(event, Started):
            spec = event.trial.given.spec
            names = ("task", "method", "hyperparameters", "training", "seed", "phase")
            self._begin(event.trial.id, {n: getattr(spec, n) for n in names})
        elif isinstance(event, EpochDone):
            r = event.result
            facts = {"loss": r.loss, "selection": r.selection, "step": r.step}
            self._add(event.trial.id, r.epoch, facts, time.time())
        elif isinstance(event, TrialDone):
            self._end(event.trial.id, self._measured(event.trial.id))
        elif isinstance(event, TrialFailed | TrialStopped):
            self._end(event.trial.id, {})

    def close(self) -> None:
        """Let the writers finish, and say how to look at what they wrote."""
        for name, writer in list(self.writers.items()):
            self._try(name, lambda n=name, w=writer: _say(f"{n}: {w.close()}"))
        self.writers.clear()

    def _make(self, name: str, module: str, kind: str) -> None:
        self.writers[name] = getattr(importlib.import_module(module), kind)(self.folder)

    def _begin(self, ident: str, facts: Mapping[str, Any]) -> None:
        if ident in self._begun:
            return
        self._begun.add(ident)
        settings = {
            "method": facts["method"],
            "task": facts["task"],
            "phase": facts["phase"],
            "seed": facts["seed"],
            **facts["training"],
            **facts["hyperparameters"],
        }
        self._each("begin", ident, settings)

    def _add(self, ident: str, epoch: int, facts: Mapping[str, Any], at: float) -> None:
        if (ident, epoch) in self._told:
            return
        self._told.add((ident, epoch))
        group = f"selection{OPTIMISTIC}" if self.optimistic else "selection"
        values = {"train/loss": facts["loss"]}
        values |= {f"{group}/{k}": v for k, v in facts["selection"].items()}
        self._each("add", ident, Point(epoch, facts["step"], at, values))

    def _end(self, ident: str, scores: Mapping[str, float]) -> None:
        if ident in self._begun and ident not in self._ended:
            self._ended.add(ident)
            self._each("end", ident, scores)

    def _measured(self, ident: str) -> dict[str, float]:
        """Scores on the test sets of a trial that has just been saved; a search's trial has none."""
        path = self.folder / TRIALS / ident / layout.METRICS
        return test_tags(json.loads(path.read_text("utf-8"))) if path.is_file() else {}

    def _each(self, verb: str, *given: Any) -> None:
        for name, writer in list(self.writers.items()):
            self._try(name, lambda w=writer: getattr(w, verb)(*given))

    def _try(self, name: str, act: Any) -> None:
        """A writer of another's making may fail in any way; the run does not depend on it."""
        try:
            act()
        except Exception as error:
            self.writers.pop(name, None)
            _say(
                f"report_to {name}: {type(error).__name__}: {error}; training goes on without it, and the same command "
                "writes what is missing"
            )


OPTIMISTIC = "_optimistic"
"""At the name of a group whose numbers were chosen on the same rows."""


def test_tags(facts: Mapping[str, Any]) -> dict[str, float]:
    """Scores on the test sets by tag; those that chose their own epoch carry the stamp."""
    stamp = OPTIMISTIC if facts.get("optimistic") else ""
    return {
        f"{name}{stamp}/{metric}": value
        for name, scores in (facts.get("tests") or {}).items()
        for metric, value in scores.items()
        if metric != "n"
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{printable(text)}\n")
