"""What the original system's own counts allow one to conclude: 205 and 201 of 277 on RTE, 778 and 805 of 872 on SST-2.

It ran each method once and printed an accuracy, so which rows each run got right is not known. What two runs say of these two
trained models depends on how their errors overlap: between errors that overlap as far as they can (fewest rows on which they
differ, the smallest p) and errors that overlap as little as they can. McNemar's exact p is printed for both ends. What two runs
say of the methods depends on how much a seed changes, which one run cannot show: printed is the standard deviation between
seeds at which a gap this wide is seen in one of twenty pairs of runs of one method, rows left aside.

    python -m bench.counts
"""

from __future__ import annotations

import math
import sys

import numpy as np

from bench.tables import plain
from fleetune.records import as_json
from fleetune.report.tables import span
from fleetune.stats.intervals import accuracy_estimate
from fleetune.stats.models import compare_models

RUNS = {"RTE": (205, 201, 277), "SST-2": (778, 805, 872)}
HEAD = ["task", "BitFit [95 %]", "LoRA [95 %]", "p, errors overlap", "p, errors apart", "seed sd that explains it"]  # fmt: skip


def answers(right: int, n: int, shift: int = 0) -> np.ndarray:
    """So many right of n, boolean [n]; the wrong ones begin at a place."""
    found = np.ones(n, dtype=bool)
    found[(shift + np.arange(n - right)) % n] = False
    return found


def row(task: str) -> list[str]:
    """One line of the table."""
    a, b, n = RUNS[task]
    together = compare_models(answers(a, n), answers(b, n)).p_value
    apart = compare_models(answers(a, n), answers(b, n, shift=n - a)).p_value
    estimates = [accuracy_estimate(answers(right, n)[None]) for right in (a, b)]
    shown = [f"{100 * e.value:.2f} {span(as_json(e))}" for e in estimates]
    deviation = 100 * abs(b - a) / n / (1.959964 * math.sqrt(2))
    return [task, *shown, f"{together:.2g}", f"{apart:.2g}", f"{deviation:.2f} points"]


def main() -> None:
    """Print."""
    sys.stdout.write(plain((HEAD, [row(task) for task in RUNS])) + "\n")


if __name__ == "__main__":
    main()
