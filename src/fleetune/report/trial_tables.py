"""One trial for the terminal, and trials and epochs as CSV that a spreadsheet opens without running anything.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula, also where it is
quoted (OWASP, CSV Injection). Such a text gets an apostrophe in front. Numbers stay as they are, also where they are text (a
label "-1", a prediction): they compute nothing.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleetune.errors import SettingsError, did_you_mean, printable
from fleetune.report.tables import OPTIMISTIC, duration, grid

_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def trial_of(facts: Mapping[str, Any], ident: str) -> dict[str, Any]:
    """A trial by its name; SettingsError with the nearest right one."""
    trials: dict[str, dict[str, Any]] = {t["id"]: t for t in facts["trials"]}
    if ident not in trials:
        raise SettingsError(
            "show", [f'no trial "{ident}" in this run{did_you_mean(ident, trials)}']
        )
    return trials[ident]


def one(trial: Mapping[str, Any]) -> str:
    """All that is known of a trial: settings, epochs, test scores."""
    parameters = trial["trainable_parameters"]
    rows = [
        ["method", trial["method"]],
        ["task", trial["task"]],
        ["seed", str(trial["seed"])],
        ["phase", trial["phase"]],
        ["status", trial["status"] + (f": {trial['reason']}" if trial["reason"] else "")],
        ["parameters", f"{parameters['encoder']:,} encoder, {parameters['head']:,} head"],
        ["time", duration(trial["seconds"])],
        *([key, _plain(value)] for key, value in trial["hyperparameters"].items()),
        *([key, _plain(value)] for key, value in trial["training"].items()),
    ]
    parts = [grid([trial["id"], ""], rows), _epochs(trial), _tests(trial)]
    return "\n\n".join(part for part in parts if part)


def _epochs(trial: Mapping[str, Any]) -> str:
    names = _selection_names(trial)
    rows = [
        [
            f"{e['epoch']}{' (kept)' if e['epoch'] == trial['best_epoch'] else ''}",
            str(e["step"]),
            f"{e['loss']:.4f}",
            *(_score(e["selection"].get(name)) for name in names),
            duration(e["seconds"]),
        ]
        for e in trial["epochs"]
    ]
    header = ["epoch", "step", "loss", *(f"selection {name}" for name in names), "time"]
    return grid(header, rows, right=range(1, len(header))) if rows else "no epoch has ended yet"


def _tests(trial: Mapping[str, Any]) -> str:
    stamp = f" ({OPTIMISTIC})" if trial["optimistic"] else ""
    rows = [
        [name, metric + stamp, f"{100 * value:.2f}", str(scores["n"])]
        for name, scores in trial["tests"].items()
        for metric, value in scores.items()
        if metric not in ("n", "loss")
    ]
    table = grid(["test set", "metric", "score", "n"], rows, right=(2, 3)) if rows else ""
    return f"{table}\n  of this one training; the method's estimate is over seeds" if rows else ""


def trials_csv(facts: Mapping[str, Any]) -> str:
    """One row a trial."""
    found: list[dict[str, Any]] = []
    for t in facts["trials"]:
        best = next((e for e in t["epochs"] if e["epoch"] == t["best_epoch"]), None)
        found.append(
            {
                **{k: t[k] for k in ("id", "task", "method", "seed", "phase", "status", "reason")},
                "epochs": len(t["epochs"]),
                "best_epoch": t["best_epoch"],
                "encoder_parameters": t["trainable_parameters"]["encoder"],
                "head_parameters": t["trainable_parameters"]["head"],
                "seconds": t["seconds"],
                **{f"selection_{k}": v for k, v in (best["selection"] if best else {}).items()},
                **{f"{s}_{k}": v for s, scores in t["tests"].items() for k, v in scores.items()},
                "optimistic": t["optimistic"],
                **t["hyperparameters"],
                **t["training"],
            }
        )
    return as_csv(found)


def epochs_csv(trial: Mapping[str, Any]) -> str:
    """One row an epoch of one trial."""
    return as_csv(
        [
            {
                "id": trial["id"],
                **{k: e[k] for k in ("epoch", "step", "loss", "seconds")},
                **{f"selection_{k}": v for k, v in e["selection"].items()},
            }
            for e in trial["epochs"]
        ]
    )


def as_csv(rows: Sequence[Mapping[str, Any]], *, told: Callable[[str], str] = printable) -> str:
    """CSV with a header of every key, in the order of their first appearance; what a row lacks is empty.

    told: how text is made to show; `printable` for a terminal, `errors.safe_text` for a file.
    """
    header = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(key, told) for key in header])
    writer.writerows([[cell(row.get(key), told) for key in header] for row in rows])
    return out.getvalue().removesuffix("\n")


def cell(value: Any, told: Callable[[str], str] = printable) -> str:
    """A value as a cell; text that a spreadsheet would run, or that could move a cursor, is made to show."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value) if isinstance(value, bool) else repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    runs = text.startswith(_FORMULA) and _NUMBER.fullmatch(text) is None
    return told(f"'{text}" if runs else text)


def _selection_names(trial: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(k for e in trial["epochs"] for k in e["selection"]))


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
