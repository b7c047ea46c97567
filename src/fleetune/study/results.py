"""results.parquet: one row a trial and epoch, rebuilt from the journal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fleetune.durable import write_bytes
from fleetune.study.history import History

NAME = "results.parquet"


def write_results(folder: Path, history: History) -> None:
    """Rebuild the table. Tasks differ in their metrics: each has its column, which is empty where a task lacks it."""
    metrics = dict.fromkeys(k for e in history.all("epoch") for k in e["selection"])
    by_test = {e["task"] for e in history.all("test-selects")}
    rows = [
        {
            "id": ident,
            "task": trial["task"],
            "method": trial["method"],
            "seed": trial["seed"],
            "phase": trial["phase"],
            "hyperparameters": json.dumps(trial["hyperparameters"], sort_keys=True),
            "learning_rate": trial["training"]["learning_rate"],
            "epoch": epoch["epoch"],
            "step": epoch["step"],
            "loss": epoch["loss"],
            **{f"selection_{k}": epoch["selection"].get(k) for k in metrics},
            "seconds": epoch["seconds"],
            "optimistic": trial["task"] in by_test,
        }
        for ident, trial in history.begun.items()
        for epoch in history.epochs(ident)
    ]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "task", "method")),
            ("seed", pa.int64()),
            *((name, pa.string()) for name in ("phase", "hyperparameters")),
            ("learning_rate", pa.float64()),
            *((name, pa.int64()) for name in ("epoch", "step")),
            *(
                (name, pa.float64())
                for name in ("loss", *(f"selection_{k}" for k in metrics), "seconds")
            ),
            ("optimistic", pa.bool_()),
        ]
    )
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out)
    write_bytes(folder / NAME, out.getvalue())
