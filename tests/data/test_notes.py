"""What is told of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, pearsonr

from fleetune.data.base import Split
from fleetune.data.load import load_task
from fleetune.data.notes import few_rows, notes_on, of_f1
from fleetune.data.overlap import overlaps_with
from fleetune.data.sources import dataset_from_files


def test_what_spoils_scores_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"row {i},{('ok', 'fraud', 'Fraud')[i % 3]}\n" for i in range(12))
    )
    (tmp_path / "test.csv").write_text("text,label\nrow 0,ok\nrow 1,ok\nnew,ok\n")
    told = notes_on(dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None))
    assert len(told) == 3
    assert "2 of the 3 rows of test stand in train too, 1 of them under another label" in told[0]
    assert '"Fraud", "fraud" differ in case or spaces alone' in told[1]
    assert "no test row has the label Fraud, fraud" in told[2]


def test_texts_under_several_labels_are_told(tmp_path: Path) -> None:
    """Each text once, however many rows it has; the same text under one label is no harm."""
    rows = [
        ("same", "a"),
        ("same", "b"),
        ("same", "b"),
        ("twice", "a"),
        ("twice", "a"),
        ("é", "b"),
        ("é", "a"),
    ]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows * 3))
    (tmp_path / "test.csv").write_text("text,label\nnew,a\nother,b\n")
    (told,) = notes_on(
        dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None)
    )
    assert told.startswith("2 texts of train stand there under more than one label")
    assert told.endswith('the first is "same"')


def test_what_was_read_in_another_encoding_is_told(tmp_path: Path) -> None:
    """The euro sign of Windows-1252 is a control character of ISO-8859-1."""
    sold = "".join(f"{i} €,{'ab'[i % 2]}\n" for i in range(12)).encode("cp1252").decode("latin-1")
    (tmp_path / "train.csv").write_text(f"text,label\n{sold}", encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,label\n1 €,a\n2 €,b\n", encoding="utf-8")
    (told,) = notes_on(
        dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None)
    )
    assert "stand in 12 rows of train" in told and "iconv -f WINDOWS-1252" in told


def test_a_label_that_programs_write_for_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"row {i},{('ok', 'NaN', 'none')[i % 3]}\n" for i in range(12))
    )
    (tmp_path / "test.csv").write_text("text,label\nx,ok\ny,NaN\nz,none\n")
    (told,) = notes_on(
        dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None)
    )
    assert told.startswith("the label NaN is taken for a class of its own")


def test_labels_with_few_test_rows_are_told(tmp_path: Path) -> None:
    labels = ["ok"] * 30 + ["fraud"] * 4 + ["rare"] * 5
    for name in ("train", "test"):
        rows = "".join(f"{name} {i},{label}\n" for i, label in enumerate(labels))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    told = few_rows(dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None))
    assert told[1:] == ["test has few rows of fraud (4): what it says of them is chance"]


def test_a_pair_is_shared_where_both_of_its_texts_are() -> None:
    def pairs(*second: str) -> Split:
        return Split(("1", "2"), ("premise", "other"), second, np.array([0, 1]))

    assert overlaps_with(pairs("a", "b"), {"test": pairs("c", "d")}) == {}
    assert overlaps_with(pairs("a", "b"), {"test": pairs("a", "d")})["test"].rows == 1


def test_the_label_of_f1_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"row {i},{('ok', 'fraud')[i % 2]}\n" for i in range(12))
    )
    task = dataset_from_files(tmp_path / "train.csv", None, None, None).task
    assert of_f1(task.metrics, task.label_names) == [
        "f1 is that of the label ok alone, the second in order"
    ]
    assert of_f1(("accuracy", "f1_macro"), ("a", "b", "c")) == []


@pytest.mark.parametrize("n", [2, 30, 99])
def test_few_test_rows_are_told_with_what_they_can_say(tmp_path: Path, n: int) -> None:
    rows = "".join(f"row {i},{('ok', 'fraud')[i % 2]}\n" for i in range(2 * n))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "test.csv").write_text(
        "text,label\n" + "".join(f"new {i},{('ok', 'fraud')[i % 2]}\n" for i in range(n))
    )
    dataset = dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None)
    widest = max(np.diff(binomtest(k, n).proportion_ci(method="wilson"))[0] for k in range(n + 1))
    (told,) = few_rows(dataset)
    assert told.startswith(f"{n} test rows")
    said = int(told.partition("may reach ")[2].partition(" points")[0])
    # At an odd number no share is one half, so the widest interval is a little narrower than what is said.
    assert said - 0.5 - 100 / n**2 <= 100 * widest / 2 <= said + 0.5


def test_a_hundred_test_rows_are_not_few(tmp_path: Path) -> None:
    rows = "".join(f"row {i},{('ok', 'fraud')[i % 2]}\n" for i in range(100))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "test.csv").write_text(f"text,label\n{rows.replace('row', 'new')}")
    assert (
        few_rows(dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None))
        == []
    )


def test_targets_that_are_all_the_same_are_told(tmp_path: Path) -> None:
    """Their correlations do not exist. Few rows of a regression are told too, with Fisher's interval at its widest."""
    (tmp_path / "STS-B").mkdir()
    header = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    )
    for name, score in (("train.tsv", "{}.5"), ("dev.tsv", "3.0")):
        rows = [
            f"{i}\tg\tf\ty\to\ts\ts\tone {name} {i}\ttwo {i}\t{score.format(i % 5)}\n"
            for i in range(30)
        ]
        (tmp_path / "STS-B" / name).write_text(header + "".join(rows))
    dataset = load_task("stsb", tmp_path)
    (name,) = dataset.tests
    (told,) = notes_on(dataset)
    assert (
        told
        == f"every target of {name} is 3, so correlations with them do not exist, and stand as 0"
    )
    (few,) = few_rows(dataset)
    exact = pearsonr(*np.array([[1.0, 1, -1, -1] * 7 + [0, 0], [1.0, -1, 1, -1] * 7 + [0, 0]]))
    assert (
        few.startswith(f"30 {name} rows")
        and f"reach {exact.confidence_interval()[1]:.2f} to" in few
    )
