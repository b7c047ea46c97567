"""The reader of the embedded data sets, on small folders of the same layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetune.data.demo import DEMOS, load_demo, read_demo
from fleetune.errors import DataError, EnvironmentProblem, SettingsError

SENTIMENT = "id\tlabel\tdomain\tphenomenon\ttext\n"
ENTAILMENT = "id\tlabel\tdomain\tphenomenon\tpremise\thypothesis\n"


def folder(path: Path, header: str, train: str, test: str) -> Path:
    (path / "train.tsv").write_text(header + train, encoding="utf-8")
    (path / "test.tsv").write_text(header + test, encoding="utf-8")
    return path


def test_sentiment(tmp_path: Path) -> None:
    train = 's1\tpositive\tfilm\tplain\tA "fine film\ns2\tnegative\tfood\tnegation\tNot good\n'
    made = folder(tmp_path, SENTIMENT, train, "t1\tpositive\tfilm\tplain\tLovely\n")
    dataset = read_demo(made, DEMOS["demo-sentiment"])
    assert dataset.train.ids == ("s1", "s2")
    assert dataset.train.first == ('A "fine film', "Not good")
    assert dataset.train.second is None
    assert dataset.train.labels is not None and dataset.train.labels.tolist() == [1, 0]
    assert list(dataset.tests) == ["test"]
    assert dataset.source == "embedded demo-sentiment"


def test_entailment(tmp_path: Path) -> None:
    row = "e1\tnot_entailment\tnews\tnegation\tIt rains.\tIt is dry.\n"
    dataset = read_demo(folder(tmp_path, ENTAILMENT, row, row), DEMOS["demo-entailment"])
    assert (dataset.train.first, dataset.train.second) == (("It rains.",), ("It is dry.",))
    assert dataset.train.labels is not None and dataset.train.labels.tolist() == [1]


def test_problems(tmp_path: Path) -> None:
    train = "a\tgood\tf\tp\tx\na\tpositive\tf\tp\t \nb\tpositive\tf\n"
    made = folder(tmp_path, SENTIMENT, train, "")
    with pytest.raises(DataError) as caught:
        read_demo(made, DEMOS["demo-sentiment"])
    message = str(caught.value)
    assert 'train.tsv, line 2, column label: "good" is not one of negative, positive' in message
    assert 'train.tsv, line 3, column id: "a" stands twice' in message
    assert "train.tsv, line 3, column text: empty text" in message
    assert "train.tsv, line 4: 3 cells for 5 columns" in message
    assert "test.tsv: there are no rows" in message


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"lacks train\.tsv"):
        read_demo(tmp_path, DEMOS["demo-sentiment"])
    with pytest.raises(SettingsError, match='did you mean "demo-sentiment"'):
        load_demo("demo-sentimnt")
