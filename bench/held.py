"""Memory that the C library keeps: a long cohort that gives it back (fleetune.cohort.room.Returned) beside one that does not.

Two processes one after the other train the same trials for the same rounds; each tells its own high-water mark and its time.
`before` is what libraries and backbone take.

    python -m bench.held                                    # a table on stdout; nothing is kept
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench.processes import measure
from bench.tables import plain

SIDES = {"fleetune-keeps": "kept", "fleetune": "given back"}


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--task", default="demo-sentiment")
    add("--data-dir", default="../shared/data/glue")
    add("--mix", default="mixed")
    add("--trials", type=int, default=15)
    add("--rounds", type=int, default=40, help="micro-batches of each trial")
    add("--batch", type=int, default=16)
    add("--threads", type=int, default=0)
    return found


def job(given: argparse.Namespace, side: str) -> dict[str, Any]:
    """All rounds of one side."""
    spec = {
        "task": given.task, "data_dir": given.data_dir, "mix": given.mix, "trials": given.trials,
        "rows": given.rounds * given.batch, "batch": given.batch, "accumulation": 2,
    }  # fmt: skip
    return {"side": side, "spec": spec, "device": "cpu", "threads": given.threads}


def main(args: list[str] | None = None) -> None:
    """Measure both and print."""
    given = parser().parse_args(args)
    found = {side: measure(job(given, side)) for side in SIDES}
    kept = found["fleetune-keeps"]
    rows = [
        [
            name,
            f"{one['before_mib']:.0f}",
            f"{one['peak_mib']:.0f}",
            f"{one['seconds']:.0f}",
            f"{one['peak_mib'] / kept['peak_mib']:.2f}",
            f"{one['seconds'] / kept['seconds']:.2f}",
        ]
        for side, name in SIDES.items()
        if (one := found[side])
    ]
    head = ["freed memory", "before, MiB", "peak, MiB", "seconds", "of the peak", "of the time"]
    told = f"{given.trials} trials, {given.rounds} rounds of {given.batch} rows, {kept['dtype']}\n"
    sys.stdout.write(told + plain((head, rows)) + "\n")


if __name__ == "__main__":
    main()
