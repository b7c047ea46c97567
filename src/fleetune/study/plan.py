"""What a study trains: the search of each arm with its budget, and the trials that confirm what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fleetune.cohort.trial import TrialInput
from fleetune.methods.base import Method
from fleetune.methods.table import method_class
from fleetune.study.forms import Choice
from fleetune.study.journal import Journal
from fleetune.study.prepare import Prepared, PreparedTask
from fleetune.study.propose import PROPOSED, Tried, propose
from fleetune.study.rows import FOLDS, TaskRows, settle, trial_input
from fleetune.study.search import Budget, Chosen, Search
from fleetune.study.settings import SEARCH, SearchSettings
from fleetune.study.space import Arm

# Three settings are the fewest that halving can thin out.
LEAST_BATCH = 3


def batch_size(search: SearchSettings) -> int:
    """Settings that are proposed at once: all, or a third for a sampler that learns from what was tried."""
    if search.batch is not None:
        return min(search.batch, search.trials_per_method)
    if search.sampler != "tpe":
        return search.trials_per_method
    third = math.ceil(search.trials_per_method / 3)
    return min(max(third, LEAST_BATCH), search.trials_per_method)


def budgets(prepared: Prepared) -> list[tuple[Arm, Budget]]:
    """Each arm with its budget: equal for all that search; none for an arm with nothing to choose.

    Under protocol "cv" such an arm still tries its one setting, since the folds choose the number of epochs.
    """
    settings = prepared.settings
    one = Budget(1 if settings.data.protocol == "cv" else 0, 1, False)
    if settings.search is None:
        return [(arm, one) for arm in prepared.arms]
    s = settings.search
    equal = Budget(s.trials_per_method, batch_size(s), s.pruner == "halving")
    return [(arm, equal if arm.searched else one) for arm in prepared.arms]


def method(arm: Arm) -> type[Method]:
    """The method of all its trials."""
    return method_class(arm.method)


def search(prepared: Prepared, task: PreparedTask, arms: Sequence[Arm], journal: Journal) -> Search:
    """The search of some arms on a task. It is given the task's open rows, and has no way to its test sets."""
    settings = prepared.settings.search or SearchSettings()
    chosen = [(arm, budget) for arm, budget in budgets(prepared) if arm in arms]
    return Search(
        chosen,
        partial(_propose, settings, task.rows, journal),
        partial(_candidate, settings, task.rows),
    )


def search_sample(
    prepared: Prepared, task: PreparedTask, arms: Sequence[Arm]
) -> tuple[TrialInput, ...]:
    """Trials that stand for one batch of a search where memory is planned: they hold the ends of every range."""
    settings = prepared.settings.search or SearchSettings()
    found: list[TrialInput] = []
    for arm, budget in budgets(prepared):
        if arm in arms:
            corners = arm.corners()
            picks = [corners[i % len(corners)] for i in range(max(budget.batch, len(corners)))]
            parts = task.rows.divisions(settings.seed)
            found += [
                trial_input(
                    task.rows,
                    settle(arm, p, task.rows),
                    part,
                    ident=f"{arm.name}-{i}",
                    seed=settings.seed,
                    phase=SEARCH,
                )
                for i, p in enumerate(picks)
                for part in parts
            ]
    return tuple(found)


def _propose(
    settings: SearchSettings,
    rows: TaskRows,
    journal: Journal,
    arm: Arm,
    tried: Sequence[Tried],
    count: int,
) -> list[dict[str, Any]]:
    """The next settings of an arm: those in the journal where a command before has written them."""
    task, first = rows.task.name, len(tried)
    if (told := journal.history.first(PROPOSED, task=task, arm=arm.name, first=first)) is not None:
        return told["settings"]
    found = propose(
        settings.sampler,
        arm,
        tried,
        count=count,
        startup=batch_size(settings),
        seed=settings.seed,
        task=task,
    )
    ids = [[f"{rows.prefix}{n}" for n in _names(rows, arm, first + i)] for i in range(count)]
    journal.append(PROPOSED, task=task, arm=arm.name, first=first, settings=found, trials=ids)
    return found


def _names(rows: TaskRows, arm: Arm, number: int) -> list[str]:
    """The names of the trials of one setting: one, or one a fold."""
    stem = f"{arm.name}-t{number + 1:02d}"
    return [f"{stem}-f{k + 1}" for k in range(FOLDS)] if rows.protocol == "cv" else [stem]


def _candidate(
    settings: SearchSettings,
    rows: TaskRows,
    arm: Arm,
    picks: Mapping[str, Any],
    number: int,
    before: int,
) -> tuple[TrialInput, ...]:
    """The trials of one setting. All settings share the search's first seed, so that they are compared on the same rows;
    a setting that is tried again takes the next one."""
    seed = settings.seed + before
    setting = settle(arm, picks, rows)
    parts = rows.divisions(seed)
    return tuple(
        trial_input(rows, setting, part, ident=name, seed=seed, phase=SEARCH)
        for name, part in zip(_names(rows, arm, number), parts, strict=True)
    )


def confirm_trials(
    prepared: Prepared, task: PreparedTask, chosen: Mapping[str, Chosen]
) -> tuple[TrialInput, ...]:
    """The best setting of each arm with the study's fresh seeds, the same for every arm."""
    rows, settings = task.rows, prepared.settings
    found: list[TrialInput] = []
    for arm in prepared.arms:
        best = chosen[arm.name]
        if best.picks is None:
            continue
        setting = settle(arm, best.picks, rows)
        for seed in settings.seeds:
            refit = best.epochs is not None
            found.append(
                trial_input(
                    rows,
                    setting,
                    rows.whole if refit else rows.divisions(seed)[0],
                    ident=f"{arm.name}-s{seed}",
                    seed=seed,
                    phase=settings.phase,
                    stop_epoch=best.epochs,
                )
            )
    return tuple(found)


def trials_by_arm(
    prepared: Prepared, chosen: Mapping[str, Chosen], inputs: Sequence[TrialInput]
) -> dict[str, list[str]]:
    """The confirm trials of each arm, by the arm's name; an arm whose search failed has none."""
    names = [arm.name for arm in prepared.arms if chosen[arm.name].picks is not None]
    ids, seeds = [given.spec.id for given in inputs], len(prepared.settings.seeds)
    return {name: ids[i * seeds : (i + 1) * seeds] for i, name in enumerate(names)}


def searched_values(arm: Arm) -> dict[str, Any]:
    """What an arm searches, in the form of a study file."""
    return {
        key: list(space.values)
        if isinstance(space, Choice)
        else {"low": space.low, "high": space.high, "log": space.log}
        for key, space in arm.searched.items()
    }
