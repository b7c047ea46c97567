"""results.parquet, from a journal made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fleetune.study.history import History
from fleetune.study.results import NAME, write_results


def trial(task: str, *selection: dict[str, float]) -> list[dict[str, Any]]:
    ident = f"{task}-head"
    start = {
        "kind": "trial-started", "id": ident, "task": task, "method": "head", "seed": 0, "phase": "confirm",
        "hyperparameters": {}, "training": {"learning_rate": 1e-3},
    }  # fmt: skip
    return [start] + [
        {"kind": "epoch", "id": ident, "epoch": i, "step": i, "loss": 0.5, "selection": s, "seconds": 1.0}
        for i, s in enumerate(selection, start=1)
    ]  # fmt: skip


def test_every_tasks_metrics_have_a_column(tmp_path: Path) -> None:
    """The first task lacks the second's metric, and a training on all of train has no scores at all."""
    rte = trial("rte", {"accuracy": 0.5, "loss": 0.7}, {"accuracy": 0.6, "loss": 0.6})
    cola = trial("cola", {"matthews_correlation": 0.3, "accuracy": 0.8, "loss": 0.4})
    write_results(tmp_path, History([*rte, *cola, *trial("refit", {})]))
    table = pq.read_table(tmp_path / NAME)
    assert [n for n in table.column_names if n.startswith("selection_")] == [
        "selection_accuracy", "selection_loss", "selection_matthews_correlation",
    ]  # fmt: skip
    assert table.column_names[-2:] == ["seconds", "optimistic"]
    found = table.select(["task", "selection_accuracy", "selection_matthews_correlation"])
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("rte", 0.5, None), ("rte", 0.6, None), ("cola", 0.8, 0.3), ("refit", None, None),
    ]  # fmt: skip


def test_the_first_trial_may_have_no_scores(tmp_path: Path) -> None:
    write_results(tmp_path, History([*trial("refit", {}), *trial("rte", {"accuracy": 0.5})]))
    assert pq.read_table(tmp_path / NAME)["selection_accuracy"].to_pylist() == [None, 0.5]


def test_scores_on_test_rows_are_stamped(tmp_path: Path) -> None:
    """A table goes further than the run that it comes from."""
    told = {"kind": "test-selects", "task": "rte", "sets": ["validation"]}
    events = [told, *trial("rte", {"accuracy": 0.5}), *trial("cola", {"accuracy": 0.5})]
    write_results(tmp_path, History(events))
    found = pq.read_table(tmp_path / NAME).select(["task", "optimistic"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [("rte", True), ("cola", False)]


def test_a_run_without_an_epoch_has_its_table_too(tmp_path: Path) -> None:
    write_results(tmp_path, History(trial("rte")))
    table = pq.read_table(tmp_path / NAME)
    assert len(table) == 0 and table.column_names[0] == "id"
