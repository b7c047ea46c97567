"""Own JSON Lines files: one object a line with the same columns; blank lines are skipped.

A text is a string. A label is a string, an integer or a boolean, and the same kind in every line;
booleans become "true" and "false". Strict: a key twice in one object, NaN, floats, null, NUL and
half surrogates are problems.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fleetune.data.formats import Format, Header, Row, character_problem, check_names
from fleetune.data.textfile import MAX_PROBLEMS, text_problem
from fleetune.errors import DataError

_BOM = b"\xef\xbb\xbf"


def _header(path: Path) -> Header:
    damage = text_problem(path)
    if damage is not None:
        raise DataError(str(path), [damage])
    problems: list[str] = []
    for line, _, record in _objects(path, problems):
        header = Header(
            columns=tuple(record),
            texts=tuple(name for name, value in record.items() if isinstance(value, str)),
            scalars=tuple(name for name, value in record.items() if isinstance(value, str | int)),
            line=line,
            kinds={name: type(v) for name, v in record.items() if isinstance(v, int)},
        )
        check_names(path, header)
        return header
    raise DataError(str(path), problems or ["the file is empty; it needs one JSON object a line"])


def _rows(
    path: Path, names: Sequence[str], scalars: frozenset[str], problems: list[str], decimals: bool
) -> Iterator[Row]:
    kinds: dict[str, tuple[str, int]] = {}
    for line, raw, record in _objects(path, problems):
        cells: list[str] = []
        for name in names:
            problem, cell = _cell(record, name, name in scalars, decimals)
            if problem is None and name in scalars and not decimals:
                problem = _mixed(kinds, name, _kind(record[name]), line)
            # Only an escape can bring in a character that checked UTF-8 does not have.
            if problem is None and b"\\u" in raw:
                problem = character_problem(cell)
            if problem is None:
                cells.append(cell)
            else:
                problems.append(f"line {line}, column {name}: {problem}")
        if len(cells) == len(names):
            yield line, tuple(cells)


def _objects(path: Path, problems: list[str]) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Line, raw bytes and object of every line that holds one."""
    with path.open("rb") as handle:
        for line, raw in enumerate(handle, start=1):
            raw = raw.removeprefix(_BOM) if line == 1 else raw
            if not raw.strip():
                continue
            try:
                record = _DECODER.decode(raw.decode("utf-8").strip())
            except json.JSONDecodeError as error:
                cut = "; the line ends too early" if error.pos >= len(raw.rstrip()) else ""
                what = f"not valid JSON ({error.msg}{cut}); write one whole object a line"
                problems.append(f"line {line}, character {error.colno}: {what}")
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                problems.append(f"line {line}: {reason}")
            else:
                if isinstance(record, dict):
                    yield line, raw, record
                else:
                    what = (
                        f'{_kind(record)}, but a line must be an object such as {{"text": "..."}}'
                    )
                    problems.append(f"line {line}: this is {what}")
            if len(problems) >= MAX_PROBLEMS:
                return


def _cell(record: dict[str, Any], name: str, scalar: bool, decimal: bool) -> tuple[str | None, str]:
    """(problem, "") or (None, the cell as text)."""
    if name not in record:
        return f"missing; the object has: {', '.join(record) or 'nothing'}", ""
    value = record[name]
    if isinstance(value, str):
        return None, value
    if scalar and isinstance(value, bool):
        return None, "true" if value else "false"
    if scalar and isinstance(value, int | float if decimal else int):
        return None, str(value)
    wanted = "a string, an integer or a boolean" if scalar else "a string"
    wanted = "a number" if scalar and decimal else wanted
    whole = scalar and isinstance(value, float) and value.is_integer()
    remedy = f"; write {int(value)}" if whole else ""
    return f"{_kind(value)} where {wanted} must stand{remedy}", ""


def _mixed(kinds: dict[str, tuple[str, int]], name: str, kind: str, line: int) -> str | None:
    first, where = kinds.setdefault(name, (kind, line))
    if kind == first:
        return None
    return f"{kind}, but line {where} has {first}; use one kind in the whole column"


def _kind(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a float"}
    names |= {type(None): "null", list: "a list", dict: "an object"}
    return names[type(value)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(
            f"column {twice}: this name stands twice in one object; every column needs its own"
        )
    return record


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value; leave the row out or give it a value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_a_number)

JSONL = Format(header=_header, rows=_rows)
