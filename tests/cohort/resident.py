"""One cohort in a process of its own: predicted memory, and the kernel's count of the peak. For test_memory.py.

Run as `python -m tests.cohort.resident TRIALS METHODS DTYPE FAMILY [ACCUMULATION [BATCH [LANES [SELECTION [LONG [JUDGED]]]]]]`;
prints one line of JSON, bytes. LONG: so many of the training rows have 512 tokens. JUDGED: tokens of each selection row.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from fleetune.cohort.engine import Engine
from fleetune.cohort.memory import estimate
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import training_settings
from fleetune.data.tokens import TokenTable
from fleetune.methods.table import make_method
from fleetune.records import TrialSpec

TOKENS, SHORTEST, LONGEST = 4096, 32, 64
SHAPES: dict[str, dict[str, Any]] = {
    "bert": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "distilbert": dict(dim=384, n_layers=6, n_heads=12, hidden_dim=1536),
}  # fmt: skip


def table(rows: int, long: int = 0, length: int = 0) -> TokenTable:
    rng = np.random.default_rng(rows)
    lengths = rng.integers(SHORTEST, LONGEST + 1, rows)
    lengths = np.full(rows, length) if length else np.where(np.arange(rows) < long, 512, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, 30_000, offsets[-1]).astype(np.int32)
    return TokenTable(ids, offsets.astype(np.int64), None, 0, 512)


def inputs(
    trials: int,
    methods: list[str],
    accumulation: int = 1,
    batch: int = 16,
    judged: int = 48,
    long: int = 0,
    length: int = 0,
) -> list[TrialInput]:
    rows = 3 * accumulation * batch
    train, selection = table(rows, long), table(judged, length=length)
    return [
        TrialInput(
            spec=TrialSpec(id=str(k), task="random", method=methods[k % len(methods)], seed=k),
            method=make_method(methods[k % len(methods)], {}),
            settings=training_settings(
                {
                    "learning_rate": 1e-4,
                    "per_device_train_batch_size": batch,
                    "gradient_accumulation_steps": accumulation,
                    "num_train_epochs": 1,
                }
            ),
            train=Rows(train, np.arange(rows), np.arange(rows) % 2),
            selection=Rows(selection, np.arange(judged), np.arange(judged) % 2),
            metrics=("accuracy",),
            best_metric="accuracy",
            higher_is_better=True,
        )
        for k in range(trials)
    ]


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def run(engine: Engine, given: list[TrialInput], tokens: int) -> None:
    for _ in Cohort(engine, given, size=len(given), max_tokens=tokens).run():
        pass


def main(
    trials: int,
    methods: list[str],
    dtype: str,
    family: str,
    accumulation: int = 1,
    batch: int = 16,
    lanes: int = 1,
    judged: int = 48,
    long: int = 0,
    length: int = 0,
) -> None:
    torch.set_num_threads(lanes)
    config = AutoConfig.for_model(family, **SHAPES[family], vocab_size=30_522, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(config)
    fresh = frozenset(n for n, _ in model.named_parameters() if "classifier" in n)
    engine = Engine(model, fresh, dtype=getattr(torch, dtype))
    given = inputs(trials, methods, accumulation, batch, judged, long, length)
    predicted = estimate(engine, given).needs(trials=trials, tokens=TOKENS)
    # Kernels, caches and code that any training touches once are not the cohort's.
    run(engine, inputs(1, ["head"]), 64)
    gc.collect()
    # Sets the kernel's mark of the highest to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run(engine, given, TOKENS)
    peak = resident("VmHWM") - before
    sys.stdout.write(json.dumps({"predicted": predicted.beyond_backbone, "peak": peak}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), *sys.argv[3:5], *map(int, sys.argv[5:]))
