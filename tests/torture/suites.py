"""Rows that are whole test files: each test in them is a case. They run in a process of their own, slow ones too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from tests.hostile.fuzz import fuzz_rows
from tests.hostile.study_files import ROWS as STUDY_ROWS
from tests.torture.row import Row


def tests_of(files: tuple[str, ...], select: str, folder: Path, count: int) -> Iterator[str]:
    """One text a test, those that were skipped among the failures; count: of a part, the first so many."""
    report = folder / "report.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    subprocess.run(
        [*words, *files, "-k", select, f"--junitxml={report}", f"--basetemp={folder / 'tmp'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases[:count]:
        wrong = [
            child.get("message") or child.tag
            for child in case
            if child.tag in ("failure", "error", "skipped")
        ]
        yield f"{case.get('name')}: {wrong[0][:300]}" if wrong else ""


def _row(name: str, count: int, *files: str, select: str = "") -> Row:
    return Row(name, count, partial(tests_of, files, select))


_MALFORMED, _HOSTILE = "tests/data/test_malformed.py", "tests/hostile"
ROWS = [
    _row(
        "B1 malformed CSV and TSV files", 104, _MALFORMED, select="malformed_csv or malformed_tsv"
    ),
    _row("B1 malformed JSON Lines files", 100, _MALFORMED, select="malformed_jsonl"),
    _row("B1 malformed Parquet files", 39, _MALFORMED, select="malformed_parquet or fake_and_cut"),
    _row("B1 bad data through the command", 17, f"{_HOSTILE}/test_bad_data.py"),
    *STUDY_ROWS,
    *fuzz_rows(),
    _row("B4 misspelled keys, TOML and JSON bombs", 43, f"{_HOSTILE}/test_study_files.py"),
    _row("S1 evil names", 13, f"{_HOSTILE}/test_names.py"),
    _row(
        "S3 S4 S10 S11 pickles, foreign code, secrets, connections",
        23,
        f"{_HOSTILE}/test_closed.py",
    ),
    _row("S6 S7 S8 formulas, markup, forged lines", 63, f"{_HOSTILE}/test_shown.py"),
    _row(
        "loaded models that are damaged or changed",
        37,
        "tests/artifact/test_refused.py",
        select="damage",
    ),
]
