"""One measurement of one side, in a process of its own: `python -m bench.side JOB.json RESULT.json`.

The parent (cohort.py, memory.py) holds nothing heavy; whatever a side needs it loads here, so its peak memory is its own.
The clock runs from the first batch to the last step: reading data, loading weights and what `Trainer` sets up before its
first batch are left out, and a warm-up of one micro-batch (the loop on a GPU: eight of each trial) comes before. A cohort's
clock holds the making of its trials.
With "wait" in the job the process says `ready` and trains when it is told to, so that several of them can start at once.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.trials import TrialsSpec, prepare_trials, with_rows

Job = dict[str, Any]
Found = dict[str, Any]
# run_glue.py's defaults, in the transformers repository: float32, every row padded or cut to 128 tokens.
DEFAULT_LENGTH = 128
WARM_GPU = 8
TRAINER: dict[str, dict[str, Any]] = {
    "trainer": {},
    "trainer-grouped": {"grouped": True},
    "trainer-default": {"bf16": False, "pad_to": DEFAULT_LENGTH},
}


def fleetune(job: Job) -> Found:
    """All trials in one cohort."""
    from bench.levers import synchronize
    from fleetune.cohort.engine import Engine
    from fleetune.cohort.events import Advanced, TrialFailed
    from fleetune.cohort.plan import default_limits
    from fleetune.cohort.train import Cohort
    from fleetune.study.prepare import DTYPES

    prepared, inputs = prepare_trials(TrialsSpec(**job["spec"]))
    names = prepared.dataset.task.label_names
    model, fresh = prepared.backbone.classifier(prepared.num_labels, names)
    engine = Engine(model, fresh, dtype=DTYPES[prepared.dtype], device=job["device"])
    limits = default_limits(job["device"])

    def train(given: Any) -> float:
        synchronize(job["device"])
        began, spent = time.perf_counter(), 0.0
        for event in Cohort(engine, given, size=len(given), max_tokens=limits.tokens).run():
            if isinstance(event, Advanced):
                synchronize(job["device"])
                spent = time.perf_counter() - began
            elif isinstance(event, TrialFailed):
                raise RuntimeError(f"{event.trial.id}: {event.reason}")
        return spent

    before = peak_mib()
    train([_first(given, 1) for given in inputs[:2]])
    ready(job)
    return {
        "seconds": train(inputs),
        "before_mib": before,
        "dtype": prepared.dtype,
        "max_tokens": limits.tokens,
        **counted(prepared, inputs),
    }


def keeps(job: Job) -> Found:
    """All trials in one cohort, in a process that never gives freed memory back."""
    from fleetune.cohort.room import Returned

    # Between rounds and at evaluations the cohort asks this class.
    Returned.now = Returned.if_grown = lambda self: None
    return fleetune(job)


def trainer(job: Job) -> Found:
    """Trials one after another with `Trainer`: the first so many, or the one that the job names."""
    from bench.trainer_loop import train

    how = TRAINER[job["side"]]
    prepared, inputs = prepare_trials(TrialsSpec(**job["spec"]))
    only = job.get("only")
    chosen = inputs[: job["loop_trials"]] if only is None else (inputs[only % len(inputs)],)
    settings: dict[str, Any] = {
        "bf16": prepared.dtype == "bfloat16", "evaluate": False, "device": job["device"], **how
    }  # fmt: skip
    before = peak_mib()
    # A GPU loads kernels as they are first asked for, and each method and length asks for its own.
    gpu = job["device"].startswith("cuda")
    for given in chosen if gpu else chosen[:1]:
        train(prepared, _first(given, WARM_GPU if gpu else 1), **settings)
    ready(job)
    took = [train(prepared, given, **settings)["step_seconds"] for given in chosen]
    each = [
        {"seconds": spent, "examples": len(given.train), "tokens": _tokens(given)}
        for spent, given in zip(took, chosen, strict=True)
    ]
    return {
        "seconds": sum(took),
        "each": each,
        "before_mib": before,
        "dtype": "bfloat16" if settings["bf16"] else "float32",
        **counted(prepared, chosen),
    }


def adapters(job: Job) -> Found:
    """AdapterHub's `Parallel`, by the Python of its own environment."""
    import subprocess
    import tempfile

    prepared, inputs = prepare_trials(TrialsSpec(**job["spec"]))
    rows = inputs[0].train
    lora = [given.spec.hyperparameters for given in inputs]
    told = {
        "model": str(prepared.backbone.folder),
        "num_labels": prepared.num_labels,
        "pad": prepared.backbone.tokenizer.pad_token_id,
        "trials": [{"r": h["r"], "alpha": h["lora_alpha"], "dropout": h["lora_dropout"]} for h in lora],
        "rows": [rows.table.row(int(i)).tolist() for i in rows.rows],
        "labels": [int(rows.labels[i]) for i in rows.rows],
        "learning_rate": inputs[0].settings.learning_rate,
        "batch": job["spec"]["batch"],
        "accumulation": job["spec"]["accumulation"],
        "bf16": prepared.dtype == "bfloat16",
        "device": job["device"],
        "threads": job["threads"],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "job.json", Path(folder) / "out.json"
        given.write_text(json.dumps(told))
        script = Path(__file__).with_name("adapterhub.py")
        command = [job["adapters_python"], "-P", str(script), str(given), str(out)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        found: Found = json.loads(out.read_text())
    every = tuple(replace(given, train=rows) for given in inputs)
    return {**found, "dtype": prepared.dtype, **counted(prepared, every)}


def rate(job: Job) -> Found:
    """The machine's matrix rate at the backbone's shapes, and what this machine is."""
    from bench.backbones import resolve
    from bench.rate import matrix_shapes, measure
    from fleetune.backbone.load import find_backbone
    from fleetune.study.machine import PACKAGES, commit, hardware

    shapes = matrix_shapes(find_backbone(resolve(job["spec"]["backbone"])))
    return {
        **measure(shapes, job["device"], job.get("rate_seconds", 0.12)),
        # A copy of the tree on another machine may come without its history.
        "commit": os.environ.get("BENCH_COMMIT") or commit(),
        "machine": hardware(job["device"]),
        "packages": {name: metadata.version(name) for name in (*PACKAGES, "accelerate")},
    }


SIDES: dict[str, Callable[[Job], Found]] = {
    "fleetune": fleetune,
    "fleetune-keeps": keeps,
    "adapters": adapters,
    "rate": rate,
    **dict.fromkeys(TRAINER, trainer),
}


def counted(prepared: Any, inputs: tuple[Any, ...]) -> Found:
    """Examples and real tokens that some trials train on, and the operations of their products."""
    import numpy as np

    from bench.rate import attention_operations, frozen_operations, matrix_shapes

    lengths = np.concatenate([given.train.table.lengths[given.train.rows] for given in inputs])
    shapes, config = matrix_shapes(prepared.backbone), prepared.backbone.config
    tokens = int(lengths.sum())
    return {
        "trials": len(inputs),
        "examples": len(lengths),
        "tokens": tokens,
        "frozen_operations": frozen_operations(tokens, shapes),
        "attention_operations": attention_operations(
            lengths, config.hidden_size, config.num_hidden_layers
        ),
    }


def _tokens(given: Any) -> int:
    return int(given.train.table.lengths[given.train.rows].sum())


def _first(given: Any, batches: int) -> Any:
    rows = given.train.rows[: batches * given.settings.per_device_train_batch_size]
    return replace(given, train=with_rows(given.train, rows))


def ready(job: Job) -> None:
    """Wait for the word to start, where the job says so."""
    if job.get("wait"):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()


def peak_mib() -> float:
    """The most memory that this process has held, MiB.

    From /proc, since getrusage's figure also holds what the parent had when it started this process.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def proportional_mib() -> float | None:
    """This process's memory now, each shared page counted by its share (PSS), MiB; None where /proc does not say."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def main() -> None:
    """Measure one job and write what was found."""
    warnings.simplefilter("ignore")
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    began = time.perf_counter()
    found = SIDES[job["side"]](job)
    found.setdefault("peak_mib", peak_mib())
    found["pss_mib"] = proportional_mib()
    if job["device"].startswith("cuda") and "device_mib" not in found:
        found["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    found["whole_seconds"] = time.perf_counter() - began
    out = Path(sys.argv[2])
    out.with_suffix(".part").write_text(json.dumps(found))
    os.replace(out.with_suffix(".part"), out)


if __name__ == "__main__":
    main()
