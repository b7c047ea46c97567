"""What the readers of own files share: what a header says, and checks for every format.

A reader is two functions. `header(path)` opens the file and raises DataError where nothing can be
read at all. `rows(path, names, scalars, problems)` yields (line, cells of the named columns) and
adds what is wrong to `problems`; columns in `scalars` (labels, groups) may hold integers and
booleans besides strings, the others only strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetune.errors import DataError, did_you_mean

Row = tuple[int, tuple[str, ...]]
"""The line where a row starts, from 1 (Parquet: the number of the row), and its cells."""


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a file."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    """Those that can hold a text."""
    scalars: tuple[str, ...]
    """Those that can hold a label."""
    line: int | None
    """Where the header stands; None for Parquet."""
    kinds: Mapping[str, type[bool] | type[int]] = field(default_factory=dict[str, Any])
    """Of the columns whose cells are no texts in the file, what they are: all of a column are of one kind."""

    def value(self, column: str, cell: str) -> str | int | bool:
        """A cell as the file has it."""
        kind = self.kinds.get(column, str)
        return cell == "true" if kind is bool else kind(cell)

    def place(self, column: str) -> str:
        return f"column {column}" if self.line is None else f"line {self.line}, column {column}"


@dataclass(frozen=True, slots=True)
class Format:
    """One row of the table of formats in sources.py."""

    header: Callable[[Path], Header]
    rows: Callable[[Path, Sequence[str], frozenset[str], list[str], bool], Iterator[Row]]
    """(path, columns, those that hold labels, problems to add to, whether these may be decimal numbers)."""
    unit: str = "line"
    """What a row's number counts: lines, or rows where a file has no lines."""
    headed: bool = False
    """Whether the names of the columns stand in a line of their own, which somebody may have left out."""


def check_names(path: Path, header: Header) -> None:
    """Raise DataError where a column name stands twice."""
    twice = sorted({name for name in header.columns if header.columns.count(name) > 1})
    if twice:
        problem = "this name stands twice; every column needs its own"
        raise DataError(str(path), [f"{header.place(name)}: {problem}" for name in twice])


def lone_header(columns: Sequence[str]) -> str | None:
    """What is to be said of a header that was not taken apart, since its separator is not that of the file's extension."""
    if columns[0].casefold().startswith("sep="):
        return "line 1 is a note for Excel; remove it, and separate cells by commas in .csv, by tabs in .tsv"
    if len(columns) == 1 and any(separator in columns[0] for separator in ",;|\t"):
        told = "the header is one cell: separate cells by commas in .csv, by tabs in .tsv"
        by = next((separator for separator in ";|\t," if separator in columns[0]), ",")
        return f"{told}, e.g. with pandas: read_csv(FILE, sep={by!r}).to_csv(NEW, index=False)"
    return None


def check_wanted(
    path: Path, header: Header, names: Sequence[str], remedies: Mapping[str, str]
) -> None:
    """Raise DataError where a named column is not there. remedies: what to do, by the name of the column."""
    there = ", ".join(header.columns)
    lone = lone_header(header.columns)
    problems: list[str] = []
    for name in names:
        if name not in header.columns:
            near = "" if lone else did_you_mean(name, header.columns)
            hint = near if near.startswith(", did") else ""
            remedy = lone or remedies[name]
            problems.append(
                f"{header.place(name)}: missing{hint}; {remedy}; the columns are: {there}"
            )
    if problems:
        raise DataError(str(path), problems)


_SURROGATE = re.compile("[\ud800-\udfff]")
# What Python makes of a byte that is not UTF-8.
_BYTE = re.compile("[\udc80-\udcff]")


def character_problem(text: str) -> str | None:
    """What is wrong with the characters of a text that did not come straight from checked UTF-8."""
    if "\0" in text:
        return "a NUL character; text must not hold any, remove it"
    if _SURROGATE.search(text):
        return "half of a surrogate pair, which is no character; write the character itself"
    return None


_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def decimal(text: str) -> float:
    """A cell as a number, NaN where it is none; what Python takes besides ("1_0", other scripts' digits, "nan") is none."""
    return float(text) if _DECIMAL.fullmatch(text.strip()) else math.nan


def text_problem(text: str, unit: str = "text") -> str | None:
    """What is wrong with a text that stands in no file; unit: what holds it."""
    if not text or text.isspace():
        return f"empty; every {unit} must hold something"
    # Bytes of the command line that are not UTF-8 arrive as these.
    if _BYTE.search(text):
        return "not UTF-8; give it as UTF-8, or in a file"
    return character_problem(text)
