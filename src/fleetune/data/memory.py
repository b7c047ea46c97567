"""Rows that a Python program holds, as JSON Lines: from there on they are read as strictly as any file.

Nothing is converted but numpy's scalars, which become Python's, and what is missing in a frame (NaN, NaT, NA), which becomes
null. A label 3.0 or null is refused by the reader (jsonl.py), with the number of the row as its line; columns that are not
asked for may hold anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fleetune.errors import DataError


def records_of(frame: Any) -> list[dict[str, Any]]:
    """The rows of a pandas frame, or of a pyarrow table. DataError where two of its columns have one name."""
    arrow = hasattr(frame, "to_pylist")
    names = [str(name) for name in (frame.column_names if arrow else frame.columns)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        told = "this name stands twice; every column needs its own"
        raise DataError("data", [f"column {name}: {told}" for name in twice])
    return frame.to_pylist() if arrow else frame.to_dict(orient="records")


def as_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One object a line. DataError where there is no row, a row is no mapping, or a column's name is no string."""
    lines: list[str] = []
    for number, row in enumerate(rows, start=1):
        given: Any = row
        if (
            isinstance(given, Mapping)
            and (name := next((n for n in given if not isinstance(n, str)), None)) is not None
        ):
            told = f"names of columns must be strings, but got {name!r:.60}; of a frame, set frame.columns"
            raise DataError("data", [told])
        if not isinstance(given, Mapping):
            raise DataError(
                "data",
                [
                    f'row {number}: must be a dict such as {{"text": "...", "label": "good"}}, but got '
                    f"{type(given).__name__} {str(given)[:60]!r}"
                ],
            )
        cells = {name: None if _is_missing(cell) else cell for name, cell in given.items()}
        try:
            lines.append(json.dumps(cells, ensure_ascii=True, allow_nan=False, default=_plain))
        except (TypeError, ValueError, RecursionError):
            # A cell inside a cell that JSON has no form for, in a column that may be asked for or not: cell by cell.
            plain = {name: _as_json(cell) for name, cell in cells.items()}
            lines.append(json.dumps(plain, ensure_ascii=True))
    if not lines:
        raise DataError("data", ["there are no rows; give at least some of each label"])
    return ("\n".join(lines) + "\n").encode()


def _is_missing(cell: Any) -> bool:
    """NaN and NaT are not equal to themselves, and pandas' NA says of itself neither."""
    try:
        return bool(cell != cell)
    except (TypeError, ValueError):
        return type(cell).__name__ == "NAType"


def _as_json(cell: Any) -> Any:
    """A cell as JSON would have it, or the name of its type where there is no such form."""
    try:
        return json.loads(json.dumps(cell, allow_nan=False, default=_plain))
    except (TypeError, ValueError, RecursionError):
        return _plain(cell)


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's; of other types their name, which no column of texts or labels can use."""
    return value.item() if isinstance(value, np.generic) else {"type": type(value).__name__}
