"""Own labelled files (CSV, TSV, JSON Lines, Parquet), read strictly for classification.

Strict: nothing is guessed, converted or dropped. `None`, `NA` and `001` are texts like others. What
is wrong with a file is listed with line and column in one DataError. Class numbers follow the
sorted labels, integers by value. Not covered: regression on own files; files without a header;
compressed files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fleetune.data.base import Dataset, Split, Task
from fleetune.data.columns import MAX_CLASSES, guess, only_text
from fleetune.data.delimited import CSV, TSV
from fleetune.data.formats import Format, Header, check_wanted
from fleetune.data.jsonl import JSONL
from fleetune.data.parquet import PARQUET
from fleetune.data.textfile import MAX_PROBLEMS, check_exists
from fleetune.errors import DataError, SettingsError

FORMATS: dict[str, Format] = {
    ".csv": CSV,
    ".tsv": TSV,
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".parquet": PARQUET,
}

# Up to 18 digits: more do not fit into 64 bits. "007" is a name, not a number.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+|[0-9]*\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
_ANOTHER_TEXT = "name another with --text-column"
_ANOTHER_LABEL = "name another with --label-column"
_MANY = 20
"""With more labels than this they may be no classes. Stars in halves, from 0.5 to 5.0, are ten."""


@dataclass(frozen=True, slots=True, eq=False)
class RawTable:
    """The wanted columns of a file, every cell that is used a string."""

    path: Path
    text_columns: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    """[columns][n]: one tuple of n texts for each text column."""
    label_column: str | None
    labels: tuple[str, ...] | None
    groups: tuple[str, ...] | None
    kept: dict[str, tuple[str | int | bool, ...]]
    """Columns that only go along, by name, their cells as the file has them; they may be empty."""
    lines: np.ndarray
    """int64 [n]: the line where each row starts, from 1 (Parquet: the row's number)."""
    unit: str
    """What `lines` counts, for messages: "line" or "row"."""

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int, column: str | None) -> str:
        return f"{self.unit} {self.lines[row]}, column {column}"


def guess_columns(path: Path) -> tuple[tuple[str, ...], str]:
    """The text columns and the label column by name, else by content; DataError when unclear."""
    form, header = _opened(path)
    return guess(path, form, header, None, None)


def guess_label(path: Path, texts: Sequence[str]) -> str:
    """The label column of a file whose text columns are known; DataError when unclear."""
    form, header = _opened(path)
    check_wanted(path, header, texts, dict.fromkeys(texts, _ANOTHER_TEXT))
    return guess(path, form, header, texts, None)[1]


def read_file(
    path: Path,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    groups_column: str | None = None,
    kept: Sequence[str] = (),
    *,
    decimals: bool = False,
) -> RawTable:
    """Read a file; without text_columns by their names, without label_column without labels.

    kept: columns that only go along; those of texts may be among them. decimals: whether labels may be decimal numbers.

    Raises DataError with all that is wrong, and SettingsError where the columns asked for make no
    sense.
    """
    form, header = _opened(path)
    texts = tuple(text_columns) if text_columns else only_text(path, header)
    return _read(
        path, form, header, texts, label_column, groups_column, kept=kept, decimals=decimals
    )


def dataset_from_files(
    train: Path,
    test: Path | None,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    name: str | None = None,
    groups_column: str | None = None,
) -> Dataset:
    """A data set of own files; `tests` is empty without a test file.

    text_columns, label_column: None: guessed from train, see columns.py.
    groups_column: rows with the same value there stay together when train is divided (a patient, an
    author).
    """
    form, header = _opened(train)
    texts, label = guess(train, form, header, text_columns, label_column)
    rows = _read(train, form, header, texts, label, groups_column)
    names = _label_names(rows)
    tests: dict[str, Split] = {}
    if test is not None:
        test_form, test_header = _opened(test)
        rows_of_test = _read(
            test, test_form, test_header, texts, label, None, missing=f"{train.name} calls it so"
        )
        tests["test"] = _split(rows_of_test, names)
    task = Task(
        name=name or train.stem,
        columns=texts,
        label_column=label,
        label_names=names,
        metrics=("accuracy", "f1" if len(names) == 2 else "f1_macro"),
    )
    return Dataset(task, _split(rows, names), tests, source=train.name)


def _opened(path: Path) -> tuple[Format, Header]:
    if os.path.isdir(path):  # False for a name that no file can have
        check_exists(path)
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        known = ", ".join(FORMATS)
        problem = f'the extension "{path.suffix}" is not known; the file must end in one of {known}'
        raise DataError(str(path), [problem])
    check_exists(path)
    return form, form.header(path)


def _read(
    path: Path,
    form: Format,
    header: Header,
    texts: tuple[str, ...],
    label: str | None,
    group: str | None,
    *,
    missing: str | None = None,
    kept: Sequence[str] = (),
    decimals: bool = False,
) -> RawTable:
    """missing: what is said of a column that is not there, instead of how to name another."""
    names = (*texts, *(name for name in (label, group) if name is not None))
    _check_request(path, texts, names)
    along = tuple(dict.fromkeys(name for name in kept if name not in names))
    remedies = {name: missing or _ANOTHER_TEXT for name in texts}
    remedies |= {name: missing or _ANOTHER_LABEL for name in (label,) if name is not None}
    remedies |= {name: "name another with --groups-column" for name in (group,) if name is not None}
    remedies |= {name: "name another with --keep-column" for name in along}
    check_wanted(path, header, (*names, *along), remedies)
    scalars = frozenset((*names, *along)) - set(texts)
    lines, columns = _cells(path, form, names, along, scalars, decimals)
    return RawTable(
        path=path,
        text_columns=texts,
        texts=tuple(columns[name] for name in texts),
        label_column=label,
        labels=None if label is None else columns[label],
        groups=None if group is None else columns[group],
        kept={name: tuple(header.value(name, c) for c in columns[name]) for name in kept},
        lines=np.array(lines, dtype=np.int64),
        unit=form.unit,
    )


def _cells(
    path: Path,
    form: Format,
    needed: tuple[str, ...],
    along: tuple[str, ...],
    scalars: frozenset[str],
    decimals: bool,
) -> tuple[list[int], dict[str, tuple[str, ...]]]:
    """Line of each row, and the cells of each column; DataError with all that is wrong.

    along: columns whose cells may be empty.
    """
    problems: list[str] = []
    names = (*needed, *along)
    columns: list[list[str]] = [[] for _ in names]
    lines: list[int] = []
    # A label is one string object however many rows have it.
    known: dict[str, str] = {}
    for line, cells in form.rows(path, names, scalars, problems, decimals):
        lines.append(line)
        for name, cell, column in zip(names, cells, columns, strict=True):
            if (not cell or cell.isspace()) and name not in along:
                what = "a value" if name in scalars else "a text"
                problem = f"empty; every row needs {what} here, or must be left out"
                problems.append(f"{form.unit} {line}, column {name}: {problem}")
            column.append(known.setdefault(cell, cell) if name in scalars else cell)
        if len(problems) >= MAX_PROBLEMS:
            break
    if not problems and not lines:
        problems.append("there are no rows, only the columns; add rows")
    if problems:
        raise DataError(str(path), problems)
    return lines, {name: tuple(column) for name, column in zip(names, columns, strict=True)}


def _check_request(path: Path, texts: tuple[str, ...], names: tuple[str, ...]) -> None:
    if len(texts) > 2:
        raise SettingsError(str(path), [f"`text_columns` must be one or two, but got {len(texts)}"])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problem = "cannot be used twice; text, label and group need a column each"
        raise SettingsError(str(path), [f'column "{name}" {problem}' for name in twice])


def _label_names(rows: RawTable) -> tuple[str, ...]:
    names = set(rows.labels or ())
    problem = _no_classes(names, len(rows))
    if problem is not None:
        raise DataError(str(rows.path), [f"column {rows.label_column}: {problem}"])
    return _in_order(names)


def _no_classes(names: set[str], rows: int) -> str | None:
    """Why these labels cannot be trained as classes."""
    other = "name another column with --label-column"
    if len(names) < 2:
        return f'only one class, "{next(iter(names))}"; at least two are needed'
    if len(names) > MAX_CLASSES:
        problem = f"{len(names)} different labels, but at most {MAX_CLASSES} classes can be trained"
        return f"{problem}; {other}, or join classes"
    if len(names) > _MANY and _are_decimals(names):
        problem = f"{len(names)} different decimal numbers are something to be measured, and own files are for classes"
        return f"{problem}; {other}, or put the numbers into classes"
    if len(names) > _MANY and 2 * len(names) > rows:
        problem = f"{rows} rows of {len(names)} classes, and fewer than two rows a class cannot be learned from"
        return f"{problem}; {other}, join classes, or add rows"
    return None


def _are_decimals(names: set[str]) -> bool:
    return any("." in name for name in names) and all(_NUMBER.fullmatch(name) for name in names)


def _in_order(names: set[str]) -> tuple[str, ...]:
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _split(rows: RawTable, names: tuple[str, ...]) -> Split:
    numbers = {name: number for number, name in enumerate(names)}
    labels = rows.labels or ()
    unknown: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        if label not in numbers:
            unknown.setdefault(label, []).append(i)
    if unknown:
        there = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        problems = [
            f'{rows.place(where[0], rows.label_column)}: "{label}" is no label of train ({there})'
            + (f"; {len(where)} rows have it" if len(where) > 1 else "")
            for label, where in unknown.items()
        ]
        raise DataError(str(rows.path), problems[:MAX_PROBLEMS])
    return Split(
        ids=tuple(str(number) for number in range(1, len(rows) + 1)),
        first=rows.texts[0],
        second=rows.texts[1] if len(rows.texts) == 2 else None,
        labels=np.array([numbers[label] for label in labels], dtype=np.int64),
        groups=rows.groups,
    )
