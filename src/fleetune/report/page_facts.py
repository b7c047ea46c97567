"""What the page shows besides the facts of `fleetune show --json`: curves, search, timeline, the winner's errors, insides.

One dictionary again, plain values only: the page prints from the facts and from this, and from nothing else. A part
that could not be read is None or empty, and `why` says the reason under the part's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fleetune.errors import FleetuneError
from fleetune.report import inside_facts, model_facts
from fleetune.report.again import again
from fleetune.report.stored import damage_told
from fleetune.report.tables import labels, main_estimates
from fleetune.report.winner import winner
from fleetune.stats.budget import expected_best
from fleetune.study import journal
from fleetune.study.folder import STUDY
from fleetune.study.history import History
from fleetune.study.propose import PROPOSED

# Below this many trials a share of importance is mostly noise (Hutter et al. 2014 fit forests to hundreds).
LEAST_FOR_IMPORTANCE = 30


def page_facts(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The further facts of a run's folder. A part that is damaged is left out, and `why` says so."""
    why: dict[str, str] = {}

    def tried(part: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (FleetuneError, OSError) as error:
            why[part] = str(error).replace(str(folder), folder.resolve().name)
            return None

    best = winner(facts)
    tasks = [task_facts(facts, task) for task in _tasks(facts)]
    model = tried("model", lambda: model_facts.model_facts(folder, facts, best)) if best else None
    history = journal.read(folder / journal.NAME)
    with damage_told(folder):
        searched = search_facts(facts, history)
    return {
        "run": folder.resolve().name,
        "began": _moment(history[0]["time"]) if history else None,
        "ended": _moment(history[-1]["time"]) if history else None,
        "tasks": tasks,
        "winner": _winner(best, tasks, model),
        "search": searched,
        "timeline": timeline(history, facts),
        "movement": tried("movement", lambda: inside_facts.movement(folder, facts, tasks)) or [],
        "singular_values": tried(
            "singular_values", lambda: inside_facts.singular_values(folder, facts, tasks)
        )
        or [],
        "again": again(facts),
        "study_file": (folder / STUDY).read_text(encoding="utf-8"),
        "why": why,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _tasks(facts: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(t["task"] for t in facts["trials"]))


def task_facts(facts: dict[str, Any], task: str) -> dict[str, Any]:
    """The main metric on the main test set of a task: one group a method and setting, with its seeds and curves."""
    main = main_estimates(facts, task)
    trials = {t["id"]: t for t in facts["trials"]}
    groups = [
        {
            "name": name,
            "estimate": e,
            "parameters": sum(e["trainable_parameters"].values()),
            "seeds": [_seed(trials[ident], e) for ident in e["trials"] if ident in trials],
            "curve": curve([trials[ident] for ident in e["trials"] if ident in trials]),
        }
        for name, e in zip(labels(main), main, strict=True)
    ]
    return {
        "task": task,
        "set": main[0]["set"] if main else None,
        "metric": main[0]["metric"] if main else None,
        "groups": groups,
    }


def _seed(trial: dict[str, Any], e: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": trial["id"],
        "seed": trial["seed"],
        "score": trial["tests"][e["set"]][e["metric"]],
    }


def curve(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By epoch: the training loss and the selection metric over the seeds, as median, lowest and highest."""
    if not trials:
        return []
    metric = trials[0]["training"]["metric_for_best_model"]
    found: list[dict[str, Any]] = []
    for number in sorted({e["epoch"] for t in trials for e in t["epochs"]}):
        rows = [e for t in trials for e in t["epochs"] if e["epoch"] == number]
        # A trial that was trained on all of train has no selection scores.
        scores = [e["selection"][metric] for e in rows if metric in e["selection"]]
        found.append(
            {
                "epoch": number,
                "metric": metric,
                "selection": _spread(scores),
                "loss": _spread([e["loss"] for e in rows]),
            }
        )
    return found


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return (
        None
        if not values
        else {
            "median": float(np.median(values)),
            "low": float(np.min(values)),
            "high": float(np.max(values)),
        }
    )


def _winner(
    best: dict[str, Any] | None, tasks: list[dict[str, Any]], model: dict[str, Any] | None
) -> dict[str, Any] | None:
    if best is None:
        return None
    groups = [g for task in tasks for g in task["groups"] if best["id"] in g["estimate"]["trials"]]
    return {
        "id": best["id"],
        "name": groups[0]["name"] if groups else best["method"],
        "method": best["method"],
        "task": best["task"],
        "seed": best["seed"],
        "best_epoch": best["best_epoch"],
        "model": model,
    }


def search_facts(facts: dict[str, Any], history: History) -> list[dict[str, Any]]:
    """One record a task and arm that was searched: the settings it tried in order, which of them vary, what matters.

    A setting under protocol "cv" is five trials, one a fold, that count as one; its score is the mean of theirs, as in the search
    itself. One that failed counts with the best score it had. Where it failed before it had any (`earned` is false), it counts
    with the worst of its arm's others: left out, so many settings would seem to find more than they did.
    """
    by_id = {t["id"]: t for t in facts["trials"]}
    tried: dict[tuple[str, str], list[tuple[list[str], list[dict[str, Any]]]]] = {}
    for e in history.all(PROPOSED):
        tried.setdefault((e["task"], e["arm"]), []).extend(
            (ids, [by_id[i] for i in ids if i in by_id]) for ids in e["trials"]
        )
    found: list[dict[str, Any]] = []
    for (task, arm), settings in tried.items():
        scored = [(mine, score_of(ids, mine)) for ids, mine in settings if mine]
        known = [score for _, score in scored if score is not None]
        if not known:
            continue
        first = next(mine for mine, score in scored if score is not None)[0]["training"]
        higher = bool(first["greater_is_better"])
        worst = min(known) if higher else max(known)
        counted = [(m, s) for m, s in scored if s is not None or _ended(m) == "failed"]
        varying = _varying([mine[0] for mine, _ in counted])
        rows: list[dict[str, Any]] = [
            {
                "id": mine[0]["id"],
                "score": worst if score is None else score,
                "earned": score is not None,
                "settings": {k: _settings(mine[0])[k] for k in varying},
            }
            for mine, score in counted
        ]
        found.append(
            {
                "task": task,
                "arm": arm,
                "metric": first["metric_for_best_model"],
                "greater_is_better": higher,
                "stopped": sum(_ended(mine) == "stopped" for mine, _ in counted),
                "trials": rows,
                "expected_best": best_by_budget([r["score"] for r in rows], higher),
                "importance": importance([r for r in rows if r["earned"]], varying),
                "needed_for_importance": LEAST_FOR_IMPORTANCE,
            }
        )
    return found


def score_of(ids: Sequence[str], trials: Sequence[dict[str, Any]]) -> float | None:
    """A setting's best selection score so far, by its mean over all its trials; None where one of them has no epoch yet."""
    if len(trials) < len(ids):
        return None
    training = trials[0]["training"]
    curves = [
        [e["selection"].get(training["metric_for_best_model"]) for e in t["epochs"]] for t in trials
    ]
    means = [float(np.mean(at)) for at in zip(*curves, strict=False) if None not in at]
    means = [value for value in means if np.isfinite(value)]
    if not means:
        return None
    return max(means) if training["greater_is_better"] else min(means)


def _ended(trials: Sequence[dict[str, Any]]) -> str:
    """How a setting ended, by the statuses of its trials: the folds of one that failed may have been stopped."""
    states = [t["status"] for t in trials]
    return next((s for s in ("failed", "stopped", "unfinished") if s in states), "done")


def _settings(trial: dict[str, Any]) -> dict[str, Any]:
    return {**trial["training"], **trial["hyperparameters"]}


def _varying(trials: Sequence[dict[str, Any]]) -> list[str]:
    names = [k for k in _settings(trials[0]) if all(k in _settings(t) for t in trials)]
    return [k for k in names if len({repr(_settings(t)[k]) for t in trials}) > 1]


def best_by_budget(scores: Sequence[float], higher: bool) -> dict[str, list[float]]:
    """The expected best of k = 1 .. n of these n trials, and its band (`stats.budget`), in the metric's own direction."""
    sign = 1.0 if higher else -1.0
    curve = expected_best(sign * np.asarray(scores))
    low, high = (curve.low, curve.high) if higher else (curve.high, curve.low)
    return {
        key: [sign * value for value in values]
        for key, values in (("expected", curve.expected), ("low", low), ("high", high))
    }


def importance(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, float] | None:
    """The share of each setting in what a random forest explains of the score, by permutation; None under 30 trials.

    Source: Breiman 2001. Misleads: where settings were searched together, and where the forest explains little.
    """
    if len(rows) < LEAST_FOR_IMPORTANCE or len(names) < 2:
        return None
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    columns = np.array([axis([r["settings"][name] for r in rows])[0] for name in names]).T
    scores = np.array([r["score"] for r in rows])
    forest = RandomForestRegressor(n_estimators=64, random_state=0).fit(columns, scores)
    found: Any = permutation_importance(forest, columns, scores, n_repeats=10, random_state=0)
    means = np.maximum(found.importances_mean, 0.0)
    total = float(means.sum())
    return {n: float(m) / total if total else 0.0 for n, m in zip(names, means, strict=True)}


def axis(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Settings as places on an axis, and its labelled ends: numbers (logarithms where they span a decade), or words."""
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numeric:
        names = sorted({str(v) for v in values})
        return [float(names.index(str(v))) for v in values], [
            (float(i), name) for i, name in enumerate(names)
        ]
    low, high = float(min(values)), float(max(values))
    log = low > 0 and high / low >= 10
    places = [float(np.log10(v)) if log else float(v) for v in values]
    return places, [(min(places), f"{low:.3g}"), (max(places), f"{high:.3g}")]


def timeline(history: History, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """When each trial started and ended, in seconds since the run's first event; a trial still open ends at the last."""
    first, last = (history[0]["time"], history[-1]["time"]) if history else (0.0, 0.0)
    starts = {ident: e["time"] - first for ident, e in history.begun.items()}
    ends = {ident: e["time"] - first for ident, e in history.ends.items()}
    cohorts = {ident: c["stage"] for c in facts["cohorts"] for ident in c["trials"]}
    return [
        {
            "id": t["id"],
            "method": t["method"],
            "task": t["task"],
            "phase": t["phase"],
            "cohort": cohorts.get(t["id"]),
            "status": t["status"],
            "start": round(starts[t["id"]], 3),
            "end": round(ends.get(t["id"], last - first), 3),
        }
        for t in facts["trials"]
        if t["id"] in starts
    ]
