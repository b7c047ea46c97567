"""What a study of 1,000 trials costs: on two cores by the rates that were measured, on one H100 by assumption.

Measured: bench/results/two-cores.json (examples a second of a cohort and of the loop). Assumed, since no GPU was there: a
matrix rate of 600 TFLOP/s (the card's data sheet says 989 for dense bfloat16), of which a cohort reaches the target of
DESIGN.md, 40 %, and the loop a fiftieth of the cohort. Operations: 4 * tokens * parameters of the frozen matrices, as bench.rate.

    python -m bench.costs
"""

from __future__ import annotations

import sys

from bench.rate import frozen_operations
from bench.store import read
from bench.tables import RESULTS, plain

TRIALS = 1000
# Epochs of the original, and a usual number for the larger task; rows that holdout leaves of train.
WORK = {"rte": (25, 2_241), "sst2": (3, 66_003)}
COHORT = {"rte": 8, "sst2": 32}
ROBERTA_BASE = [(768, 768)] * 48 + [(768, 3072), (3072, 768)] * 12
H100_RATE, H100_SHARE, H100_RATIO = 600e12, 0.40, 50
HEAD = ["machine", "backbone", "task", "side", "examples/s", "1,000 trials", "known from"]


def rows() -> list[list[str]]:
    """The table."""
    told = read(RESULTS / "two-cores.json")
    assert told is not None, "run the benchmark first"
    found: list[list[str]] = []
    for task in WORK:
        (row,) = [
            r
            for r in told["summary"]
            if r["group"] == f"minilm/{task}/mixed" and r["trials"] == COHORT[task]
        ]
        own = row["examples_per_second"]["median"]
        loop = row["peers"]["trainer"]["examples_per_second"]["median"]
        for side, rate in ((f"cohort of {COHORT[task]}", own), ("loop", loop)):
            found.append(["two cores", "minilm", task, side, f"{rate:.0f}", _time(task, rate), "measured"])  # fmt: skip
    for task in WORK:
        cell = next(c for k, c in told["cells"].items() if f"/{task}/" in k and "examples" in c)
        each = frozen_operations(1, ROBERTA_BASE) * cell["tokens"] / cell["examples"]
        own = H100_RATE * H100_SHARE / each
        for side, rate in (("cohort of 32", own), ("loop", own / H100_RATIO)):
            found.append(["one H100", "roberta-base", task, side, f"{rate:,.0f}", _time(task, rate), "assumed"])  # fmt: skip
    return found


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
