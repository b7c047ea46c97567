"""Tables of a study for the terminal: what a dry run says, and what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fleetune.errors import counted
from fleetune.report.tables import comparison, duration, fitted, grid, span
from fleetune.report.words import p_equals, p_value
from fleetune.stats.verdict import MIN_SEEDS


def planned(found: Mapping[str, Any]) -> str:
    """Trials, cohorts and estimates of a run that has not begun; found: what estimate.py says."""
    searches = any(a["search"]["trials"] for a in found["arms"])
    phases = [*(["search"] if searches else []), found["phase"]]
    arms = [
        [
            a["task"],
            a["arm"],
            *([_searched(a["searched"])] if searches else []),
            *(str(a[phase][what]) for phase in phases for what in ("trials", "epochs")),
            *(f"{a['trainable_parameters'][part]:,}" for part in ("encoder", "head")),
        ]
        for a in found["arms"]
    ]
    named = ["task", "method", *(["searched"] if searches else [])]
    numbers = [*(name for phase in phases for name in (phase, "epochs")), "encoder", "head"]
    right = range(len(named), len(named) + len(numbers))
    cohorts = [
        [c["task"], c["phase"], ", ".join(c["arms"]), str(c["trials"]), str(c["at_once"])]
        for c in found["cohorts"]
    ]
    totals = found["totals"]
    lines = [
        grid([*named, *numbers], arms, right=right),
        *_first_proposals(found["arms"]),
        grid(["task", "cohort", "methods", "trials", "at once"], cohorts, right=(3, 4)),
        f"{counted(totals['trials'], 'trial')}, {counted(totals['epochs'], 'epoch')}, {totals['tokens']:,} tokens; estimates: "
        f"{duration(totals['seconds'])}, {_size(totals['memory_bytes'])} of memory, {_size(totals['disk_bytes'])} of disk",
    ]
    return "\n\n".join(lines)


def _searched(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {_space(v)}" for k, v in values.items()) or "-"


def _first_proposals(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [a["task"], a["arm"], str(i), ", ".join(f"{k}={_value(v)}" for k, v in picks.items())]
        for a in arms
        for i, picks in enumerate(a["first_proposals"], start=1)
    ]
    return [grid(["task", "method", "trial", "first proposals"], rows, right=(2,))] if rows else []


def found(facts: dict[str, Any], width: int | None = None) -> str:
    """Estimates, verdicts, and what the search chose. width: of the terminal; None: it does not matter."""
    parts = [comparison(facts, width), _chosen(facts), _verdicts(facts["verdicts"], width)]
    parts.append(_over_tasks(facts["over_tasks"]))
    parts += [_rank(r) for r in facts["rank"]]
    return "\n\n".join(part for part in parts if part)


def chosen(arm: Mapping[str, Any], settings: str, ends: Mapping[str, str]) -> str:
    """What an arm's search chose, and what is not as it should be about it. settings: in words; ends: each trial's status."""
    search = arm["search"]
    if arm["chosen"] is None:
        went_on = "every trial" if not search["stopped"] else "all that were not stopped early"
        return f"none: {went_on} failed"
    told = settings or "nothing to choose"
    states = [ends.get(ident, "unfinished") for ident in search["trials"]]
    if states and "done" not in states:
        told += " (stopped early: in all that went on, trials failed)"
    if failed := states.count("failed"):
        told += f" ({failed} of its {len(states)} trials failed)"
    return told


def _chosen(facts: Mapping[str, Any]) -> str:
    ends = {t["id"]: t["status"] for t in facts["trials"]}
    rows = [
        [
            a["task"],
            a["arm"],
            str(a["search"]["tried"]),
            str(a["search"]["stopped"]),
            str(a["search"]["failed"]),
            str(a["search"]["epochs_trained"]),
            chosen(a, ", ".join(f"{k}={_value(v)}" for k, v in (a["chosen"] or {}).items()), ends),
            "-" if a["score"] is None else f"{a['score']:.4f}",
        ]
        for a in facts["arms"]
    ]
    header = ["task", "method", "tried", "stopped", "failed", "epochs", "chosen", "selection"]
    return grid(header, rows, right=(2, 3, 4, 5, 7)) if rows else ""


def _verdicts(verdicts: Sequence[Mapping[str, Any]], width: int | None) -> str:
    failed = any(v["failed_seeds"] for v in verdicts)
    rows = [
        [
            v["task"],
            f"{v['method']} against {v['reference']}",
            f"{100 * v['difference']:+.2f}",
            span(v),
            "-" if v["seeds"] < MIN_SEEDS else p_value(v["p_adjusted"]),
            "-" if v["detectable"] is None else f"{100 * v['detectable']:.1f}",
            "-" if v["seeds"] < MIN_SEEDS else f"{v['probability_better']:.2f}",
            *([str(v["failed_seeds"])] if failed else []),
            v["verdict"] + (" (optimistic)" if v["optimistic"] else ""),
        ]
        for v in verdicts
    ]
    header = [
        "task",
        "comparison",
        "points",
        "95% interval",
        "p (Holm)",
        "detectable",
        "P(better)",
        *(["failed"] if failed else []),
        "verdict",
    ]
    if not rows:
        return ""
    notes = sorted({v["how"] for v in verdicts})
    notes += dict.fromkeys(v["reason"] for v in verdicts if v["seeds"] < MIN_SEEDS)
    spare = ["P(better)", "detectable", *(["task"] if len({row[0] for row in rows}) == 1 else [])]
    numbers = (2, 4, 5, 6, *((7,) if failed else ()))
    table = fitted(header, rows, numbers, width, [*spare, "p (Holm)"])
    return "\n".join([table, *(f"  {note}" for note in notes)])


def _over_tasks(compared: Sequence[Mapping[str, Any]]) -> str:
    """Over all tasks together, where there are enough of them."""
    rows = [
        [
            f"{c['method']} against {c['reference']}",
            f"{100 * c['difference']:+.2f}",
            f"{c['wins']}, {c['losses']}, {c['ties']}",
            p_value(c["p_adjusted"]),
            c["verdict"] + (" (optimistic)" if c["optimistic"] else ""),
        ]
        for c in compared
    ]
    if not rows:
        return ""
    head = ["over all tasks", "median points", "wins, losses, ties", "p (Holm)", "verdict"]
    notes = sorted({c["how"] for c in compared})
    return "\n".join([grid(head, rows, right=(1, 3)), *(f"  {note}" for note in notes)])


def _rank(study: Mapping[str, Any]) -> str:
    rows = [
        [
            str(r["r"]),
            f"{100 * r['value']:.2f}",
            span(r),
            str(r["seeds"]) + (f" ({r['failed_seeds']} failed)" if r["failed_seeds"] else ""),
            "-" if r["gap"] is None else f"{100 * r['gap']:+.2f}",
            f"{r['learning_rate']:.2g}",
            f"{r['trainable_parameters']['encoder']:,}",
            duration(r["seconds"]),
        ]
        for r in study["ranks"]
    ]
    header = [
        "r",
        study["metric"],
        "95% interval",
        "seeds",
        "train - selection",
        "learning rate",
        "encoder",
        "time",
    ]
    lines = [
        f"ranks of {study['name'] or study['method']} on {study['task']} (lora_alpha: {study['rule']})",
        grid(header, rows, right=(0, 1, 3, 4, 5, 6, 7)),
    ]
    trend = study["trend"]
    if trend is not None:
        lines.append(
            f"  slope for each doubling of r: {100 * trend['slope']:+.2f} points {span(trend)}, "
            f"{p_equals(trend['p_value'])}: {trend['verdict']}"
        )
        lines += [
            f"  r={c['r']} against r={study['reference']}: {100 * c['difference']:+.2f} points "
            f"{span(c)}, {p_equals(c['p_adjusted'], 'p (Holm)')}: {c['verdict']}"
            for c in trend["contrasts"]
        ]
    return "\n".join(lines)


def _space(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['low']:g} to {value['high']:g}" + (" (log)" if value["log"] else "")
    return "[" + ", ".join(_value(v) for v in value) + "]"


def _value(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else json.dumps(value)
    )


def _size(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
