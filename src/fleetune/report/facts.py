"""What a run found, as one dictionary; terminal, JSON and every later page print from it and from nothing else.

The form is the contract of `fleetune show RUN --json`: study, trials, estimates, verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fleetune.data.metrics import compute
from fleetune.records import as_json
from fleetune.report import study_facts, trainings
from fleetune.report.lost import lost_groups
from fleetune.report.stored import damage_told
from fleetune.report.trainings import Group, Outputs, Saved
from fleetune.report.trial_facts import trial_facts
from fleetune.stats.failed import failed_as, learned_nothing
from fleetune.stats.intervals import metric_estimate

# Fields of a trial's training that tell two settings of one method apart at a glance.
_SHOWN = ("learning_rate", "num_train_epochs", "max_steps")


def run_facts(folder: Path) -> dict[str, Any]:
    """The facts of a run. SettingsError where the folder is none; DataError where one of its files is damaged."""
    facts = trial_facts(folder)
    with damage_told(folder):
        return _judged(folder, facts)


def _judged(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with all that their predictions say."""
    trials, arms, study = facts["trials"], facts["arms"], facts["study"]
    saved = Saved(folder)
    lost = lost_groups(folder, trainings.groups(trials), saved)
    gone = {ident for record in lost for ident in record["trials"]}
    groups = trainings.groups([t for t in trials if t["id"] not in gone])
    names = study_facts.given_names(study.get("methods", []), arms, trials)
    whole: dict[str, Any] = {
        "study": study,
        "trials": trials,
        "estimates": _estimates(saved, groups, names, study["optimistic"]),
        "verdicts": [],
        "over_tasks": [],
        "arms": arms,
        "rank": [],
        "cohorts": facts["cohorts"],
        "lost": lost,
    }
    of = {t["id"]: group for group in groups for t in (*group.done, *group.failed)}

    def read(estimate: Mapping[str, Any]) -> Outputs:
        group = of[study_facts.trainings_of(estimate)[0]]
        return saved.outputs(group, estimate["set"])

    whole["verdicts"] = study_facts.verdicts(whole, read)
    whole["over_tasks"] = study_facts.over_tasks(whole)
    if arms:
        whole["rank"] = study_facts.rank_facts(whole, read)
    return whole


def _estimates(
    saved: Saved, groups: Sequence[Group], names: Mapping[str, str], optimistic: bool
) -> list[dict[str, Any]]:
    """One estimate a method, setting, test set and official metric, over all seeds that have ended or failed."""
    found: list[dict[str, Any]] = []
    for group in groups:
        for name, scores in group.judged["tests"].items():
            said = saved.outputs(group, name)
            metrics = (m for m in scores if m not in ("n", "loss"))
            given = {"name": names.get(group.first["id"])}
            found += [
                given | _estimate(group, name, metric, said, optimistic) for metric in metrics
            ]
    return found


def _estimate(
    group: Group, name: str, metric: str, said: Outputs, optimistic: bool
) -> dict[str, Any]:
    labels, outputs = said
    first, failed = group.first, len(group.failed)
    estimate = as_json(metric_estimate(metric, outputs, labels, optimistic=optimistic))
    constant = compute((metric,), learned_nothing(labels, outputs.shape[-1]), labels)[metric]
    if failed:
        told = failed_as(failed, regression=outputs.shape[-1] == 1)
        estimate["how"] = f"{estimate['how']}; {told}"
    return {
        "task": first["task"],
        "set": name,
        "method": first["method"],
        "hyperparameters": first["hyperparameters"],
        "training": {k: first["training"][k] for k in _SHOWN},
        "metric": metric,
        **estimate,
        "failed_seeds": failed,
        "failed_score": constant if failed else None,
        "constant_score": constant,
        "trainable_parameters": first["trainable_parameters"],
        "memory_bytes": training_bytes(first["trainable_parameters"]),
        "seconds": float(np.mean([t["seconds"] for t in group.done or group.failed])),
        "trials": [t["id"] for t in group.done],
        "failed_trials": [t["id"] for t in group.failed],
    }


def training_bytes(parameters: dict[str, int]) -> int:
    """What training holds for a trial alone: each parameter, its gradient and AdamW's two moments, in float32.

    The encoder and the activations of a pass are shared by a cohort, and in no trial's number; `full` has its own encoder.
    """
    return 16 * (parameters["encoder"] + parameters["head"])
