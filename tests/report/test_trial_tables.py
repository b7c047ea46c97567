"""One trial in the terminal, and CSV that nothing runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest

from fleetune.errors import SettingsError
from fleetune.report import trial_tables
from tests.report.conftest import Written
from tests.runs import run_cli

Write = Callable[[str], Written]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_trial_shows_its_settings_epochs_and_scores(write: Write) -> None:
    page = write("sets")
    (trial,) = [t for t in page.facts["trials"] if t["id"] == "lora-r8-s1"]
    text = trial_tables.one(trial)
    for told in ("lora_alpha", "learning_rate", "73,728 encoder, 1,538 head", "4 (kept)"):
        assert told in text
    for name, scores in trial["tests"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{100 * scores['accuracy']:.2f}" in line and "optimistic" in line


def test_the_nearest_name_is_offered(write: Write) -> None:
    with pytest.raises(
        SettingsError, match=r'no trial "lora-r8-s9" in this run, did you mean "lora-r8-s4[23]"'
    ):
        trial_tables.trial_of(write("train").facts, "lora-r8-s9")


def test_csv_has_a_row_a_trial_and_numbers_as_they_are(write: Write) -> None:
    facts = write("broken").facts
    rows = read(trial_tables.trials_csv(facts))
    assert [row["id"] for row in rows] == [t["id"] for t in facts["trials"]]
    for row, t in zip(rows, facts["trials"], strict=True):
        assert row["status"] == t["status"] and int(row["seed"]) == t["seed"]
        assert row["reason"] == (t["reason"] or "")
        wanted = "" if not t["tests"] else repr(t["tests"]["test"]["accuracy"])
        assert row["test_accuracy"] == wanted
        assert float(row["learning_rate"]) == t["training"]["learning_rate"]


def test_csv_of_a_trial_has_a_row_an_epoch(write: Write) -> None:
    trial = write("train").facts["trials"][0]
    rows = read(trial_tables.epochs_csv(trial))
    assert [float(row["loss"]) for row in rows] == [e["loss"] for e in trial["epochs"]]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1-1", "-", "-1,5", "-1e", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")', "=cmd|' /C calc'!A0"]
)  # fmt: skip
def test_text_is_never_a_formula(write: Write, text: str) -> None:
    trial: dict[str, Any] = {**write("train").facts["trials"][0], "method": text, "task": text}
    trial |= {"reason": text, "hyperparameters": {text: text}}
    out = trial_tables.trials_csv({"trials": [trial]})
    for row in csv.reader(io.StringIO(out)):
        for cell in row:
            assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
            assert not cell.startswith("-") or float(cell) < 0
    (row,) = read(out)
    assert row["method"].startswith("'") and "\t" not in row["method"] and "\r" not in row["method"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(-0.25, "-0.25"), (True, "true"), (None, ""), (3, "3"), (["a", "b"], '["a", "b"]'), ("plain", "plain"),
     ("-0.25", "-0.25"), ("-1", "-1"), ("+1", "+1"), ("-1e-05", "-1e-05"), ("-.5", "-.5"), ("-1\n", "'-1\\n")],
)  # fmt: skip
def test_cells(value: Any, wanted: str) -> None:
    assert trial_tables.cell(value) == wanted


def test_show_prints_a_trial_and_the_next_command(write: Write) -> None:
    page = write("train")
    done = run_cli("show", page.folder, "bitfit-s42")
    assert done.code == 0 and "bitfit-s42" in done.out
    assert f'next: fleetune predict {page.folder}/trials/bitfit-s42 --text "..."' in done.err
    everything = run_cli("show", page.folder)
    assert f"fleetune report {page.folder}" in everything.err
    assert run_cli("show", page.folder, "bitfit-s42", "--csv").out.startswith("id,epoch,step,loss")
    assert run_cli("show", page.folder, "bitfit-s1").code == 2
    assert run_cli("show", page.folder, "--csv", "--json").code == 2
