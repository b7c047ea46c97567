"""What is told of a data set."""

from __future__ import annotations

from pathlib import Path

from fleetune.data.notes import notes_on, of_f1
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


def test_the_label_of_f1_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"row {i},{('ok', 'fraud')[i % 2]}\n" for i in range(12))
    )
    task = dataset_from_files(tmp_path / "train.csv", None, None, None).task
    assert of_f1(task.metrics, task.label_names) == [
        "f1 is that of the label ok alone, the second in order"
    ]
    assert of_f1(("accuracy", "f1_macro"), ("a", "b", "c")) == []
