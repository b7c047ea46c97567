"""What a run found, as one dictionary; terminal, JSON and every later page print from it and from nothing else.

The form is the contract of `fleetune show RUN --json`: study, trials, estimates, verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fleetune.data.metrics import compute, worst
from fleetune.errors import SettingsError
from fleetune.records import as_json
from fleetune.report import study_facts, trainings
from fleetune.report.lost import lost_groups
from fleetune.report.stored import damage_told, read_environment, read_settings
from fleetune.report.trainings import Group
from fleetune.stats.failed import failed_as, learned_nothing
from fleetune.stats.intervals import metric_estimate
from fleetune.study import journal
from fleetune.study.folder import STUDY, refuse_lost
from fleetune.study.history import Event, History

# Fields of a trial's training that tell two settings of one method apart at a glance.
_SHOWN = ("learning_rate", "num_train_epochs", "max_steps")


def run_facts(folder: Path) -> dict[str, Any]:
    """The facts of a run. SettingsError where the folder is none; DataError where one of its files is damaged."""
    path = folder / journal.NAME
    if not (path.is_file() or (folder / STUDY).is_file()):
        raise SettingsError(
            str(folder),
            [f"no run: it has no {journal.NAME}; give the --output-dir of train, study or demo"],
        )
    refuse_lost(folder)
    if not path.is_file():
        raise SettingsError(str(folder), ["this run has not begun; give its command again"])
    history = journal.read(path)
    with damage_told(folder):
        facts = _facts(folder, history)
        winner(facts)  # whatever is asked of the facts later has been asked once
    return facts


def _facts(folder: Path, history: History) -> dict[str, Any]:
    settings, environment = read_settings(folder), read_environment(folder)
    data = settings["data"]  # one table, or a list of them for a study of several tasks
    tables = data if isinstance(data, list) else [data]
    optimistic = any(table.get("protocol") == "paper" for table in tables)
    named = ", ".join(table["task"] for table in tables)
    trials = [_trial(ident, history) for ident in _started(history)]
    lost = lost_groups(folder, trainings.groups(trials))
    gone = {ident for record in lost for ident in record["trials"]}
    groups = trainings.groups([t for t in trials if t["id"] not in gone])
    arms = study_facts.arm_facts(history, trials)
    names = study_facts.given_names(settings.get("methods", []), arms, trials)
    facts: dict[str, Any] = {
        "study": {
            **settings,
            "data": {**tables[0], "task": named},
            "tasks": tables,
            "status": _status(history),
            "optimistic": optimistic,
            "environment": environment,
        },
        "trials": trials,
        "estimates": _estimates(folder, groups, names, optimistic),
        "verdicts": [],
        "over_tasks": [],
        "arms": arms,
        "rank": [],
        "cohorts": _cohorts(history),
        "lost": lost,
    }
    of = {t["id"]: group for group in groups for t in (*group.done, *group.failed)}

    def read(estimate: Mapping[str, Any]) -> trainings.Outputs:
        group = of[study_facts.trainings_of(estimate)[0]]
        return trainings.outputs(folder, group, estimate["set"])

    facts["verdicts"] = study_facts.verdicts(facts, read)
    facts["over_tasks"] = study_facts.over_tasks(facts)
    if facts["arms"]:
        facts["rank"] = study_facts.rank_facts(facts, read)
    return facts


def winner(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The trial to use: of the method with the best mean selection score, its best one; of several tasks, on the first.

    Test scores are not looked at. A failed trial has no selection score, and what its selection rows would give to a constant
    answer is not kept: in the mean of its method it counts as the worst there is (`data.metrics.worst`), or where a loss selects
    an infinite one.
    """
    groups = [g for g in trainings.groups(facts["trials"]) if g.done]
    if not groups:
        return None
    first = groups[0].first["task"]
    scored = [
        (group, [_selection_score(facts, trial) for trial in group.done])
        for group in groups
        if group.first["task"] == first
    ]
    group, scores = max(scored, key=lambda pair: _standing(*pair))
    return group.done[int(np.argmax(scores))]


def _standing(group: Group, scores: list[float]) -> tuple[float, float]:
    """What methods are ranked by; where losses are infinite, those of the trials that ended."""
    training = group.first["training"]
    least = worst(training["metric_for_best_model"]) if training["greater_is_better"] else -math.inf
    return float(np.mean([*scores, *(least for _ in group.failed)])), float(np.mean(scores))


def _selection_score(facts: dict[str, Any], trial: dict[str, Any]) -> float:
    """Higher is better. A trial that was trained on all of train has none, and stands by the score of its arm's search."""
    training = trial["training"]
    chosen = next(e for e in trial["epochs"] if e["epoch"] == trial["best_epoch"])
    score = chosen["selection"].get(training["metric_for_best_model"])
    if score is None:
        arms = (a for a in facts["arms"] if trial["id"] in a["confirm"]["trials"])
        score = next(a["score"] for a in arms)
    return float(score) if training["greater_is_better"] else -float(score)


def _started(history: History) -> list[str]:
    order = [ident for e in history.all("run-started") for ident in e["trials"]]
    return [i for i in dict.fromkeys([*order, *history.begun]) if i in history.begun]


def _status(history: History) -> str:
    last = history.last_of("run-done", "stopped", "run-started")
    return {"run-done": "done", "stopped": "stopped"}.get(
        last["kind"] if last else "", "unfinished"
    )


_STATUS = {"trial-done": "done", "trial-failed": "failed", "trial-stopped": "stopped"}


def _trial(ident: str, history: History) -> dict[str, Any]:
    start, found, last = history.begun[ident], history.epochs(ident), history.ends.get(ident)
    status = _STATUS[last["kind"]] if last else "unfinished"
    done: Event = last if last and status == "done" else {}
    end: Event = last if last and status in ("done", "stopped") else {}
    metric = start["training"]["metric_for_best_model"]
    if end and end["best_epoch"] not in {e["epoch"] for e in found}:
        raise LookupError(f"{ident} kept epoch {end['best_epoch']}, which it never had")
    if any(e["selection"] and metric not in e["selection"] for e in found):
        raise LookupError(f"{ident} has epochs without {metric}")
    seconds = end["seconds"] if end else (found[-1]["seconds"] if found else 0.0)
    return {
        "id": ident,
        "task": start["task"],
        "method": start["method"],
        "hyperparameters": start["hyperparameters"],
        "training": start["training"],
        "seed": start["seed"],
        "phase": start["phase"],
        "status": status,
        "reason": last["reason"] if last and status == "failed" else None,
        "epochs": [
            {k: e[k] for k in ("epoch", "loss", "selection", "step", "seconds")} for e in found
        ],
        "best_epoch": end.get("best_epoch"),
        "test": done.get("test"),
        "tests": done.get("tests", {}),
        "optimistic": bool(done.get("optimistic")),
        "trainable_parameters": start["trainable_parameters"],
        "seconds": seconds,
        "train": done.get("train", {}),
        "tokens": done.get("tokens"),
        "predictions": done.get("predictions"),
    }


def _cohorts(history: History) -> list[dict[str, Any]]:
    """The stages of the run, each a cohort, in their order: how it was planned, and the most memory that was held."""
    found: dict[str, dict[str, Any]] = {}
    for e in history:
        if e["kind"] == "planned":
            # A command that goes on plans again; who has started stays.
            stage = found.setdefault(e["stage"], {"stage": e["stage"], "trials": []})
            stage |= {
                "at_once": e["at_once"],
                "tokens": e["tokens"],
                "planned_bytes": e["bytes"],
                "peak_bytes": None,
                "why": e["why"],
            }
        elif e["kind"] == "trial-started" and e.get("stage") in found:
            trials = found[e["stage"]]["trials"]
            if e["id"] not in trials:
                trials.append(e["id"])
        elif e["kind"] == "stage-done" and e["stage"] in found:
            found[e["stage"]]["peak_bytes"] = e["peak_bytes"]
    return list(found.values())


def _estimates(
    folder: Path, groups: Sequence[Group], names: Mapping[str, str], optimistic: bool
) -> list[dict[str, Any]]:
    """One estimate a method, setting, test set and official metric, over all seeds that have ended or failed."""
    found: list[dict[str, Any]] = []
    for group in groups:
        for name, scores in group.judged["tests"].items():
            said = trainings.outputs(folder, group, name)
            metrics = (m for m in scores if m not in ("n", "loss"))
            given = {"name": names.get(group.first["id"])}
            found += [
                given | _estimate(group, name, metric, said, optimistic) for metric in metrics
            ]
    return found


def _estimate(
    group: Group, name: str, metric: str, said: trainings.Outputs, optimistic: bool
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
