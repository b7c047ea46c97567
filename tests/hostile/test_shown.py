"""Texts of a user come out as they are: no markup, no forged line, no control of a terminal, nothing that a spreadsheet runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from fleetune.cli.options import visible_lines
from fleetune.data.sources import read_file
from fleetune.errors import DataError, RefusedError, SettingsError, printable
from fleetune.report.trial_tables import cell
from fleetune.study import journal
from tests.hostile.names import FORGED, FORMULAS, MARKUP
from tests.runs import Made, run_cli

EVERY = (*FORMULAS, *MARKUP, *FORGED)
LEADERS = ("=", "+", "-", "@", "\t", "\r")


@pytest.fixture(scope="module")
def labelled(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classes are called like formulas, markup and forged lines; every row's text is its label too."""
    folder = tmp_path_factory.mktemp("shown")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(
            [f"w{i} w{k} {label}", label] for i, label in enumerate(EVERY) for k in range(3)
        )
    found = run_cli(
        *("train", "--data", folder / "rows.csv", "--backbone", made.backbone, "--method", "head"),
        *("--max-steps", 2, "--dtype", "float32", "--output-dir", folder / "run"),
    )
    assert found.code == 0, found.err
    check_stream(found.out + found.err)
    return folder


def check_stream(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)
    forged = [
        line for line in text.split("\n") if line.startswith(("fleetune: all", "fleetune: saved"))
    ]
    assert forged == []


def test_labels_come_back_from_our_own_reader_unchanged(labelled: Path) -> None:
    """Rows are read, saved with the model and given back by `--json` and JSONL to the letter."""
    rows = read_file(labelled / "rows.csv", ["text"], "label")
    assert set(rows.labels or ()) == set(EVERY)
    (trial,) = (labelled / "run/trials").iterdir()
    assert set(json.loads((trial / "fleetune.json").read_bytes())["label_names"]) == set(EVERY)
    found = run_cli("predict", labelled / "run", "--text", "w1", "--json")
    check_stream(found.out)
    assert set(json.loads(found.out)[0]["probabilities"]) == set(EVERY)
    out = labelled / "out.jsonl"
    assert (
        run_cli("predict", labelled / "run", "--input", labelled / "rows.csv", "--output", out).code
        == 0
    )
    lines = [json.loads(line) for line in out.read_text("utf-8").split("\n") if line]
    assert len(lines) == len(rows) and set(lines[0]["probabilities"]) == set(EVERY)


def test_written_csv_holds_no_formula(labelled: Path) -> None:
    """A label that a spreadsheet would run has an apostrophe in front of it; all others are themselves (see docs/files.md)."""
    out = labelled / "out.csv"
    run_cli("predict", labelled / "run", "--input", labelled / "rows.csv", "--output", out)
    rows = list(csv.DictReader(io.StringIO(out.read_text("utf-8"))))
    assert list(rows[0]) == ["label", "probability"] and len(rows) == 3 * len(EVERY)
    for row in rows:
        assert not row["label"].startswith(LEADERS)
        assert row["label"].removeprefix("'") in {printable(text) for text in EVERY}
        assert 0 <= float(row["probability"]) <= 1
    for words in ((), ("head-s42",)):
        shown = run_cli("show", labelled / "run", *words, "--csv")
        check_stream(shown.out)
        cells = [c for row in csv.reader(io.StringIO(shown.out)) for c in row]
        assert cells and not any(c.startswith(LEADERS) and not _is_number(c) for c in cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_is_shown_and_not_run(text: str) -> None:
    written = io.StringIO()
    csv.writer(written).writerow([cell(text), cell(-1.5), cell("x")])
    (row,) = csv.reader(io.StringIO(written.getvalue()))
    assert row == [f"'{printable(text)}", "-1.5", "x"]


def test_terminal_tables_and_messages_show_labels_as_they_are(labelled: Path) -> None:
    table = run_cli("predict", labelled / "run", *(w for t in EVERY for w in ("--text", f"w1 {t}")))
    check_stream(table.out)
    for text in EVERY:
        assert printable(f"w1 {text}") in table.out
    (labelled / "other.csv").write_text("text,label\nw1,nothing\n")
    wrong = run_cli("evaluate", labelled / "run", "--data", labelled / "other.csv")
    assert wrong.code == 4
    check_stream(wrong.err)
    for words in (("show", labelled / "run"), ("show", labelled / "run", "head-s42")):
        found = run_cli(*words)
        assert found.code == 0
        check_stream(found.out + found.err)


@pytest.mark.parametrize("text", MARKUP)
def test_rich_prints_markup_as_text(text: str) -> None:
    """The way in which the live view puts names on the screen (live/screen.py)."""
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    console.print(Text(printable(text)))
    assert console.file.getvalue().rstrip("\n") == text  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", FORGED)
@pytest.mark.parametrize("kind", [DataError, SettingsError])
def test_an_error_that_quotes_a_text_stays_in_its_lines(text: str, kind: type) -> None:
    shown = visible_lines(f"fleetune: {kind(text, [text, 'second'])}")
    first, *rest = shown.split("\n")
    assert (
        first.startswith("fleetune: ")
        and len(rest) == 2
        and all(r.startswith("  - ") for r in rest)
    )
    assert all(c.isprintable() for line in (first, *rest) for c in line)


@pytest.mark.parametrize("text", FORGED)
def test_a_message_of_one_line_stays_one_line(text: str) -> None:
    shown = visible_lines(f"fleetune: {RefusedError(f'{text}: exists; give another')}")
    assert "\n" not in shown and all(c.isprintable() for c in shown)


def test_a_journal_has_one_event_a_line_whatever_is_in_it(tmp_path: Path) -> None:
    book = journal.Journal(tmp_path / "journal.jsonl")
    for text in FORGED:
        book.append("note", text=text)
    book.close()
    content = (tmp_path / "journal.jsonl").read_bytes()
    assert content.count(b"\n") == len(FORGED) == len(content.splitlines())
    assert all(32 <= byte < 127 or byte == 10 for byte in content)
    assert [e["text"] for e in journal.read(tmp_path / "journal.jsonl")] == list(FORGED)


def test_counts() -> None:
    assert len(FORMULAS) >= 8 and len(MARKUP) >= 20 and len(FORGED) >= 10
