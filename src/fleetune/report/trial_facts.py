"""What a run's journal and settings say of it: the study, its trials, what its searches chose, its cohorts.

Whatever must know no more than that, such as the winner's name, starts from here: statistics take a second to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetune.errors import SettingsError
from fleetune.report.stored import damage_told, read_environment, read_settings
from fleetune.report.winner import winner
from fleetune.study import journal
from fleetune.study.folder import STUDY, refuse_lost
from fleetune.study.history import Event, History


def trial_facts(folder: Path) -> dict[str, Any]:
    """The facts without what is computed from predictions: study, trials, arms, cohorts. Enough to know the winner.

    Raises what `run_facts` raises of the same files.
    """
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
        facts = _found(folder, history)
        winner(facts)  # whatever is asked of the facts later has been asked once
    return facts


def _found(folder: Path, history: History) -> dict[str, Any]:
    settings, environment = read_settings(folder), read_environment(folder)
    data = settings["data"]  # one table, or a list of them for a study of several tasks
    tables = data if isinstance(data, list) else [data]
    named = ", ".join(table["task"] for table in tables)
    trials = [_trial(ident, history) for ident in _started(history)]
    return {
        "study": {
            **settings,
            "data": {**tables[0], "task": named},
            "tasks": tables,
            "status": _status(history),
            "optimistic": any(table.get("protocol") == "paper" for table in tables),
            "environment": environment,
        },
        "trials": trials,
        "arms": arm_facts(history, trials),
        "cohorts": _cohorts(history),
    }


def arm_facts(history: History, trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a task and arm: what was tried, what was chosen, and how its confirm trials ended."""
    by_id = {t["id"]: t for t in trials}
    found: list[dict[str, Any]] = []
    for e in history.all("chosen"):
        phase = history.first("phase-started", task=e["task"])
        ids = phase["arms"].get(e["arm"], []) if phase else []
        known = [by_id[i] for i in ids if i in by_id]
        found.append(
            {
                "task": e["task"],
                "arm": e["arm"],
                "chosen": e["picks"],
                "score": e["score"],
                "epochs": e["epochs"],
                "search": {
                    k: e[k] for k in ("tried", "stopped", "failed", "epochs_trained", "trials")
                },
                "confirm": {
                    "trials": ids,
                    "done": sum(t["status"] == "done" for t in known),
                    "failed": sum(t["status"] == "failed" for t in known),
                },
            }
        )
    return found


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
        "weights": done.get("weights"),
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
