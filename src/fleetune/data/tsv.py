"""Plain tab separated text, as GLUE and the demo have it: no quoting, one row a line.

A `"` is a character. Problems are collected, not raised: one list for all files of a data set. Not
covered: own TSV files, which are quoted (delimited.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetune.data.textfile import MAX_PROBLEMS, File, text_problem
from fleetune.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class PlainTable:
    """The wanted cells of a file."""

    name: str
    """The file's name, for messages."""
    columns: tuple[str, ...]
    """The wanted columns, in the order they were asked for."""
    rows: tuple[tuple[str, ...], ...]
    """[n][columns] cells."""
    lines: tuple[int, ...]
    """[n] line of each row, from 1."""
    positions: tuple[int, ...]
    """[n] row number in the file, from 0."""

    def column(self, name: str) -> tuple[str, ...]:
        at = self.columns.index(name)
        return tuple(row[at] for row in self.rows)

    def place(self, row: int, column: str) -> str:
        return f"{self.name}, line {self.lines[row]}, column {column}"


def read_plain(
    file: File,
    wanted: Sequence[str],
    problems: list[str],
    *,
    header: Sequence[str] | None = None,
    short_rows_left_out: int = 0,
) -> PlainTable:
    """Read the wanted columns; what is wrong is added to `problems`, and such rows are left out.

    header: the columns of a file that has no header line. short_rows_left_out: so many rows with
    too few cells are left out without a problem, as the hub's version of QQP does.
    """
    nothing = PlainTable(file.name, tuple(wanted), (), (), ())
    damage = text_problem(file)
    if damage is not None:
        problems.append(f"{file.name}, {damage}")
        return nothing
    lines = _lines(file)
    if header is None:
        if not lines:
            problems.append(f"{file.name}: the file is empty")
            return nothing
        columns, first = lines[0].split("\t"), 1
    else:
        columns, first = list(header), 0
    wrong = _header_problems(file.name, columns, wanted)
    if wrong:
        problems.extend(wrong)
        return nothing
    if len(lines) == first:
        problems.append(f"{file.name}: there are no rows")
        return nothing
    return _rows(nothing, columns, lines, first, problems, short_rows_left_out)


def _lines(file: File) -> list[str]:
    with file.open("rb") as handle:
        text = handle.read().decode("utf-8-sig")
    # Only LF ends a line (str.splitlines would also cut at U+2028 and the like); a CR before it
    # belongs to the ending.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _header_problems(name: str, columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    problems: list[str] = []
    for column in wanted:
        if column not in columns:
            there = ", ".join(columns)
            near = did_you_mean(column, columns)
            hint = near if near.startswith(", did") else ""
            problems.append(
                f"{name}, line 1, column {column}: missing{hint}; the columns are: {there}"
            )
        elif columns.count(column) > 1:
            problems.append(
                f"{name}, line 1, column {column}: this name stands twice in the header"
            )
    return problems


def _rows(
    empty: PlainTable,
    columns: Sequence[str],
    lines: Sequence[str],
    first: int,
    problems: list[str],
    may_leave_out: int,
) -> PlainTable:
    picks = [columns.index(name) for name in empty.columns]
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    short: list[str] = []
    for number, line in enumerate(lines[first:], start=first + 1):
        cells = line.split("\t")
        if len(cells) == len(columns):
            rows.append(tuple([cells[i] for i in picks]))
            numbers.append(number)
            continue
        counts = f"{len(cells)} cells for {len(columns)} columns"
        remedy = "a text must not hold a tab or a line break"
        problem = f"{empty.name}, line {number}: {counts}; {remedy}"
        (short if len(cells) < len(columns) else problems).append(problem)
        if len(problems) + len(short) >= MAX_PROBLEMS:
            break
    if len(short) > may_leave_out:
        problems.extend(short)
    positions = tuple(number - first - 1 for number in numbers)
    return PlainTable(empty.name, empty.columns, tuple(rows), tuple(numbers), positions)
