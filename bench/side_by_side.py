"""Fleetune beside a loop over `Trainer` + peft: the same two trials, data, settings and number of steps, in one run.

The sides take turns, so that a change of the machine's speed meets both. Prints examples per second and the ratio, and
writes JSON with machine, versions and commit to bench/results/side_by_side.json.

    python -m bench.side_by_side --data-dir ../shared/data/glue --steps 8 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.trainer_loop import original, train
from fleetune.cohort.engine import Engine
from fleetune.cohort.plan import default_limits
from fleetune.cohort.train import Cohort
from fleetune.study.machine import PACKAGES, commit, hardware
from fleetune.study.prepare import DTYPES, Prepared


def fleetune(prepared: Prepared) -> float:
    """Seconds that one cohort of all trials trains, without loading and without evaluation."""
    names = prepared.dataset.task.label_names
    model, fresh = prepared.backbone.classifier(prepared.num_labels, names)
    limits = default_limits("cpu")
    engine = Engine(model, fresh, dtype=DTYPES[prepared.dtype])
    cohort = Cohort(engine, prepared.inputs, size=limits.trials, max_tokens=limits.tokens)
    spent, began = 0.0, time.perf_counter()
    for event in cohort.run():
        # The first selection of a trial comes after its last step here, so what follows is not training.
        if type(event).__name__ == "Advanced":
            spent = time.perf_counter() - began
    return spent


def main() -> None:
    """Measure RTE and SST-2, and print one line each."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="../shared/data/glue")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench/results/side_by_side.json"))
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    for task in ("rte", "sst2"):
        prepared = original(task, given.data_dir, "holdout", max_steps=given.steps, warmup_steps=0)
        examples = sum(given.steps * 64 for _ in prepared.inputs)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(given.repeats):
            ours.append(examples / fleetune(prepared))
            took = [
                train(prepared, one, bf16=prepared.dtype == "bfloat16", evaluate=False)
                for one in prepared.inputs
            ]
            theirs.append(examples / sum(t["seconds"] for t in took))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        found.append({"task": task, "fleetune": ours, "trainer": theirs, "ratio": ratios})
        told = [statistics.median(x) for x in (ours, theirs, ratios)]
        print(
            f"{task}: fleetune {told[0]:.0f}, Trainer loop {told[1]:.0f} examples/s, ratio {told[2]:.2f}",
            flush=True,
        )
    about = {
        "command": f"python -m bench.side_by_side --steps {given.steps} --repeats {given.repeats}",
        "trials": "bitfit and lora r=2, batch 16 x 4",
        "machine": hardware("cpu"),
        "packages": {name: metadata.version(name) for name in (*PACKAGES, "accelerate")},
        "commit": commit(),
        "results": found,
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
