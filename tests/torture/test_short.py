"""A few cases of every row of the table; `make torture` runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.row import Row, rows

ROWS = rows()


@pytest.mark.parametrize("row", [r for r in ROWS if r.short], ids=lambda r: r.name.split()[0])
def test_a_few_cases_pass(row: Row, tmp_path: Path) -> None:
    told = list(row.run(tmp_path, row.short))
    assert told == [""] * row.short


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("C1", 1),
        ("C2b", 4),
        ("C2c", 2),
        ("C3", 2),
        ("C5", 3),
        ("C6", 1),
        ("C7b", 1),
        ("C8", 2),
        ("C11", 1),
        ("N1", 1),
    ],
)
def test_a_few_cases_of_longer_rows_pass(name: str, count: int, tmp_path: Path) -> None:
    """Their commands take seconds each; of some the default tests have a plainer form (test_run.py, test_signals.py)."""
    (row,) = (row for row in ROWS if row.name.startswith(f"{name} "))
    assert list(row.run(tmp_path, count)) == [""] * count


def test_names_are_unique_and_counts_positive() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert all(0 <= row.short <= row.count and row.count for row in ROWS)
