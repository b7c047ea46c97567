"""What Python callers give instead of a command line or a study file: names, tables, rows; as the settings take them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fleetune.data.memory import as_jsonl, records_of
from fleetune.errors import SettingsError
from fleetune.study.fixed import task_or_file


def rows_from(
    data: Any, test_data: Any, folder: Path, kept: dict[str, bytes]
) -> tuple[str | None, str | None, str | None]:
    """(task, file, test file). kept: rows from memory are added, by the names that they will have in the run's folder.

    SettingsError for what is none of these, and for a task as test_data.
    """
    task, file = _source(data, folder / "data.jsonl", kept)
    if test_data is None:
        return task, file, None
    named, test_file = _source(test_data, folder / "test.jsonl", kept)
    if named is not None:
        rule = f"must be a file, a frame or a list of dicts, but {named} is a task"
        raise SettingsError("test_data", [f"{rule}; leave it out, or give the task as data"])
    return task, file, test_file


def method_tables(methods: Any) -> list[dict[str, Any]]:
    """As a study file's [[methods]]."""
    if isinstance(methods, str):
        return [{"method": methods}]
    if isinstance(methods, Mapping):
        for name, settings in dict[str, Any](methods).items():
            if not isinstance(settings, Mapping):
                told = (
                    f'must be a table such as {{"learning_rate": 1e-3}}, but got {shown(settings)}'
                )
                raise SettingsError("methods", [f"{name}: {told}"])
        return [
            {"name" if "method" in settings else "method": key, **settings}
            for key, settings in methods.items()
        ]
    if not isinstance(methods, Iterable):
        rule = "must be a method's name, several, or names with their settings"
        raise SettingsError("methods", [f"{rule}, but got {shown(methods)}"])
    return [{"method": name} for name in list[Any](methods)]


def columns(named: Any) -> tuple[Any, ...] | None:
    """One column's name, or several."""
    if named is None:
        return None
    several = isinstance(named, Iterable) and not isinstance(named, str)
    return (tuple(list[Any](named)) if several else (named,)) or None


def _source(data: Any, place: Path, kept: dict[str, bytes]) -> tuple[str | None, str | None]:
    """(task, file): what the text names, or where rows from memory will lie, which are added to those to keep."""
    if isinstance(data, str | os.PathLike):
        return task_or_file(os.fspath(data))
    rows = records_of(data) if hasattr(data, "columns") else data
    if not isinstance(rows, Iterable):
        told = "must be a task, a file, a frame or a list of dicts"
        raise SettingsError("data", [f"{told}, but got {shown(data)}"])
    kept[place.name] = as_jsonl(rows)
    return None, str(place)


def plain(value: Any) -> Any:
    """A study as a file could have it: paths as texts, tuples as lists, numpy's numbers and arrays as Python's."""
    if isinstance(value, Mapping):
        if other := [key for key in dict[Any, Any](value) if not isinstance(key, str)]:
            raise SettingsError("study", [f"keys must be strings, but got {shown(other[0])}"])
        return {key: plain(inner) for key, inner in dict[Any, Any](value).items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def shown(value: Any) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
