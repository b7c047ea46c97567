"""Seconds from the command to the first training step, and where they go.

A child process runs `fleetune train` as a user would, except that a clock looks at a few of its functions and at every
import, and that it ends after the first optimizer step. Times are exclusive: what a stage imports counts as imports. The
token cache is warm after the first run, which is not counted. Then one run more under `python -X importtime` tells imports
by package.

    python -m bench.startup --task rte --repeats 3          # bench/results/startup.json, a table on stdout
    python -m bench.startup --task demo-sentiment
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.tables import keep

ROOT = Path(__file__).resolve().parents[1]
# (module that reads the name, name, stage)
STAGES = (
    ("fleetune.study.prepare", "read_dataset", "data"),
    ("fleetune.study.prepare", "find_backbone", "backbone: files, config, tokenizer"),
    ("fleetune.study.prepare", "tokenizer_fingerprint", "tokens"),
    ("fleetune.study.prepare", "tokenize", "tokens"),
    ("fleetune.study.prepare", "empty_model", "site map"),
    ("fleetune.study.prepare", "divisions", "splits"),
    ("fleetune.study.run", "open_workbench", "backbone: weights, twice, opened"),  # LOADED
    ("fleetune.study.machine", "describe", "machine and commit"),
)
# After the weights comes the training: what is not imports there is the making of the trials and the first passes.
LOADED, TRAINING = "backbone: weights, twice, opened", "trials made, passes of the first step"
END = ("fleetune.cohort.optim", "TrialOptimizer.step")
FIRST, REST = "interpreter", "all else"


class Clock:
    """Exclusive time by stage."""

    def __init__(self, began: float) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.last = began
        self.stack = [FIRST]
        self.thread = threading.get_ident()

    def push(self, stage: str) -> None:
        self._count()
        self.stack.append(stage)

    def pop(self) -> None:
        self._count()
        self.stack.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        self.spent[self.stack[-1]] += now - self.last
        self.last = now

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted to a stage."""

        def run(*args: Any, **kwargs: Any) -> Any:
            # Passes run on threads of their own, and what they import is theirs.
            if self.stack[-1] == stage or threading.get_ident() != self.thread:
                return function(*args, **kwargs)
            self.push(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.pop()
                if stage == LOADED:
                    self.push(TRAINING)

        return run


def inside(began: float, out: Path, words: list[str]) -> None:
    """In the child: run the command under the clock up to its first step."""
    clock = Clock(began)
    clock.push(REST)
    plain_import = builtins.__import__
    patched: set[tuple[str, str]] = set()

    def place(module: str, path: str) -> tuple[Any, str] | None:
        owner: Any = sys.modules.get(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent, None)
        return (owner, name) if owner is not None and hasattr(owner, name) else None

    def patch() -> None:
        for module, path, stage in STAGES:
            if (module, path) not in patched and (found := place(module, path)):
                patched.add((module, path))
                setattr(found[0], found[1], clock.around(stage, getattr(*found)))
        if END not in patched and (found := place(*END)):
            patched.add(END)
            setattr(found[0], found[1], ending(getattr(*found)))

    def ending(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> None:
            step(*args, **kwargs)
            clock.pop()
            out.write_text(json.dumps(dict(clock.spent)))
            os._exit(0)

        return run

    def imported(name: str, *args: Any, **kwargs: Any) -> Any:
        outer = clock.stack[-1] != "imports"
        found = counted(name, *args, **kwargs)
        if outer and name.startswith("fleetune"):
            patch()
        return found

    counted = clock.around("imports", plain_import)
    builtins.__import__ = imported
    importlib.import_module = clock.around("imports", importlib.import_module)
    sys.argv = ["fleetune", *words]
    from fleetune.cli.main import main

    main()


def command(given: argparse.Namespace, folder: str) -> list[str]:
    """What a user would type after `fleetune`."""
    data = [] if given.task.startswith("demo-") else ["--data-dir", given.data_dir]
    return [
        "train", "--task", given.task, *data, "--methods", "bitfit,lora", "--max-steps", "2",
        "--backbone", given.backbone, "--output-dir", f"{folder}/run",
    ]  # fmt: skip


def child(given: argparse.Namespace, *python: str) -> tuple[dict[str, float], str]:
    """One run: seconds by stage, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        began = time.perf_counter()  # the system's monotonic clock: the same in the child
        words = [sys.executable, *python, "-m", "bench.startup", "--inside", str(began), str(out)]
        done = subprocess.run(
            [*words, *command(given, folder)], cwd=ROOT, capture_output=True, text=True
        )
        if not out.exists():
            raise SystemExit(f"the command failed: {done.stderr.strip()[-500:]}")
        return json.loads(out.read_text()), done.stderr


def by_package(said: str, top: int = 14) -> list[tuple[float, str]]:
    """Seconds of importing, by package, from `-X importtime`: self times of its modules, wherever they were imported."""
    spent: defaultdict[str, float] = defaultdict(float)
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", said, re.MULTILINE):
        spent[name.partition(".")[0]] += int(own) / 1e6
    return sorted(((seconds, name) for name, seconds in spent.items()), reverse=True)[:top]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--name", default="startup")
    found.add_argument("--task", default="rte")
    found.add_argument("--data-dir", default="../shared/data/glue")
    found.add_argument("--backbone", default="minilm")
    found.add_argument("--repeats", type=int, default=3)
    given = found.parse_args(words)
    child(given)
    runs = [child(given)[0] for _ in range(given.repeats)]
    whole = [sum(run.values()) for run in runs]
    stages = sorted({s for run in runs for s in run}, key=lambda s: -max(r.get(s, 0) for r in runs))
    rows = [["from command to first step", _figure(whole)]]
    rows += [[stage, _figure([run.get(stage, 0.0) for run in runs])] for stage in stages]
    _, said = child(given, "-X", "importtime")
    rows += [[f"import {name} (traced)", f"{s:.2f}"] for s, name in by_package(said)]
    head = ["stage", "seconds"]
    from fleetune.study.machine import commit, hardware

    about = [
        f"python -m bench.startup --task {given.task} --repeats {given.repeats}",
        f"commit {commit()}, {hardware('cpu')['processor']}; target: under 8 s with cached data",
    ]
    keep(given.name, about, (head, rows), runs=runs, machine=hardware("cpu"))


def _figure(seconds: list[float]) -> str:
    if len(seconds) == 1:
        return f"{seconds[0]:.2f}"
    return f"{statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}]"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        main()
