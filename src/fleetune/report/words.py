"""How numbers are written on the page, and what the run asks and answers, in sentences. Facts in, text out.

Scores are written in percent and differences in points, as papers on these tasks do; a loss stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleetune.report.tables import duration as duration
from fleetune.report.tables import named, on_main_metric, span
from fleetune.stats.verdict import MIN_SEEDS

Facts = dict[str, Any]

OPTIMISTIC = "the epoch was chosen on the reported examples themselves, so the score is higher than on new ones"
_SENTENCES = {
    "better": "is better than",
    "worse": "is worse than",
    "equivalent": "is equivalent to",
    "cannot tell": "cannot be told from",
}
# The first screen has room for so many sentences; the table of verdicts has all of them.
_MOST_ANSWERS = 6


# --- numbers


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{100 * value:+.2f}"


def score(value: float, metric: str) -> str:
    """A score in percent; a loss as it is."""
    return f"{value:.4f}" if metric == "loss" else percent(value)


def scale(metric: str) -> int:
    """What a score is multiplied with before it is drawn or written."""
    return 1 if metric == "loss" else 100


def axis_name(metric: str, where: str = "") -> str:
    """A metric as the name of an axis, with its unit."""
    return f"{metric}{where}" if metric == "loss" else f"{metric}{where}, %"


def interval(record: Mapping[str, Any], *, signed: bool = False) -> str:
    """The 95 % interval of an estimate or a difference; "none" where nothing varied."""
    if record["low"] is None or not signed:
        return span(record)
    return f"[{points(record['low'])}, {points(record['high'])}]"


def count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def size(value: float) -> str:
    """A number of parameters, short."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def mib(value: int) -> str:
    """Bytes in MiB, or GiB."""
    return f"{value / 2**30:.3g} GiB" if value >= 1000 * 2**20 else f"{value / 2**20:.3g} MiB"


def signed(value: float) -> str:
    """An error of a regression, in the unit of its target."""
    return f"{value:+.3f}"


def p_value(value: float) -> str:
    """A p-value to as many digits as anybody should read."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def p_equals(value: float, name: str = "p") -> str:
    """`p = 0.031`, `p < 0.0001`."""
    told = p_value(value)
    return f"{name} {told if told.startswith('<') else f'= {told}'}"


def setting(value: Any) -> str:
    """A setting's value as the user would write it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        members: Sequence[Any] = value
        return ", ".join(setting(v) for v in members)
    return str(value)


def settings(values: Mapping[str, Any]) -> str:
    """Several settings in one line."""
    return ", ".join(f"{k}={setting(v)}" for k, v in values.items())


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def joined(names: Sequence[str], word: str = "or") -> str:
    """Names as in a sentence."""
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} {word} {names[-1]}"


# --- the question and its answer


def question(facts: Facts) -> str:
    """What the run asks."""
    methods = list(dict.fromkeys(t["method"] for t in facts["trials"]))
    tasks = joined(list(dict.fromkeys(t["task"] for t in facts["trials"])), "and") or "these data"
    backbone = facts["study"]["environment"]["backbone"]["source"].rstrip("/").rpartition("/")[2]
    if 1 < len(methods) <= 5:
        return f"{joined(methods)}: which is best on {tasks} with {backbone}?"
    if len(methods) > 5:
        return f"Which of {len(methods)} methods is best on {tasks} with {backbone}?"
    if len(methods) == 1 and facts.get("rank"):
        return f"Which rank of {methods[0]} is best on {tasks} with {backbone}?"
    if methods and len({label for label, _ in named(facts["estimates"])}) > 1:
        return f"Which setting of {methods[0]} is best on {tasks} with {backbone}?"
    return f"How good is {methods[0] if methods else 'it'} on {tasks} with {backbone}?"


def verdicts(facts: Facts) -> list[Facts]:
    """The verdicts as they are shown: what below five seeds is no test, and no share to go by, is None, as on the terminal."""
    untested = dict.fromkeys(("p_value", "p_adjusted", "probability_better"))
    return [v | untested if v["seeds"] < MIN_SEEDS else v for v in facts["verdicts"]]


def main_verdicts(facts: Facts) -> list[Facts]:
    """Those on the main metric and the main test set of each task."""
    return on_main_metric(verdicts(facts))


def answers(facts: Facts) -> list[Facts]:
    """The answer: one sentence a verdict, or what stands in its place. Each has `verdict` (or None), `text`, `optimistic`."""
    judged, trends = main_verdicts(facts), [r for r in facts.get("rank", []) if r["trend"]]
    several = _on_several_tasks(facts)
    if not judged and not trends:
        stamp = facts["study"]["optimistic"]
        return [
            {"verdict": None, "text": text, "optimistic": stamp and scored}
            for text, scored in _without_verdicts(facts)
        ]
    found = [_trend(r, several) for r in trends]
    found += [
        {
            "verdict": v["verdict"],
            "text": _sentence(v, several),
            "optimistic": v["optimistic"],
        }
        for v in judged[:_MOST_ANSWERS]
    ]
    if (left := len(judged) - _MOST_ANSWERS) > 0:
        told = f"{plural(left, 'more verdict')} in the table below."
        found.append({"verdict": None, "text": told, "optimistic": False})
    return found


def _on_several_tasks(facts: Facts) -> bool:
    """Whether a sentence has to name its task, though perhaps one task alone has something to say."""
    return len({t["task"] for t in facts["trials"]}) > 1


def _trend(r: Facts, several: bool) -> Facts:
    """What a rank study says: the slope for each doubling of the rank."""
    t, where = r["trend"], f" on {r['task']}" if several else ""
    text = (
        f"Each doubling of the rank of {r['name'] or r['method']}{where} changes {r['metric']} by "
        f"{points(t['slope'])} points, 95% interval {interval(t, signed=True)}, over ranks "
        f"{joined([str(x['r']) for x in r['ranks']], 'and')}{_failed(r['failed_seeds'])}: {t['reason']}."
    )
    return {"verdict": t["verdict"], "text": text, "optimistic": r["optimistic"]}


def _sentence(v: Facts, several: bool) -> str:
    where = f" on {v['task']}" if several else ""
    text = (
        f"{v['method']} {_SENTENCES.get(v['verdict'], v['verdict'])} {v['reference']}{where}: "
        f"{points(v['difference'])} points of {v['metric']}, {_interval_name(v)} {interval(v, signed=True)}"
    )
    text += f", over {plural(v['seeds'], 'seed')} and {plural(v['n'], 'example')}{_failed(v['failed_seeds'])}"
    p = v["p_adjusted"] if v["p_adjusted"] is not None else v["p_value"]
    if p is not None:
        text += f", {p_equals(p, 'p' if v['p_adjusted'] is None else 'adjusted p')}"
    if v["seeds"] < MIN_SEEDS:
        text += f". Below {MIN_SEEDS} seeds no verdict is given"
    elif v["verdict"] == "cannot tell" and v["detectable"] is not None:
        seen = f"{percent(v['detectable'])} points"
        text += f". A run like this finds a difference of {seen} four times out of five, and a smaller one less often"
    return f"{text}."


def _interval_name(v: Facts) -> str:
    """What the interval of a verdict is called: of several verdicts it is about all of them at once."""
    several = v["comparisons"] > 1
    return f"95% interval (simultaneous over {v['comparisons']})" if several else "95% interval"


def _failed(number: int) -> str:
    """How many trainings an estimate or a verdict had to make up for; what they count as is in its `how`."""
    if not number:
        return ""
    return f", {plural(number, 'failed training')} counted as having learned nothing"


def _without_verdicts(facts: Facts) -> list[tuple[str, bool]]:
    """(sentence, whether it holds a score)."""
    if not facts["estimates"]:
        return [("No trial has ended well yet, so there is no answer.", False)]
    main = named(on_main_metric(facts["estimates"]))
    several = len({e["task"] for _, e in main}) > 1
    best = sorted(main, key=lambda pair: -pair[1]["value"])[:_MOST_ANSWERS] if not several else main
    told = [
        (
            f"{name} scored {percent(e['value'])}% {e['metric']}{' on ' + e['task'] if several else ''}, "
            f"95% interval {interval(e)}, over {plural(e['seeds'], 'seed')} and {plural(e['n'], 'example')}"
            f"{_failed(e['failed_seeds'])}.",
            True,
        )
        for name, e in best[: 2 * _MOST_ANSWERS]
    ]
    if len(main) > 1:
        told.append(
            (
                "Which is best is open: no verdict was computed, and intervals that overlap do not decide it either way.",
                False,
            )
        )
    return told


def untold(facts: Facts) -> list[str]:
    """What this run cannot tell, and why."""
    found: list[str] = []
    study, trials, several = facts["study"], facts["trials"], _on_several_tasks(facts)
    open_ = [v for v in main_verdicts(facts) if v["verdict"] == "cannot tell"]
    for v in open_[:_MOST_ANSWERS]:
        where = f" on {v['task']}" if several else ""
        # Of too few seeds an interval may leave out 0, and says no more for it; nor does one of rows that all say the same.
        closed = v["low"] is None or v["detectable"] is None
        ends = [points(v[key]) for key in ("low", "high") if v[key] is not None]
        agree = f"the data agree with anything from {' to '.join(ends)} points"
        why = v["reason"] if closed and v["reason"] else agree
        found.append(f"Whether {v['method']} and {v['reference']} differ{where}: {why}.")
    for name, e in named(on_main_metric(facts["estimates"])):
        constant = e.get("constant_score")
        if e["metric"] == "accuracy" and constant is not None and (e["low"] or 0.0) <= constant:
            where = f" on {e['task']}" if several else ""
            found.append(
                f"Whether {name} has learned anything{where}: the most frequent label in every row has {percent(constant)} %, "
                f"and its interval {'holds that' if (e['high'] or 1.0) >= constant else 'lies below'}."
            )
    if study["optimistic"]:
        found.append(
            "How good the models are on new examples: the epoch was chosen on the reported examples themselves, "
            "so every score here is optimistic."
        )
    seeds = min((e["seeds"] for e in facts["estimates"]), default=MIN_SEEDS)
    if seeds < MIN_SEEDS:
        found.append(
            f"How much of a difference is luck of the seed: an estimate here rests on {plural(seeds, 'seed')}, "
            f"and {MIN_SEEDS} are the least for a verdict."
        )
    found += _never_confirmed(facts)
    if failed := [t for t in trials if t["status"] == "failed"]:
        found.append(
            f"What the failed trials would have scored: {len(failed)} of {len(trials)} failed; an estimate counts a "
            "training that failed as one that learned nothing."
        )
    if waiting := [t for t in trials if t["status"] == "unfinished"]:
        found.append(
            f"What the rest will say: {len(waiting)} of {len(trials)} trials have not ended."
        )
    found.append(
        "How another task, language or backbone would turn out: the intervals are about new seeds and new examples "
        "of the same kind."
    )
    return found


def _never_confirmed(facts: Facts) -> list[str]:
    """The methods whose search left nothing to confirm: they are in no table of scores and in no verdict."""
    arms = [arm for arm in facts["arms"] if arm["chosen"] is None]
    reference = facts["study"].get("confirm", {}).get("reference")
    several = len({arm["task"] for arm in facts["arms"]}) > 1
    return [
        f"How good {arm['arm']} is{' on ' + arm['task'] if several else ''}: its search left no trial to choose, so it was not "
        f"confirmed and is in no verdict{'; it is the reference, so nothing is compared' if arm['arm'] == reference else ''}."
        for arm in arms
    ]


def scope(facts: Facts, tasks: Sequence[Facts]) -> str:
    """The size of the run in one line: trials, seeds, examples, protocol, machine."""
    trials = facts["trials"]
    told = [plural(len(trials), "trial")]
    if seeds := {t["seed"] for t in trials if t["phase"] != "search"}:
        told.append(plural(len(seeds), "seed"))
    for task in tasks:
        if task["groups"]:
            n, where = task["groups"][0]["estimate"]["n"], task["set"]
            told.append(f"{plural(n, 'example')} of {task['task']} ({where})")
    machine = facts["study"]["environment"]["machine"]
    told.append(
        str(machine.get("gpu") or f"{machine['processor']}, {plural(machine['cores'], 'core')}")
    )
    return " · ".join(told)
