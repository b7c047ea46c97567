"""The seal on the test rows of a task: they are handed out through the journal, and for declared settings only.

Before the first opening the journal says for which settings the test set is opened; then each opening is written down before
it happens. Whoever asks for the same rows with other settings is refused: chosen after a look at the test scores, their
numbers would be optimistic. A cut may make a trial open twice; the second time is the same setting and seed, and is not
written again.

Limit: the seal knows one run's journal. Two runs on the same data know nothing of each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fleetune.cohort.trial import TrialInput
from fleetune.data.base import Split
from fleetune.data.tokens import TokenTable
from fleetune.errors import RefusedError
from fleetune.study.journal import Journal
from fleetune.study.prepare import PreparedTask

DECLARED, OPENED = "test-declared", "test-opened"


class Seal:
    """One task's test sets."""

    def __init__(self, journal: Journal, task: PreparedTask) -> None:
        self._journal = journal
        self._task = task
        self.name = task.dataset.task.name

    def declare(self, inputs: Sequence[TrialInput]) -> None:
        """Say for which trials the sets will be opened. RefusedError where they have been declared for others."""
        before = self._declared()
        if before is None:
            wanted = sorted({_digest(given) for given in inputs})
            self._journal.append(DECLARED, task=self.name, settings=wanted)
        else:
            self.check(inputs)

    def check(self, inputs: Sequence[TrialInput]) -> None:
        """RefusedError where the sets have been declared for other trials than these."""
        before = self._declared()
        if before is not None and not any(
            set(before) == {digest(given) for given in inputs} for digest in _NAMES
        ):
            raise RefusedError(
                f"{self._journal.path.parent}: the test rows of {self.name} are sealed for {len(before)} other trials; "
                "a second opening for other settings would be chosen by their test scores. Give another --output-dir"
            )

    def open(self, given: TrialInput) -> Mapping[str, tuple[Split, TokenTable]]:
        """The test rows by set, the main one first, for one trained trial."""
        if {name(given) for name in _NAMES}.isdisjoint(self._declared() or ()):
            raise RefusedError(
                f"{self._journal.path.parent}: the test rows of {self.name} are sealed for other settings than those of "
                f"{given.spec.id}"
            )
        ident = given.spec.id
        if not self._journal.history.all(OPENED, id=ident):
            self._journal.append(OPENED, id=ident, sets=list(self._task.test_tables))
        return {n: (self._task.dataset.tests[n], t) for n, t in self._task.test_tables.items()}

    def _declared(self) -> list[str] | None:
        told = self._journal.history.first(DECLARED, task=self.name)
        return None if told is None else told["settings"]


def _digest(given: TrialInput) -> str:
    """A short name of a setting with its seed. What is not set counts for nothing, so a setting that a later version adds, unset
    by default, leaves the name as it was."""
    spec = given.spec
    return _hashed(given, _given(spec.hyperparameters), _given(spec.training))


def _with_unset(given: TrialInput) -> str:
    """As the first versions sealed: with what is not set."""
    return _hashed(given, dict(given.spec.hyperparameters), dict(given.spec.training))


def _before_layers(given: TrialInput) -> str:
    """As they did before methods had a setting that may be unset (`layers_to_transform`)."""
    return _hashed(given, _given(given.spec.hyperparameters), dict(given.spec.training))


_NAMES = (_digest, _with_unset, _before_layers)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _hashed(given: TrialInput, *settings: dict[str, Any]) -> str:
    told = [given.spec.method, *settings, given.spec.seed, given.stop_epoch]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
