"""GLUE from the hub, with `datasets.load_dataset` replaced: no network in tests."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fleetune.data.glue import GLUE, load_glue
from fleetune.errors import DataError, EnvironmentProblem

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fake(name: str, label: int | float | None = None, **other: list[str | None]) -> Any:
    """What load_dataset gives for a task, with three rows a split."""
    import datasets

    task = GLUE[name].task
    kind: Any = (
        datasets.Value("float32")
        if task.regression
        else datasets.ClassLabel(names=list(task.label_names))
    )
    features = {column: datasets.Value("string") for column in task.columns}
    features |= {"label": kind, "idx": datasets.Value("int32")}
    rows: dict[str, list[Any]] = {
        column: [f"{column} {i}" for i in range(3)] for column in task.columns
    }
    rows |= {"label": [0, 1, 1 if label is None else label], "idx": [10, 11, 12], **other}
    parts = ("train", "test", *GLUE[name].hub_splits.values())
    made = {
        part: datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        for part in parts
    }
    for part in made.values():
        address = f"hf://datasets/nyu-mll/glue@{COMMIT}/{name}/train.parquet"
        part.info.download_checksums = {address: {"num_bytes": 1, "checksum": None}}
    return datasets.DatasetDict(**made)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What load_dataset shall give or raise, and what it was called with."""
    import datasets

    state: dict[str, Any] = {}

    def load_dataset(*arguments: object, **settings: object) -> Any:
        state["called"] = (arguments, settings)
        if isinstance(state["gives"], Exception):
            raise state["gives"]
        return state["gives"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_a_full_disk_is_no_missing_network(calls: dict[str, Any]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/cache/glue.arrow")
    calls["gives"] = RuntimeError("An error occurred while generating the dataset")
    calls["gives"].__cause__ = full
    with pytest.raises(
        EnvironmentProblem, match=r"/cache/glue.arrow: No space left.*make room"
    ) as told:
        load_glue("rte", None)
    assert "network" not in str(told.value)


@pytest.mark.parametrize("name", GLUE)
def test_every_task(calls: dict[str, Any], name: str) -> None:
    calls["gives"] = fake(name)
    dataset = load_glue(name, None)
    assert calls["called"] == (("nyu-mll/glue", name), {"revision": "main"})
    assert dataset.task == GLUE[name].task
    assert list(dataset.tests) == list(GLUE[name].dev_files)
    assert dataset.train.ids == ("10", "11", "12")
    assert dataset.train.first[0] == f"{dataset.task.columns[0]} 0"
    assert dataset.train.labels is not None
    assert dataset.train.labels.dtype == ("float64" if dataset.task.regression else "int64")
    assert dataset.source == f"hub nyu-mll/glue@{COMMIT}"


def test_an_unknown_commit_is_called_main(calls: dict[str, Any]) -> None:
    calls["gives"] = fake("rte")
    for part in calls["gives"].values():
        part.info.download_checksums = None
    assert load_glue("rte", None).source == "hub nyu-mll/glue@main"


def test_targets_are_those_of_the_tsv_file(calls: dict[str, Any]) -> None:
    calls["gives"] = fake("stsb", label=3.8)
    labels = load_glue("stsb", None).train.labels
    assert labels is not None and labels.tolist() == [0.0, 1.0, 3.8]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub (OfflineModeIsEnabled)\nmore"),
        FileNotFoundError("no such data set"),
        ValueError("Couldn't find cache for nyu-mll/glue for config 'rte'"),
        OSError(),
    ],
)
def test_unreachable(calls: dict[str, Any], error: Exception) -> None:
    calls["gives"] = error
    with pytest.raises(EnvironmentProblem) as caught:
        load_glue("rte", None)
    message = str(caught.value)
    assert caught.value.exit_code == 5
    assert type(error).__name__ in message
    assert (str(error).splitlines() or [""])[0] in message
    assert "--data-dir" in message
    assert caught.value.__cause__ is error


def test_a_password_in_the_endpoint_is_not_shown(calls: dict[str, Any]) -> None:
    calls["gives"] = OSError("401 for url 'http://alice:S3CRET@PW@hub.example/api/datasets'; retry")
    with pytest.raises(EnvironmentProblem) as caught:
        load_glue("rte", None)
    assert "hub.example/api" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("alice", "S3CRET", "PW"))


def test_wrong_contents(calls: dict[str, Any]) -> None:
    calls["gives"] = fake("rte", label=-1)
    with pytest.raises(DataError, match="train, row 2, column label: -1 is no class"):
        load_glue("rte", None)
    calls["gives"] = fake("rte", sentence1=["a", None, "c"])
    with pytest.raises(DataError, match="row 1, column sentence1: null"):
        load_glue("rte", None)
    calls["gives"] = fake("wnli")
    with pytest.raises(DataError, match="column label: the classes are"):
        load_glue("rte", None)
    calls["gives"] = fake("sst2")
    with pytest.raises(DataError, match="column sentence1: missing; the columns are: sentence"):
        load_glue("rte", None)
    del calls["gives"]["validation"]
    with pytest.raises(DataError, match="no split validation, only train, test"):
        load_glue("rte", None)
