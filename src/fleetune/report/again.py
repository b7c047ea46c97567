"""The command that does a run again, from its facts: what is at its default is left out.

A run of fixed settings is one `fleetune train` command, a study is its file. Where no command says the same (methods with
training settings or names of their own, one method twice), there is none, and the settings themselves have to do.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fleetune.config import TrainingSettings
from fleetune.errors import printable
from fleetune.report.model_facts import tables

# A named task knows its columns.
_TASK_FLAGS = (("data_dir", "--data-dir"),)
_FILE_FLAGS = (
    ("file", "--data"),
    ("test_file", "--test-data"),
    ("label_column", "--label-column"),
    ("groups_column", "--groups-column"),
)
# Resolved from the task where the user says nothing.
_FROM_TASK = ("metric_for_best_model", "greater_is_better")


def again(facts: Mapping[str, Any]) -> str | None:
    """The command; None where there is none."""
    study = facts["study"]
    if "confirm" in study or "search" in study:
        return "fleetune study study.toml --output-dir again"
    data, seeds = tables(facts), study.get("seeds")
    if len(data) != 1 or not seeds or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        return None
    own = _methods(study["methods"], _main_metric(facts))
    if own is None:
        return None
    words = ["fleetune", "train", *_data(data[0]), *own, *_backbone(study["backbone"])]
    words += ["--seeds", str(len(seeds)), "--seed", str(seeds[0]), "--output-dir", "again"]
    return " ".join(shlex.quote(printable(word)) for word in words)


def _main_metric(facts: Mapping[str, Any]) -> str | None:
    return next((e["metric"] for e in facts["estimates"]), None)


def _data(data: Mapping[str, Any]) -> list[str]:
    words = [] if data.get("file") or not data.get("task") else ["--task", str(data["task"])]
    for key, flag in _FILE_FLAGS if data.get("file") else _TASK_FLAGS:
        if data.get(key):
            words += [flag, str(data[key])]
    for column in (data.get("text_columns") or []) if data.get("file") else []:
        words += ["--text-column", str(column)]
    if data.get("max_train_samples"):
        words += ["--max-train-samples", str(data["max_train_samples"])]
    return [*words, *([] if data["protocol"] == "holdout" else ["--protocol", data["protocol"]])]


def _backbone(backbone: Mapping[str, Any]) -> list[str]:
    words = ["--backbone", str(backbone["name"])]
    for key in ("revision", "dtype", "max_length"):
        if backbone.get(key) is not None:
            words += [f"--{key.replace('_', '-')}", str(backbone[key])]
    return words


def _methods(methods: Sequence[Mapping[str, Any]], metric: str | None) -> list[str] | None:
    """`--methods`, `--set` and the training flags; None where methods train differently beyond their own defaults, or stand
    twice or under names of their own."""
    from fleetune.methods.table import METHODS

    named = [m["method"] for m in methods]
    if not METHODS.keys() >= set(named) or len(set(named)) < len(named):
        return None
    if any(m.get("name") for m in methods):
        return None
    words = ["--methods", ",".join(named)]
    trained: list[dict[str, Any]] = []
    for m in methods:
        cls = METHODS[m["method"]]
        for key, field in cls.model_fields.items():
            if key in m and _plain(m[key]) != _plain(field.get_default()):
                words += ["--set", f"{m['method']}.{key}={_value(m[key])}"]
        trained.append({k: v for k, v in m.items() if k in TrainingSettings.model_fields})
    changed = [_changed(own, m["method"], metric) for own, m in zip(trained, methods, strict=True)]
    for key in dict.fromkeys(k for own in changed for k in own):
        if len({repr(own.get(key)) for own in trained}) > 1:
            return None
        value, flag = trained[0][key], f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, _value(value)]
    return words


def _changed(own: Mapping[str, Any], method: str, metric: str | None) -> dict[str, Any]:
    """The training settings of a method that are not its defaults."""
    from fleetune.methods.table import METHODS

    defaults = {
        k: f.get_default(call_default_factory=True)
        for k, f in TrainingSettings.model_fields.items()
    }
    defaults["learning_rate"] = METHODS[method].default_learning_rate
    defaults["metric_for_best_model"] = metric
    lower = own.get("metric_for_best_model") == "loss"
    defaults["greater_is_better"] = not lower
    skipped = _FROM_TASK if metric is None else ()
    return {k: v for k, v in own.items() if k not in skipped and v != defaults.get(k)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return json.dumps(value)
