"""One row of the table: a name, how many cases, and a plain function that tries them.

    def cut_at_every_byte(folder: Path, count: int) -> Iterator[str]:
        for case in range(count):
            yield "" if ... else f"case {case}: what went wrong"

The function gets an empty folder of its own and the number of cases; it yields one text a case: empty where the case passed,
else what went wrong. A row that yields fewer texts than cases has failed in the missing ones, and an exception fails the rest.
A module of rows has a list `ROWS`; its name stands in `MODULES` (below), and nothing else is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES: tuple[str, ...] = (
    "tests.torture.kills",
    "tests.torture.signals",
    "tests.torture.damage",
    "tests.torture.resumes",
    "tests.torture.suites",
)
"""Where rows are; in the order of the table."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of torture."""

    name: str
    """As in the table; unique."""
    count: int
    """Cases of the long form."""
    run: Callable[[Path, int], Iterator[str]]
    short: int = 0
    """Cases in the default tests (test_short.py); 0 where other tests do as much, or the long tests try some."""


def rows() -> list[Row]:
    """All rows, in the order of the table."""
    return [row for name in MODULES for row in importlib.import_module(name).ROWS]
