"""What a run found, as one dictionary; terminal, JSON and every later page print from it and from nothing else.

The form is the contract of `fleetune show RUN --json`: study, trials, estimates, verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.errors import SettingsError
from fleetune.records import as_json
from fleetune.report import study_facts
from fleetune.report.lost import lost_groups
from fleetune.report.stored import damage_told, read_environment, read_predictions, read_settings
from fleetune.stats.intervals import metric_estimate
from fleetune.study import journal
from fleetune.study.results import epochs

# Fields of a trial's training that tell two settings of one method apart at a glance.
_SHOWN = ("learning_rate", "num_train_epochs", "max_steps")


def run_facts(folder: Path) -> dict[str, Any]:
    """The facts of a run. SettingsError where the folder is none; DataError where one of its files is damaged."""
    path = folder / journal.NAME
    if not path.is_file() or not (folder / "study.toml").is_file():
        raise SettingsError(
            str(folder), ["no run: it has no journal; give the --output-dir of a train command"]
        )
    events = journal.read(path)
    with damage_told(folder):
        facts = _facts(folder, events)
        winner(facts)  # whatever is asked of the facts later has been asked once
    return facts


def _facts(folder: Path, events: list[dict[str, Any]]) -> dict[str, Any]:
    settings, environment = read_settings(folder), read_environment(folder)
    data = settings["data"]  # one table, or a list of them for a study of several tasks
    tables = data if isinstance(data, list) else [data]
    optimistic = any(table.get("protocol") == "paper" for table in tables)
    named = ", ".join(table["task"] for table in tables)
    trials = [_trial(ident, events) for ident in _started(events)]
    lost = lost_groups(folder, _measured(trials), _setting)
    gone = {_setting(t) for t in trials if any(t["id"] in g["trials"] for g in lost)}
    kept = [t for t in trials if _setting(t) not in gone]
    facts: dict[str, Any] = {
        "study": {
            **settings,
            "data": {**tables[0], "task": named},
            "tasks": tables,
            "status": _status(events),
            "optimistic": optimistic,
            "environment": environment,
        },
        "trials": trials,
        "estimates": _estimates(folder, kept, environment, optimistic),
        "verdicts": [],
        "over_tasks": [],
        "arms": study_facts.arm_facts(events, trials),
        "rank": [],
        "cohorts": _cohorts(events),
        "lost": lost,
    }
    read = partial(_outputs, folder)
    facts["verdicts"] = study_facts.verdicts(facts, read)
    facts["over_tasks"] = study_facts.over_tasks(facts)
    if facts["arms"]:
        facts["rank"] = study_facts.rank_facts(facts, read)
    return facts


def winner(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The trial to use: of the method with the best mean selection score, its best one. Test scores are not looked at."""
    groups: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    measured = _measured(facts["trials"])
    for trial in (t for t in measured if t["task"] == measured[0]["task"]):
        groups.setdefault(_setting(trial), []).append((_selection_score(facts, trial), trial))
    if not groups:
        return None
    best = max(groups.values(), key=lambda group: float(np.mean([score for score, _ in group])))
    return max(best, key=lambda pair: pair[0])[1]


def _measured(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials that ended well and whose test rows were opened: all but those of a search."""
    return [t for t in trials if t["status"] == "done" and t["phase"] != "search"]


def _selection_score(facts: dict[str, Any], trial: dict[str, Any]) -> float:
    """Higher is better. A trial that was trained on all of train has none, and stands by the score of its arm's search."""
    training = trial["training"]
    chosen = next(e for e in trial["epochs"] if e["epoch"] == trial["best_epoch"])
    score = chosen["selection"].get(training["metric_for_best_model"])
    if score is None:
        arms = (a for a in facts["arms"] if trial["id"] in a["confirm"]["trials"])
        score = next(a["score"] for a in arms)
    return float(score) if training["greater_is_better"] else -float(score)


def _started(events: list[dict[str, Any]]) -> list[str]:
    order = [i for e in events if e["kind"] == "run-started" for i in e["trials"]]
    begun = dict.fromkeys(e["id"] for e in events if e["kind"] == "trial-started")
    return [ident for ident in dict.fromkeys([*order, *begun]) if ident in begun]


def _status(events: list[dict[str, Any]]) -> str:
    last = next(
        (
            e["kind"]
            for e in reversed(events)
            if e["kind"] in ("run-done", "stopped", "run-started")
        ),
        "",
    )
    return {"run-done": "done", "stopped": "stopped"}.get(last, "unfinished")


def _trial(ident: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [e for e in events if e.get("id") == ident]
    start = next(e for e in mine if e["kind"] == "trial-started")
    done = next((e for e in mine if e["kind"] == "trial-done"), None)
    failed = next((e for e in mine if e["kind"] == "trial-failed"), None)
    stopped = next((e for e in mine if e["kind"] == "trial-stopped"), None)
    found = epochs(events, ident)
    end = done or stopped
    metric = start["training"]["metric_for_best_model"]
    if end and end["best_epoch"] not in {e["epoch"] for e in found}:
        raise LookupError(f"{ident} kept epoch {end['best_epoch']}, which it never had")
    if any(e["selection"] and metric not in e["selection"] for e in found):
        raise LookupError(f"{ident} has epochs without {metric}")
    seconds = end["seconds"] if end else (found[-1]["seconds"] if found else 0.0)
    status = "done" if done else "failed" if failed else "stopped" if stopped else "unfinished"
    return {
        "id": ident,
        "task": start["task"],
        "method": start["method"],
        "hyperparameters": start["hyperparameters"],
        "training": start["training"],
        "seed": start["seed"],
        "phase": start["phase"],
        "status": status,
        "reason": failed["reason"] if failed else None,
        "epochs": [
            {k: e[k] for k in ("epoch", "loss", "selection", "step", "seconds")} for e in found
        ],
        "best_epoch": end["best_epoch"] if end else None,
        "test": done["test"] if done else None,
        "tests": done["tests"] if done else {},
        "optimistic": bool(done and done["optimistic"]),
        "trainable_parameters": start["trainable_parameters"],
        "seconds": seconds,
        "train": (done or {}).get("train", {}),
        "tokens": (done or {}).get("tokens"),
    }


def _cohorts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages of the run, each a cohort, in their order: how it was planned, and the most memory that was held."""
    found: dict[str, dict[str, Any]] = {}
    for e in events:
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


def _setting(trial: dict[str, Any]) -> str:
    """What is the same in all seeds of one method and setting: its settings, and its name without the seed."""
    told = [trial["task"], trial["method"], trial["hyperparameters"], trial["training"]]
    return json.dumps([trial["id"].rpartition("-s")[0], *told], sort_keys=True)


def _estimates(
    folder: Path, trials: list[dict[str, Any]], environment: dict[str, Any], optimistic: bool
) -> list[dict[str, Any]]:
    """One estimate a method, setting, test set and official metric, over the seeds that ended well."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial in _measured(trials):
        groups.setdefault(_setting(trial), []).append(trial)
    found: list[dict[str, Any]] = []
    for group in groups.values():
        first = group[0]
        for name in first["tests"]:
            labels, outputs = _outputs(folder, group, name)
            for metric in (m for m in first["tests"][name] if m not in ("n", "loss")):
                estimate = metric_estimate(metric, outputs, labels, optimistic=optimistic)
                found.append(
                    {
                        "task": first["task"],
                        "set": name,
                        "method": first["method"],
                        "hyperparameters": first["hyperparameters"],
                        "training": {k: first["training"][k] for k in _SHOWN},
                        "metric": metric,
                        **as_json(estimate),
                        "failed_seeds": _failed(trials, first),
                        "trainable_parameters": first["trainable_parameters"],
                        "memory_bytes": training_bytes(first["trainable_parameters"]),
                        "seconds": float(np.mean([t["seconds"] for t in group])),
                        "trials": [t["id"] for t in group],
                    }
                )
    return found


def training_bytes(parameters: dict[str, int]) -> int:
    """What training holds for a trial alone: each parameter, its gradient and AdamW's two moments, in float32.

    The encoder and the activations of a pass are shared by a cohort, and in no trial's number; `full` has its own encoder.
    """
    return 16 * (parameters["encoder"] + parameters["head"])


def _failed(trials: list[dict[str, Any]], first: dict[str, Any]) -> int:
    mine = [t for t in trials if t["phase"] == first["phase"] and _setting(t) == _setting(first)]
    return sum(t["status"] == "failed" for t in mine)


def _outputs(
    folder: Path, group: Sequence[dict[str, Any]], name: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels [n] and logits [S, n, C] of one test set."""
    found = [saved_predictions(folder / "trials" / t["id"], name) for t in group]
    return found[-1][1], np.stack([logits for _, _, logits in found])


def saved_predictions(
    trial: Path, name: str | None = None
) -> tuple[list[str], NDArray[Any], NDArray[Any]]:
    """Ids, labels [n] and logits [n, C] of one test set, by default the main one, as a trial's folder keeps them."""
    table = read_predictions(trial / layout.PREDICTIONS)
    name = table["split"][0] if name is None else name
    rows = [i for i, split in enumerate(table["split"]) if split == name]
    ids, labels, logits = ([table[k][i] for i in rows] for k in ("id", "label", "logits"))
    return ids, np.asarray(labels), np.asarray(logits)
