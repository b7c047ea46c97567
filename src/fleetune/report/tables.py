"""Facts as plain text tables: aligned columns, no markup, so that any name prints as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleetune.errors import counted, printable

OPTIMISTIC = "optimistic"
# A sentence names so many files.
_MOST_NAMED = 3


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns under a ruled header; `right` names the columns that hold numbers."""
    clean = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in clean) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(clean[0]), "  ".join("-" * w for w in widths), *map(line, clean[1:])])


def fitted(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int],
    width: int | None,
    spare: Sequence[str],
) -> str:
    """A table without as many of its columns `spare`, the first first, as a width asks for; what is left out is said below."""
    left: list[str] = []
    while True:
        kept = [i for i, name in enumerate(header) if name not in left]
        numbers = [place for place, i in enumerate(kept) if i in right]
        table = grid([header[i] for i in kept], [[row[i] for i in kept] for row in rows], numbers)
        more = [name for name in spare if name in header and name not in left]
        if width is None or not more or max(map(len, table.splitlines())) <= width:
            break
        left.append(more[0])
    note = f"\n  left out, since the terminal is narrow: {', '.join(left)}" if left else ""
    return table + note


def comparison(facts: dict[str, Any], width: int | None = None) -> str:
    """One row a method and setting: the estimate with all that it is worth. width: of the terminal; None: it does not matter."""
    tasks = list(dict.fromkeys(e["task"] for e in facts["estimates"]))
    several = len(tasks) > 1
    by_task = [[e for e in facts["estimates"] if e["task"] == task] for task in tasks]
    rows = [
        [
            *([e["task"]] if several else []),
            name,
            _short_metric(e),
            _percent(e, "value"),
            span(e),
            str(e["n"]),
            str(e["seeds"]) + (f" ({e['failed_seeds']} failed)" if e["failed_seeds"] else ""),
            f"{e['trainable_parameters']['encoder']:,}",
            f"{e['trainable_parameters']['head']:,}",
            duration(e["seconds"]),
        ]
        for mine in by_task
        for name, e in zip(labels(mine), mine, strict=True)
    ]
    lost = [lost_told(record) for record in facts["lost"]]
    if not rows:
        return "\n".join(lost) or none_left(facts)
    header = ["method", "metric", "test", "95% interval", "n", "seeds", "encoder", "head", "time"]
    header = [*(["task"] if several else []), *header]
    numbers = [several + column for column in (2, 4, 6, 7, 8)]
    table = fitted(header, rows, numbers, width, ("head", "time", "encoder", "n"))
    notes = sorted({f"{e['metric']}: {e['how']}" for e in facts["estimates"]})
    notes += floors(facts["estimates"])
    if len(facts["trials"]) > 1:
        notes.append("time: mean of a training, as its share of its cohort's")
    if facts["study"]["optimistic"]:
        notes.insert(0, 'OPTIMISTIC: protocol "paper" chose the epoch on these same test examples')
    return "\n".join([table, *(f"  {note}" for note in (*notes, *lost))])


def none_left(facts: dict[str, Any]) -> str:
    """Why a run has no estimate."""
    reasons = list(dict.fromkeys(t["reason"] for t in facts["trials"] if t["reason"]))
    if facts["study"]["status"] != "done" or not reasons:
        return "no trial has ended yet"
    more = f", and {counted(len(reasons) - 1, 'other reason')}" if len(reasons) > 1 else ""
    return (
        f"no trial is left to measure: all that went on failed ({reasons[0]}{more}); give other settings, and another "
        "--output-dir"
    )


def floors(estimates: Sequence[dict[str, Any]]) -> list[str]:
    """What an accuracy is to be read against: that of the most frequent label in every row, on each set."""
    several = len({(e["task"], e["set"]) for e in estimates}) > 1
    found = [
        f"accuracy{' on ' + e['task'] + ', ' + e['set'] if several else ''}: "
        f"the most frequent label in every row has {_percent(e, 'constant_score')}"
        for e in estimates
        if e["metric"] == "accuracy"
    ]
    return list(dict.fromkeys(found))


def lost_told(record: dict[str, Any]) -> str:
    """What is lost of a method's trainings, and what to do, in a sentence."""
    files = [f"{name} is {state}" for name, state in record["files"].items()]
    told = "; ".join(files[:_MOST_NAMED])
    if (left := len(files) - _MOST_NAMED) > 0:
        told += f"; and {left} more"
    return (
        f"left out of estimates and verdicts: {', '.join(record['trials'])}, since {told}; the scores of these trials are kept, "
        "and a copy of the files would bring back the rest"
    )


def trials(facts: dict[str, Any]) -> str:
    """One row a trial."""
    rows: list[list[str]] = []
    for t in facts["trials"]:
        last = t["epochs"][-1] if t["epochs"] else None
        best = next((e for e in t["epochs"] if e["epoch"] == t["best_epoch"]), last)
        metric = t["training"]["metric_for_best_model"]
        rows.append(
            [
                t["id"],
                t["status"],
                str(len(t["epochs"])),
                str(t["best_epoch"] or "-"),
                f"{last['loss']:.4f}" if last else "-",
                f"{best['selection'][metric]:.4f}" if best and best["selection"] else "-",
                _test_score(t),
                duration(t["seconds"]),
            ]
        )
    header = ["trial", "status", "epochs", "best", "loss", "selection", "test", "time"]
    table = grid(header, rows, right=(2, 3, 4, 5, 6, 7))
    reasons = [f"  {t['id']}: {t['reason']}" for t in facts["trials"] if t["reason"]]
    return "\n".join([table, *reasons])


def labels(estimates: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each estimate: the one that the study gives, or the method, with its rank, and with as few settings as tell
    it from the others.

    Settings that follow from others, such as lora_alpha = 4r, do not help to tell, and stay out.
    """
    several = len({e["set"] for e in estimates}) > 1
    unnamed = [e for e in estimates if not e.get("name")]
    keys = {method: _telling(unnamed, method) for method in {e["method"] for e in unnamed}}

    def label(e: dict[str, Any]) -> str:
        if name := e.get("name"):
            return name
        mine = {**e["hyperparameters"], **e["training"]}
        told = ", ".join(f"{k}={_plain(mine[k])}" for k in keys[e["method"]] if k in mine)
        return f"{e['method']} {told}" if told else e["method"]

    return [label(e) + (f" on {e['set']}" if several else "") for e in estimates]


def named(estimates: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Estimates with their names. Names tell settings apart, not test sets: these have a column of their own."""
    found: list[tuple[str, dict[str, Any]]] = []
    for task, where, metric in dict.fromkeys((e["task"], e["set"], e["metric"]) for e in estimates):
        mine = [e for e in estimates if (e["task"], e["set"], e["metric"]) == (task, where, metric)]
        found += zip(labels(mine), mine, strict=True)
    order = {id(e): i for i, e in enumerate(estimates)}
    return sorted(found, key=lambda pair: order[id(pair[1])])


def _telling(estimates: Sequence[dict[str, Any]], method: str) -> list[str]:
    """The settings by which the estimates of a method are told apart; the rank comes first, and always."""
    rows = [{**e["hyperparameters"], **e["training"]} for e in estimates if e["method"] == method]
    keys = list(dict.fromkeys(k for row in rows for k in row))
    kept = [k for k in keys if len({repr(row.get(k)) for row in rows}) > 1]
    for key in reversed(kept[:]):
        rest = [k for k in kept if k != key]
        if key != "r" and _apart(rows, rest) == _apart(rows, kept):
            kept = rest
    return ["r", *(k for k in kept if k != "r")] if "r" in keys else kept


def _apart(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    return len({tuple(repr(row.get(k)) for k in keys) for row in rows})


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def texts_given(pairs: bool) -> str:
    """The texts in an example of `fleetune predict`; a pair is two of them."""
    return " ".join(['--text "..."'] * (2 if pairs else 1))


def texts_of(facts: dict[str, Any], trial: dict[str, Any]) -> str:
    """The same for the model of one trial."""
    study = facts["study"]
    tables = study.get("tasks") or [study.get("data") or {}]
    columns = next((t.get("text_columns") for t in tables if t.get("task") == trial["task"]), None)
    return texts_given(len(columns or ()) == 2)


def duration(seconds: float) -> str:
    """Seconds in words short enough for a table."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _test_score(trial: dict[str, Any]) -> str:
    if not trial["test"]:
        return "-"
    name = next(k for k in trial["test"] if k != "n")
    return f"{trial['test'][name]:.4f}" + (f" ({OPTIMISTIC})" if trial["optimistic"] else "")


def _short_metric(estimate: dict[str, Any]) -> str:
    return estimate["metric"] + (f" ({OPTIMISTIC})" if estimate["optimistic"] else "")


def span(record: Mapping[str, Any]) -> str:
    """The interval of a score or a difference, in hundredths; "none" where nothing varied."""
    if record["low"] is None:
        return "none"
    return f"[{100 * record['low']:.2f}, {100 * record['high']:.2f}]"


def _percent(estimate: dict[str, Any], key: str) -> str:
    return f"{100 * estimate[key]:.2f}"


def on_main_metric(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of estimates or verdicts, those by the main metric on the main test set of their task, which are its first."""
    kept, first = list(records), dict[Any, tuple[Any, Any]]()
    for r in kept:
        first.setdefault(r["task"], (r["set"], r["metric"]))
    return [r for r in kept if (r["set"], r["metric"]) == first[r["task"]]]


def main_estimates(facts: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Those of one task by its main metric on its main test set."""
    return on_main_metric(e for e in facts["estimates"] if e["task"] == task)
