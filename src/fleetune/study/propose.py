"""Which settings to try next: grid, random draws, or TPE (Bergstra et al. 2011) through Optuna.

Each batch of proposals is a function of the study's seed, the arm, the number of the batch and what came of all batches
before: nothing is kept in between, so a search that goes on after a cut, or in a cohort of another size, proposes the same.
Optuna is asked and told through a study in memory that is built anew from our own results each time; its own storages are
not used (a torn last line makes its journal unreadable).

Scores here are higher for better, whatever the metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleetune.seeds import digest
from fleetune.study.forms import Choice
from fleetune.study.space import Arm

DONE, STOPPED, FAILED = "done", "stopped", "failed"
PROPOSED = "proposed"
"""The kind of event that names the settings of a batch and their trials."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One setting that was tried, and what came of it."""

    picks: Mapping[str, Any]
    curve: tuple[float, ...]
    """Score after each epoch, on average over the folds under "cv"."""
    state: str
    """"done" at its end, "stopped" by the pruner, or "failed"."""

    @property
    def score(self) -> float:
        return max(self.curve, default=float("-inf"))


def propose(
    sampler: str,
    arm: Arm,
    tried: Sequence[Tried],
    *,
    count: int,
    startup: int,
    seed: int,
    task: str,
) -> list[dict[str, Any]]:
    """The next `count` settings of an arm. startup: so many are drawn at random before TPE looks at any."""
    if not arm.searched:
        return [{} for _ in range(count)]
    if sampler == "grid":
        points = arm.grid()
        # More trials than points: the rest of an equal budget goes into further seeds of the same points.
        return [points[(len(tried) + i) % len(points)] for i in range(count)]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number = int.from_bytes(digest(seed, "search", task, arm.name, len(tried))[:4], "big")
    if sampler == "tpe":
        # Said in full, since Optuna 5 changed these defaults.
        chosen: Any = optuna.samplers.TPESampler(
            seed=number, n_startup_trials=startup, multivariate=True, constant_liar=True
        )
    else:
        chosen = optuna.samplers.RandomSampler(seed=number)
    study = optuna.create_study(direction="maximize", sampler=chosen)
    study.add_trials([frozen(arm, one) for one in tried])
    asked = [study.ask(distributions(arm)) for _ in range(count)]
    return [{key: decoded(arm, key, trial.params[key]) for key in arm.searched} for trial in asked]


def distributions(arm: Arm) -> dict[str, Any]:
    """The space of an arm as Optuna has it."""
    from optuna import distributions as d

    found: dict[str, Any] = {}
    for key, space in arm.searched.items():
        if isinstance(space, Choice):
            found[key] = d.CategoricalDistribution([encoded(v) for v in space.values])
        elif space.whole:
            found[key] = d.IntDistribution(int(space.low), int(space.high), log=space.log)
        else:
            found[key] = d.FloatDistribution(space.low, space.high, log=space.log)
    return found


def frozen(arm: Arm, one: Tried, value: float | None = None, **attributes: Any) -> Any:
    """One result as a trial of Optuna. A failed one stands below all that were stopped, so that TPE keeps away.

    value: the score of one that trained to its end, where it is not the highest of its curve.
    """
    from optuna.trial import TrialState, create_trial

    done = one.state == DONE
    return create_trial(
        state=TrialState.COMPLETE if done else TrialState.PRUNED,
        value=(one.score if value is None else value) if done else None,
        params={key: encoded(value) for key, value in one.picks.items()},
        distributions=distributions(arm),
        intermediate_values={}
        if one.state == FAILED
        else {epoch: score for epoch, score in enumerate(one.curve, start=1)},
        user_attrs=attributes,
    )


def encoded(value: Any) -> Any:
    """A listed value as Optuna can hold it: lists as JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def decoded(arm: Arm, key: str, value: Any) -> Any:
    """The listed value itself."""
    space = arm.searched[key]
    if not isinstance(space, Choice):
        return value
    return next(v for v in space.values if encoded(v) == value and type(encoded(v)) is type(value))
