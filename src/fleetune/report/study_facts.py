"""What a study adds to the facts of a run: how each method was searched, verdicts between methods, the rank study.

Verdicts are made for one family: on each task, every method against the study's reference (in a run without search: the first
that was named), on the main metric of the main test set; Holm's correction is over all of them. The ranks of a rank study are a
family of their own (stats/rank.py), unless their reference is the study's: then each is judged once, among all. From six tasks
on, every method is also compared with the reference over the tasks (stats/multiple.py). A training that failed counts as one
that learned nothing (report/trainings.py), and the numbers say how many did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.metrics import metrics_of
from fleetune.report.tables import labels, main_estimates
from fleetune.report.trainings import Outputs
from fleetune.stats.compare import MARGIN, Comparison, compare
from fleetune.stats.failed import failed_as
from fleetune.stats.intervals import said_of
from fleetune.stats.multiple import MIN_TASKS, Family, Member, across_tasks, holm_family
from fleetune.stats.rank import RankTrend, rank_trend, rank_trend_scores
from fleetune.stats.scores import compare_scores
from fleetune.study.settings import names_of, ranked

Read = Callable[[Mapping[str, Any]], Outputs]
"""What was said on the test set of an estimate, by all its trainings, failed ones too."""


def trainings_of(estimate: Mapping[str, Any]) -> list[str]:
    """The ids of all trainings of an estimate, failed ones last."""
    return [*estimate["trials"], *estimate["failed_trials"]]


def given_names(
    methods: Sequence[Mapping[str, Any]],
    arms: Sequence[Mapping[str, Any]],
    trials: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """By trial what its method is called, where the study gives a name; methods: as the study says them."""
    given: set[str] = set()
    for m in methods:
        if name := m.get("name"):
            given.update([ranked(name, r) for r in m["r"]] if m.get("rank_study") else [name])
    of = {i: a["arm"] for a in arms for i in a["confirm"]["trials"]}
    if not arms:  # nothing was searched: a trial's name is its method's, and its seed
        of = {t["id"]: t["id"].rpartition("-s")[0] for t in trials}
    return {ident: name for ident, name in of.items() if name in given}


def verdicts(facts: Mapping[str, Any], read: Read) -> list[dict[str, Any]]:
    """Each method against the reference on each task; Holm over all of them."""
    groups = _groups(facts)
    reference = _reference(facts, groups)
    groups = [g for g in groups if reference in g]
    compared: dict[str, tuple[dict[str, Any], dict[str, Any], Comparison]] = {}
    for group in groups:
        a = group[reference]
        for arm, b in group.items():
            if arm != reference:
                name = f"{b['task']}: {arm} against {reference}"
                compared[name] = (a, b, _compare(a, b, read))
    if not compared:
        return []
    family = holm_family(
        {name: c for name, (_, _, c) in compared.items()},
        family=f"every method against {reference}",
    )
    return [_verdict(*compared[m.name][:2], m, family) for m in family.members]


def _reference(facts: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """The arm that the others are compared with."""
    first = next(iter(groups[0]), "") if groups and not facts["arms"] else ""
    return str(facts["study"].get("confirm", {}).get("reference", first))


def over_tasks(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each method against the reference over all tasks, by main metric; none below six tasks. Methods that were not confirmed
    on each are left out."""
    groups = _groups(facts)
    reference = _reference(facts, groups)
    if len(groups) < MIN_TASKS:
        return []
    scores = {
        arm: [g[arm]["value"] for g in groups]
        for arm in dict.fromkeys(arm for g in groups for arm in g)
        if all(arm in g for g in groups)
    }
    if reference not in scores or len(scores) < 2:
        return []
    return [
        {
            "reference": c.a,
            "method": c.b,
            "difference": c.median_difference,
            "wins": c.wins,
            "losses": c.losses,
            "ties": c.ties,
            "p_value": c.p_value,
            "p_adjusted": c.p_holm,
            "tasks": c.tasks,
            "verdict": c.verdict,
            "optimistic": any(g[c.b]["optimistic"] for g in groups),
            "how": c.how,
        }
        for c in across_tasks(scores, reference=reference)
    ]


def _verdict(
    a: dict[str, Any],
    b: dict[str, Any],
    member: Member,
    family: Family,
) -> dict[str, Any]:
    c = member.comparison
    failed = a["failed_seeds"] + b["failed_seeds"]
    regression = b["metric"] in metrics_of(True)
    told = [failed_as(failed, regression=regression)] if failed else []
    return {
        "task": b["task"],
        "set": b["set"],
        "metric": b["metric"],
        "reference": a["label"],
        "method": b["label"],
        "difference": c.difference,
        "low": member.simultaneous_low,
        "high": member.simultaneous_high,
        "unadjusted_low": c.low,
        "unadjusted_high": c.high,
        "bootstrap_low": c.bootstrap_low,
        "bootstrap_high": c.bootstrap_high,
        "bootstrap_agrees": c.bootstrap_agrees,
        "p_value": c.p_value,
        "p_adjusted": member.p_holm,
        "comparisons": len(family.members),
        "detectable": member.detectable,
        "probability_better": c.probability_better,
        "seeds": min(c.seeds_a, c.seeds_b),
        "n": c.n,
        "failed_seeds": failed,
        "verdict": member.verdict,
        "reason": member.reason,
        "optimistic": bool(a["optimistic"] or b["optimistic"]),
        "how": "; ".join([c.how, family.how, *told]),
    }


def _groups(facts: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """By task: the main estimate of each arm (in a run without search: of each setting), with its label."""
    arm_of = {i: a["arm"] for a in facts["arms"] for i in a["confirm"]["trials"]}
    found: list[dict[str, dict[str, Any]]] = []
    for task in dict.fromkeys(e["task"] for e in facts["estimates"]):
        main = main_estimates(facts, task)
        named = zip(labels(main), main, strict=True)
        found.append(
            {
                arm_of.get(trainings_of(e)[0], label): {**e, "label": label}
                for label, e in named
                if trainings_of(e)[0] in arm_of or not facts["arms"]
            }
        )
    return found


def _trials(facts: Mapping[str, Any], estimate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that ended well."""
    by_id = {t["id"]: t for t in facts["trials"]}
    return [by_id[i] for i in estimate["trials"]]


def _compare(a: dict[str, Any], b: dict[str, Any], read: Read) -> Comparison:
    truth, of_a = read(a)
    _, of_b = read(b)
    return compare_outputs(b["metric"], truth, of_a, of_b)


def compare_outputs(
    metric: str,
    truth: NDArray[Any],
    of_a: NDArray[Any],
    of_b: NDArray[Any],
    *,
    margin: float = MARGIN,
) -> Comparison:
    """Two methods by a metric. truth [n] classes or targets; of_a, of_b [S, n, C] logits of their trainings."""
    if metric == "accuracy":
        right = truth.astype(np.int64)
        found = compare(of_a.argmax(-1) == right, of_b.argmax(-1) == right, margin=margin)
        return replace(found, metric=metric)
    return compare_scores(metric, said_of(of_a), said_of(of_b), truth, margin=margin)


# --- the rank study


def rank_facts(facts: Mapping[str, Any], read: Read) -> list[dict[str, Any]]:
    """One record a task and rank study: its ranks in order, the slope on log2 r, and each rank against the reference."""
    found: list[dict[str, Any]] = []
    entries = facts["study"].get("methods", [])
    prefixes = names_of((m["method"], m.get("name")) for m in entries)
    for entry, prefix in zip(entries, prefixes, strict=True):
        if not entry.get("rank_study"):
            continue
        for group in _groups(facts):
            names = {r: ranked(prefix, r) for r in entry["r"]}
            ranks = {r: group[name] for r, name in names.items() if name in group}
            if ranks:
                found.append(_rank_study(facts, entry, ranks, read))
    return found


def _rank_study(
    facts: Mapping[str, Any], entry: dict[str, Any], ranks: dict[int, dict[str, Any]], read: Read
) -> dict[str, Any]:
    first = next(iter(ranks.values()))
    reference = entry.get("reference_rank", min(ranks))
    trend = None
    if len(ranks) > 1 and reference in ranks:
        outputs = {r: read(e) for r, e in ranks.items()}
        if all(len(found) > 1 for _, found in outputs.values()):
            trend = _slope(first["metric"], outputs, reference)
    return {
        "task": first["task"],
        "set": first["set"],
        "metric": first["metric"],
        "method": entry["method"],
        "name": entry.get("name"),
        "rule": entry.get("lora_alpha"),
        "reference": reference,
        "optimistic": first["optimistic"],
        "failed_seeds": sum(e["failed_seeds"] for e in ranks.values()),
        "ranks": [_rank(facts, r, e) for r, e in sorted(ranks.items())],
        "trend": None if trend is None else _trend(trend, ranks, facts["verdicts"]),
    }


def _slope(
    metric: str, outputs: Mapping[int, tuple[NDArray[Any], NDArray[Any]]], reference: int
) -> RankTrend:
    """outputs: for each rank the labels [n] and the logits [S, n, C]; the labels are the same for all."""
    truth = next(labels for labels, _ in outputs.values())
    logits = {r: found for r, (_, found) in outputs.items()}
    if metric == "accuracy":
        right = truth.astype(np.int64)
        correct = {r: found.argmax(-1) == right for r, found in logits.items()}
        return rank_trend(correct, reference=reference)
    said = {r: said_of(found) for r, found in logits.items()}
    return rank_trend_scores(metric, said, truth, reference=reference)


def _trend(
    trend: RankTrend, ranks: dict[int, dict[str, Any]], verdicts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    told = {
        k: getattr(trend, k)
        for k in (
            "slope", "low", "high", "p_value", "detectable", "equivalence_p", "margin", "n", "verdict", "reason", "how",
        )
    }  # fmt: skip
    others = [r for r in sorted(ranks) if r != trend.reference]
    contrasts = [
        _verdict(
            ranks[trend.reference], ranks[r], m, trend.contrasts,
        )
        for r, m in zip(others, trend.contrasts.members, strict=True)
    ]  # fmt: skip
    # One comparison has one verdict: in two families of different sizes it could have two.
    judged = {_which(v): v for v in verdicts}
    if all(_which(v) in judged for v in contrasts):
        contrasts = [judged[_which(v)] for v in contrasts]
    by_rank = [{**v, "r": r} for r, v in zip(others, contrasts, strict=True)]
    return {**told, "contrasts": by_rank}


def _which(verdict: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a verdict is about."""
    return tuple(verdict[k] for k in ("task", "set", "metric", "reference", "method"))


def _rank(facts: Mapping[str, Any], r: int, e: dict[str, Any]) -> dict[str, Any]:
    """One rank: its score, how far training rows are ahead of unseen ones, and what it costs."""
    trials = _trials(facts, e)
    metric = e["metric"]
    parameters = e["trainable_parameters"]
    return {
        "r": r,
        "label": e["label"],
        **{k: e[k] for k in ("value", "low", "high", "n", "seeds", "failed_seeds", "how")},
        "learning_rate": e["training"]["learning_rate"],
        "lora_alpha": e["hyperparameters"].get("lora_alpha"),
        "train": _mean(t["train"].get(metric) for t in trials),
        "selection": _mean(_selection(t, metric) for t in trials),
        "gap": _mean(
            t["train"][metric] - score
            for t in trials
            if metric in t["train"] and (score := _selection(t, metric)) is not None
        ),
        "best_epoch": _mean(t["best_epoch"] for t in trials),
        "trainable_parameters": parameters,
        "training_bytes": e["memory_bytes"],
        "seconds": e["seconds"],
        "tokens_per_second": _mean(t["tokens"] / t["seconds"] for t in trials if t["seconds"]),
    }


def _selection(trial: dict[str, Any], metric: str) -> float | None:
    best = next((e for e in trial["epochs"] if e["epoch"] == trial["best_epoch"]), None)
    return None if best is None else best["selection"].get(metric)


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
