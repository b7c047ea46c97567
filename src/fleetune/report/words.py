"""How numbers are written on the page, and the answer in sentences. Facts in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleetune.report.tables import duration as duration
from fleetune.report.tables import labels

OPTIMISTIC = "optimistic: the epoch was chosen on these same examples"
_SENTENCES = {
    "better": "is better than",
    "worse": "is worse than",
    "equivalent": "is equivalent to",
    "cannot tell": "cannot be told from",
}


def percent(value: float) -> str:
    """A score in percent."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{100 * value:+.2f}"


def interval(record: Mapping[str, Any], *, signed: bool = False) -> str:
    """The 95 % interval of an estimate or a difference."""
    told = points if signed else percent
    return f"[{told(record['low'])}, {told(record['high'])}]"


def count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def size(value: float) -> str:
    """A number of parameters, short."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def setting(value: Any) -> str:
    """A setting's value as the user would write it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        members: Sequence[Any] = value
        return ", ".join(setting(v) for v in members)
    return str(value)


def joined(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return names[0] if len(names) < 2 else f"{', '.join(names[:-1])} or {names[-1]}"


def question(facts: dict[str, Any]) -> str:
    """What the run asks."""
    methods = list(dict.fromkeys(t["method"] for t in facts["trials"]))
    tasks = " and ".join(dict.fromkeys(t["task"] for t in facts["trials"])) or "these data"
    backbone = facts["study"]["environment"]["backbone"]["source"].rstrip("/").rpartition("/")[2]
    if len(methods) > 1:
        return f"{joined(methods)}: which is best on {tasks} with {backbone}?"
    if len(facts["estimates"]) > 1 and methods:
        return f"Which setting of {methods[0]} is best on {tasks} with {backbone}?"
    return f"How good is {methods[0] if methods else 'it'} on {tasks} with {backbone}?"


def verdict_records(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts in one form for sentences, table and picture."""
    names = dict(zip(map(_identity, facts["estimates"]), labels(facts["estimates"]), strict=True))
    found: list[dict[str, Any]] = []
    for v in facts["verdicts"]:
        mine = v.get("method", v.get("b"))
        reference = v.get("reference", v.get("a"))
        found.append(
            {
                "task": v.get("task"),
                "set": v.get("set"),
                "metric": v.get("metric"),
                "name": _name(mine, names),
                "reference": _name(reference, names),
                "verdict": v["verdict"],
                "difference": v["difference"],
                "low": v["low"],
                "high": v["high"],
                "p_value": v.get("p_holm", v.get("p_value")),
                "detectable": v.get("detectable"),
                "probability_better": v.get("probability_better"),
                "optimistic": bool(v.get("optimistic", facts["study"]["optimistic"])),
            }
        )
    return found


def _identity(e: Mapping[str, Any]) -> str:
    return repr((e["method"], e["hyperparameters"]))


def _name(told: Any, names: Mapping[str, str]) -> str:
    if isinstance(told, Mapping):
        return names.get(_identity(told), str(told.get("method", "")))
    return str(told)


def answers(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer: one sentence a verdict, or what stands in its place. Each has `verdict` (or None) and `text`."""
    found: list[dict[str, Any]] = []
    for v in verdict_records(facts):
        where = f" on {v['task']}" if v["task"] else ""
        text = (
            f"{v['name']} {_SENTENCES.get(v['verdict'], v['verdict'])} {v['reference']}{where}: "
            f"{points(v['difference'])} points {interval(v, signed=True)}"
        )
        if v["p_value"] is not None:
            text += f", p = {v['p_value']:.3g}"
        if v["detectable"] is not None:
            text += (
                f"; differences under {100 * v['detectable']:.2f} points could not have been seen"
            )
        found.append({"verdict": v["verdict"], "text": f"{text}.", "optimistic": v["optimistic"]})
    if not found:
        found += [
            {"verdict": None, "text": text, "optimistic": facts["study"]["optimistic"]}
            for text in _without_verdicts(facts)
        ]
    return found


def _without_verdicts(facts: dict[str, Any]) -> list[str]:
    estimates = facts["estimates"]
    if not estimates:
        return ["No trial has ended yet, so there is no answer."]
    main = [
        e
        for e in estimates
        if (e["set"], e["metric"]) == (estimates[0]["set"], estimates[0]["metric"])
    ]
    told = [
        f"{name} scored {percent(e['value'])} {interval(e)} ({e['metric']} on {e['n']} examples, seeds: {e['seeds']})."
        for name, e in zip(labels(main), main, strict=True)
    ]
    return told[:3] if len(main) < 2 else [*told[:6], "No verdict between them was computed."]


def untold(facts: dict[str, Any]) -> list[str]:
    """What this run cannot tell, and why."""
    found: list[str] = []
    study, estimates = facts["study"], facts["estimates"]
    open_ = [v for v in verdict_records(facts) if v["verdict"] == "cannot tell"]
    for v in open_:
        found.append(
            f"Whether {v['name']} and {v['reference']} differ: the interval reaches from {points(v['low'])} to "
            f"{points(v['high'])} points."
        )
    if study["optimistic"]:
        found.append(
            "How good the models are on new examples: the epoch was chosen on the reported examples themselves, "
            "so every score here is optimistic."
        )
    if estimates and min(e["seeds"] for e in estimates) < 5:
        least = min(e["seeds"] for e in estimates)
        found.append(
            f"How much of a difference is luck of the seed: the fewest seeds behind an estimate are {least}, and 5 are the "
            "least for a verdict."
        )
    if failed := [t for t in facts["trials"] if t["status"] == "failed"]:
        found.append(
            f"What the failed trials would have scored: {len(failed)} of {len(facts['trials'])} failed, and the estimates are "
            "of the others."
        )
    if waiting := [t for t in facts["trials"] if t["status"] == "unfinished"]:
        found.append(
            f"What the rest will say: {len(waiting)} of {len(facts['trials'])} trials have not ended."
        )
    found.append(
        "How other tasks, languages or backbones would turn out: the intervals are about new seeds and new examples of this "
        "task alone."
    )
    return found
