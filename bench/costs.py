"""What a study of 1,000 trials costs, by the rates that were measured on two cores, one H200 and one H100.

From targets.json, h200-rte.json, h200.json and h100.json in bench/results: examples a second of a cohort and of the loop. What
was not measured has a dash.

    python -m bench.costs
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

from bench.store import read
from bench.tables import RESULTS, plain

TRIALS = 1000
# Epochs of the original, and a usual number for the larger task; rows that holdout leaves of train.
WORK = {"rte": (25, 2_241), "sst2": (3, 66_003)}
# Results, what they call the machine and the backbone, and the size of the cohort on each task.
MACHINES = (
    ("targets", "two cores", "minilm", {"rte": 8, "sst2": 32}),
    ("h200-rte", "one H200", "roberta-base", {"rte": 64}),
    ("h200", "one H200", "roberta-base", {"sst2": 64}),
    ("h100", "one H100", "roberta-base", {"rte": 32, "sst2": 32}),
)
HEAD = ["machine", "backbone", "task", "side", "examples/s", "1,000 trials"]


def rows() -> list[list[str]]:
    """The table."""
    found: list[list[str]] = []
    for name, machine, backbone, sizes in MACHINES:
        told = read(RESULTS / f"{name}.json")
        assert told is not None, f"{name}.json: run the benchmark first"
        for task, size in sizes.items():
            sides = {f"cohort of {size}": f"/fleetune/K{size}/", "loop": "/trainer/"}
            for side, part in sides.items():
                rate = _rate(told, f"{backbone}/{task}/mixed{part}")
                shown = ["-", "-"] if rate is None else [f"{rate:,.0f}", _time(task, rate)]
                found.append([machine, backbone, task, side, *shown])
    return found


def _rate(told: dict[str, Any], part: str) -> float | None:
    """Examples a second, the median over the repeats; None where it was not measured."""
    cells = [c for key, c in told["cells"].items() if part in key and "failed" not in c]
    return median(c["examples"] / c["seconds"] for c in cells) if cells else None


def _time(task: str, rate: float) -> str:
    """How long so many examples take."""
    epochs, n = WORK[task]
    hours = TRIALS * epochs * n / rate / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.0f} days"


def main() -> None:
    """Print."""
    sys.stdout.write(plain((HEAD, rows())) + "\n")


if __name__ == "__main__":
    main()
