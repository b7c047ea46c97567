"""Peak memory of a cohort against its size, beside as many processes of `Trainer`.

Each figure is a process's own high-water mark (VmHWM, MiB). Of k processes it is the sum; since they share the pages of the
libraries, the sum of their PSS at the end of training stands beside it. More processes than `--processes` are not started:
their figures are multiples of the last ones that were, and carry a `~`.

    python -m bench.memory --task rte                       # bench/results/memory.json, a table on stdout
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.processes import SideFailed, measure
from bench.store import Results, fingerprint
from bench.tables import plain

HEAD = [
    "K",
    "one cohort, MiB",
    "each further trial, MiB",
    "K processes, MiB",
    "shared pages once, MiB",
]


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--name", default="memory")
    add("--fresh", action="store_true")
    add("--task", default="rte")
    add("--data-dir", default="../shared/data/glue")
    add("--backbone", default="minilm")
    add("--mix", default="mixed")
    add("--trials", default="1,2,4,8,16,32")
    add("--processes", default="1,2,4", help="how many of Trainer to start, one after another")
    add("--batch", type=int, default=16)
    add("--accumulation", type=int, default=2)
    add("--device", default="cpu")
    add("--threads", type=int, default=0)
    return found


def job(given: argparse.Namespace, side: str, trials: int) -> dict[str, Any]:
    """One step of so many trials, or of so many processes."""
    spec = {
        "task": given.task, "data_dir": given.data_dir, "backbone": given.backbone, "mix": given.mix,
        "trials": trials, "rows": given.batch * given.accumulation, "batch": given.batch,
        "accumulation": given.accumulation,
    }  # fmt: skip
    return {
        "side": side, "spec": spec, "device": given.device, "threads": given.threads,
        "loop_trials": 1, "processes": trials,
    }  # fmt: skip


def rows(cells: dict[str, dict[str, Any]], sizes: Sequence[int]) -> list[list[str]]:
    """The table; what was not measured stands as `-`, what was multiplied carries a `~`."""
    own = {k: c["peak_mib"] for k in sizes if "peak_mib" in (c := cells.get(f"fleetune/K{k}", {}))}
    theirs = {
        int(key.rpartition("K")[2]): c
        for key, c in cells.items()
        if key.startswith("processes/") and "peak_mib" in c
    }
    lines: list[list[str]] = []
    for k in sizes:
        known = k in theirs
        base = theirs.get(k) or (theirs[max(theirs)] if theirs else None)
        factor = 1.0 if known or not theirs else k / max(theirs)
        further = "-"
        if k in own and 1 in own and k > 1:
            further = f"{(own[k] - own[1]) / (k - 1):.1f}"
        lines.append(
            [
                str(k),
                f"{own[k]:.0f}" if k in own else "-",
                further,
                _times(base, "peak_mib", factor, known),
                _times(base, "pss_mib", factor, known),
            ]
        )
    return lines


def _times(cell: dict[str, Any] | None, name: str, factor: float, known: bool) -> str:
    if cell is None or cell.get(name) is None:
        return "-"
    return f"{'' if known else '~'}{cell[name] * factor:.0f}"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = parser().parse_args(words)
    sizes = [int(k) for k in given.trials.split(",")]
    at_once = [int(k) for k in given.processes.split(",")]
    setup = {k: v for k, v in vars(given).items() if k not in ("name", "fresh", "trials", "processes", "data_dir")}  # fmt: skip
    path = Path(__file__).with_name("results") / f"{given.name}.json"
    results = Results(path, {**setup, "code": fingerprint()}, fresh=given.fresh)
    wanted = [("rate", 0), *(("fleetune", k) for k in sizes), *(("processes", k) for k in at_once)]
    for side, k in wanted:
        key = f"{side}/K{k}"
        if results.done(key):
            continue
        told = job(given, side, max(k, 1))
        if side == "rate":
            told["rate_seconds"] = 0.0  # for the machine's description alone
        try:
            found = measure(told)
        except SideFailed as error:
            found = {"failed": str(error)}
        found.pop("products", None)
        results.add(key, found)
        sys.stderr.write(f"{key}: {found.get('failed') or format(found['peak_mib'], '.0f')} MiB\n")
    machine = results.cells.get("rate/K0", {})
    table = rows(results.cells, sizes)
    dtypes = sorted({cell["dtype"] for cell in results.cells.values() if "dtype" in cell})
    about = [
        " ".join(["python -m bench.memory", *(sys.argv[1:] if words is None else words)]),
        f"{given.backbone}, {given.task}, {given.mix}, batch {given.batch}, {' and '.join(dtypes)}",
        f"commit {machine.get('commit')}, {machine.get('machine', {}).get('processor')}",
    ]
    results.set(head=HEAD, rows=table, about=about)
    sys.stdout.write("\n".join(about) + "\n\n" + plain((HEAD, table)) + "\n")


if __name__ == "__main__":
    main()
