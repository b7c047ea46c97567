"""The benchmark: Fleetune's cohorts beside what else there is, on the same trials, data and number of steps, in one run.

Sides: `fleetune` at K = 1, 2, 4, 8, 16, 32; `trainer`, a loop over Trainer + peft (bfloat16, padded to the batch);
`trainer-grouped` (also grouped by length); `trainer-default` (float32, every row padded or cut to 128 tokens); `processes`, as
many processes of `trainer` at once as there are cores; `adapters`, AdapterHub's `Parallel` (LoRA only, in an environment of its
own). The loop's speed does not depend on the number of trials, so it trains the first two.
Each measurement has its own process, writes at once, and is skipped by the next run of the same command with the same code.

    python -m bench.cohort --quick                                   # under three minutes, one small group
    python -m bench.cohort --estimate                                # what the whole would take
    python -m bench.cohort --adapters-env ~/adapters-env             # all of it; the folder is made if need be
    python -m bench.cohort --only 'minilm/sst2/*/K32' --only '/trainer/'
Results: bench/results/NAME.json and NAME.svg, and a table on stdout. docs/benchmarks.md says how to read them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import cells as planning
from bench.cells import Cell, Group, estimate, plan
from bench.processes import SideFailed, measure
from bench.store import Results, fingerprint
from bench.summary import summarise

RESULTS = Path(__file__).with_name("results")
MINILM = ("minilm", ("rte", "sst2"), ("mixed", "lora", "bitfit"))
# On a processor roberta-base's shape costs eight times MiniLM, so it gets two sizes of one mix.
ROBERTA = ("shape:roberta-base", ("rte", "sst2"), ("mixed",))
ROBERTA_TRIALS = {"cpu": (1, 8), "cuda": (1, 8, 32, 64)}
ADAPTERS = "adapters==1.3.0"


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--name", help="of the results; default: cohort, quick with --quick")
    add("--quick", action="store_true", help="one group, K = 1 and 8, one repeat, one step")
    add("--estimate", action="store_true", help="print the cells and about how long they take")
    add("--fresh", action="store_true", help="set older results aside and start over")
    add("--only", action="append", default=[], metavar="PATTERN", help="cells whose name matches")
    add("--data-dir", default="../shared/data/glue", help="GLUE in its own TSV layout")
    add("--task", action="append", dest="tasks", help="rte, sst2, demo-sentiment, ...")
    add("--backbone", action="append", dest="backbones", help="minilm, shape:roberta-base, ...")
    add("--mix", action="append", dest="mixes", help="mixed, lora, bitfit")
    add("--trials", type=_numbers, help="sizes of the cohorts, e.g. 1,8,32")
    add("--sides", type=lambda text: tuple(text.split(",")), help="default: all")
    add("--steps", type=int, help="optimizer steps of each trial; default 2, quick 1")
    add(
        "--loop-steps",
        type=int,
        help="of the loop and the processes, whose speed they do not change; default: --steps",
    )
    add("--repeats", type=int, help="default 3, quick 1")
    add("--batch", type=int, default=16)
    add("--accumulation", type=int, default=4)
    add("--loop-trials", type=int, default=2, help="trials that the loop takes in turn")
    add("--processes", type=int, default=os.cpu_count() or 1, help="of Trainer at once")
    add("--dtype", default="auto", help="compute dtype of all sides but the default setting's")
    add("--device", default="cpu", help="cpu, or cuda")
    add("--threads", type=int, default=0, help="of a side; default: torch's own")
    add("--adapters-env", type=Path, help="environment for AdapterHub's adapters; made if missing")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def groups_of(given: argparse.Namespace) -> list[Group]:
    """What the arguments ask for; what they leave out comes from the preset."""
    presets: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [MINILM, ROBERTA]
    gpu = given.device.startswith("cuda")
    if given.quick:
        task = "sst2" if Path(given.data_dir).is_dir() else "demo-sentiment"
        presets = [("minilm", (task,), ("mixed",))]
    if given.backbones:
        presets = [(name, presets[0][1], presets[0][2]) for name in given.backbones]
    found: list[Group] = []
    for backbone, tasks, mixes in presets:
        sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
        if given.quick:
            sizes = (1, 8)
        elif backbone == ROBERTA[0]:
            sizes = ROBERTA_TRIALS["cuda" if gpu else "cpu"]
        for task in given.tasks or tasks:
            for mix in given.mixes or mixes:
                found.append(Group(backbone, task, mix, given.trials or sizes))
    return found


def setup_of(given: argparse.Namespace) -> dict[str, Any]:
    """What must be equal for two cells to stand in one table."""
    return {
        "steps": given.steps,
        "loop_steps": given.loop_steps,
        "batch": given.batch,
        "accumulation": given.accumulation,
        "loop_trials": given.loop_trials,
        "processes": given.processes,
        "dtype": given.dtype,
        "device": given.device,
        "threads": given.threads,
        "code": fingerprint(),
    }


def job_of(cell: Cell, given: argparse.Namespace, adapters: Path | None) -> dict[str, Any]:
    """What bench.side is told."""
    # The loop's trials are the first of the same ones, whatever the size of the cohort beside it.
    trials = max(cell.trials, given.loop_trials) if cell.side.startswith("trainer") else cell.trials
    in_turn = cell.side.startswith("trainer") or cell.side == "processes"
    steps = given.loop_steps if in_turn else given.steps
    spec = {
        "task": cell.group.task,
        "data_dir": given.data_dir,
        "backbone": cell.group.backbone,
        "mix": cell.group.mix,
        "trials": max(trials, 1),
        "rows": steps * given.batch * given.accumulation,
        "batch": given.batch,
        "accumulation": given.accumulation,
        "dtype": given.dtype,
    }
    return {
        "side": cell.side,
        "spec": spec,
        "device": given.device,
        "threads": given.threads,
        "loop_trials": given.loop_trials,
        "processes": given.processes,
        "adapters_python": str(adapters) if adapters else None,
    }


def adapters_environment(folder: Path | None) -> Path | None:
    """The Python of an environment with AdapterHub's package, made where there is none; None, with a word, without it."""
    if folder is None:
        say("adapters: left out; give --adapters-env FOLDER to measure it")
        return None
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"adapters: making {folder}; this downloads torch once more")
        done = subprocess.run([sys.executable, "-m", "venv", str(folder)])
        if done.returncode:
            say("adapters: cannot be measured, the environment could not be made")
            return None
    found = subprocess.run([str(python), "-c", "import adapters, torch"], capture_output=True)
    if found.returncode:
        from importlib import metadata

        torch = f"torch=={metadata.version('torch').partition('+')[0]}"
        pip = [str(python), "-m", "pip", "install", "--quiet", torch, ADAPTERS]
        if subprocess.run(pip).returncode:
            say(f"adapters: cannot be measured, {ADAPTERS} with {torch} could not be installed")
            return None
    return python.absolute()


def run(cells: Sequence[Cell], given: argparse.Namespace, results: Results) -> None:
    """Measure what is not yet there. A side that fails is told, kept as failed, and not tried in later repeats."""
    rows = given.steps * given.batch * given.accumulation
    guessed = {c.key: estimate(c, rows, given.device, os.cpu_count() or 1) for c in cells}
    waiting = [c for c in cells if not results.done(c.key)]
    say(
        f"{len(waiting)} of {len(cells)} cells to measure, about {sum(guessed[c.key] for c in waiting) / 60:.0f} min by "
        "assumed speeds; a cut loses one cell"
    )
    adapters: Path | None = None
    if any(c.side == "adapters" for c in waiting):
        adapters = adapters_environment(given.adapters_env)
    failed: set[tuple[str, str, int]] = set()
    spent = expected = 0.0
    for i, cell in enumerate(waiting):
        kind = (cell.group.name, cell.side, cell.trials)
        if kind in failed or (cell.side == "adapters" and adapters is None):
            continue
        began = time.monotonic()
        try:
            found = measure(job_of(cell, given, adapters))
        except SideFailed as error:
            failed.add(kind)
            found = {"failed": str(error)}
        results.add(cell.key, found)
        spent, expected = spent + time.monotonic() - began, expected + guessed[cell.key]
        left = sum(guessed[c.key] for c in waiting[i + 1 :]) * spent / expected
        say(f"{i + 1}/{len(waiting)} {cell.key}: {_told(found)}; about {left / 60:.0f} min left")


def _told(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"FAILED: {found['failed']}"
    if "products" in found:
        return (
            f"{found['bfloat16'] / 1e9:.0f} GFLOP/s bfloat16, {found['float32'] / 1e9:.0f} float32"
        )
    return f"{found['examples'] / found['seconds']:.1f} examples/s, {found['peak_mib']:.0f} MiB"


def say(text: str) -> None:
    """Progress, to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def finish(results: Results, command: str) -> None:
    """Add what belongs to the whole, draw, print."""
    from bench.picture import draw
    from bench.tables import cohort_text

    rates = [c for k, c in results.cells.items() if "/rate/" in k and "failed" not in c]
    about = {k: rates[0][k] for k in ("machine", "packages", "commit")} if rates else {}
    for cell in results.cells.values():
        if "adapters" in cell.get("packages", {}):
            about["adapters"] = cell["packages"]
    results.set(command=command, summary=summarise(results.told), **about)
    picture = draw(results.told, results.path.with_suffix(".svg"))
    sys.stdout.write(cohort_text(results.told))
    say(f"wrote {results.path}" + (f" and {picture}" if picture else "; no matplotlib, no picture"))


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = parser().parse_args(words)
    given.steps = given.steps or (1 if given.quick else 2)
    given.loop_steps = given.loop_steps or given.steps
    given.repeats = given.repeats or (1 if given.quick else 3)
    quick = ("fleetune", "trainer", "trainer-default")
    sides = given.sides or (quick if given.quick else ("fleetune", *planning.PEERS))
    if unknown := set(sides) - {"fleetune", *planning.PEERS}:
        raise SystemExit(f"--sides: {', '.join(sorted(unknown))} is none of fleetune, {', '.join(planning.PEERS)}")  # fmt: skip
    cells = plan(
        groups_of(given), given.repeats, sides=sides, loop_trials=given.loop_trials,
        processes=given.processes, only=given.only,
    )  # fmt: skip
    if given.estimate:
        rows = given.steps * given.batch * given.accumulation
        for cell in cells:
            seconds = estimate(cell, rows, given.device, os.cpu_count() or 1)
            sys.stdout.write(f"{seconds:7.0f} s  {cell.key}\n")
        total = sum(estimate(c, rows, given.device, os.cpu_count() or 1) for c in cells)
        sys.stdout.write(f"{total / 60:7.0f} min altogether, by assumed speeds\n")
        return
    # A plain end, so that the processes that run now are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = given.name or ("quick" if given.quick else "cohort")
    results = Results(RESULTS / f"{name}.json", setup_of(given), fresh=given.fresh)
    if results.set_aside:
        say(f"other code or another setup: older results set aside as {results.set_aside}")
    words = sys.argv[1:] if words is None else words
    try:
        run(cells, given, results)
    finally:
        if any("/fleetune/" in key for key in results.cells):
            finish(results, " ".join(["python -m bench.cohort", *words]))


if __name__ == "__main__":
    main()
