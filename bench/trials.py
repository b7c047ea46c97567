"""The trials that every benchmark trains: the same rows, settings and starts on every side.

Notation: K trials, N rows of each. Trial k has seed 42 + k, its own N rows of the task's training rows (drawn from its seed), a
learning rate and, for LoRA, a rank. It trains on each of its rows once and evaluates nothing, so a side's time is the time of
training alone, and every side sees exactly the same examples.

mixes: `lora` (ranks 2, 8, 4, 16; alpha = 4r; dropout 0.01), `bitfit`, and `mixed` (the two in turn).
Not covered: whether the trials learn anything; see the runs that README.md cites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fleetune.cohort.trial import Rows, TrialInput
    from fleetune.study.prepare import MethodSettings, Prepared

MIXES = ("lora", "bitfit", "mixed")
RANKS = (2, 8, 4, 16)
LEARNING_RATES = (5e-4, 1e-3, 2e-4, 2e-3)
FIRST_SEED = 42


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialsSpec:
    """What decides a set of trials."""

    task: str = "rte"
    data_dir: str | None = "../shared/data/glue"
    """Folder of GLUE in its own TSV layout; not asked for by the embedded tasks."""
    backbone: str = "minilm"
    """As `fleetune train` takes it, or `shape:NAME` (see backbones.py)."""
    mix: str = "mixed"
    trials: int = 8
    rows: int = 64
    """Rows of each trial."""
    batch: int = 16
    accumulation: int = 4
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.mix not in MIXES:
            raise ValueError(f"`mix` must be one of {', '.join(MIXES)}, but got {self.mix!r}.")
        if self.trials < 1 or self.rows < 1:
            raise ValueError(
                f"`trials >= 1` and `rows >= 1` must hold, but got {self.trials} and {self.rows}."
            )


def prepare_trials(spec: TrialsSpec) -> tuple[Prepared, tuple[TrialInput, ...]]:
    """The data, tokens and backbone of these trials, and the trials. Raises any FleetuneError."""
    from bench.backbones import resolve
    from fleetune.study.prepare import DataSettings, Settings, prepare

    embedded = spec.task.startswith("demo-")
    training: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": spec.batch,
        "gradient_accumulation_steps": spec.accumulation,
        "warmup_steps": 0,
        "weight_decay": 0.01,
    }
    prepared = prepare(
        Settings(
            DataSettings(task=spec.task, data_dir=None if embedded else spec.data_dir),
            tuple(variants(spec.mix)[: spec.trials]),
            (FIRST_SEED,),
            training,
            backbone=resolve(spec.backbone),
            dtype=spec.dtype,
        )
    )
    return prepared, tuple(_trial(prepared.inputs, k, spec.rows) for k in range(spec.trials))


def variants(mix: str) -> list[MethodSettings]:
    """The settings that the trials of a mix take in turn."""
    from fleetune.study.prepare import MethodSettings

    bitfit = [MethodSettings("bitfit", {}, {"learning_rate": lr}) for lr in LEARNING_RATES]
    lora = [
        MethodSettings(
            "lora",
            {"r": r, "lora_alpha": 4.0 * r, "lora_dropout": 0.01},
            {"learning_rate": lr},
        )
        for r, lr in zip(RANKS, LEARNING_RATES, strict=True)
    ]
    if mix == "mixed":
        return [one for pair in zip(bitfit, lora, strict=True) for one in pair]
    return lora if mix == "lora" else bitfit


def _trial(made: Sequence[TrialInput], k: int, n: int) -> TrialInput:
    """Trial k: a variant with a seed and rows of its own."""
    from fleetune.seeds import stream

    base, seed = made[k % len(made)], FIRST_SEED + k
    order = stream(seed, "bench", "rows").permutation(len(base.train))
    # A task with fewer rows than asked for gives some of them again.
    rows = base.train.rows[np.resize(order, n)]
    return replace(
        base,
        spec=replace(base.spec, id=f"{k}-{base.spec.method}-s{seed}", seed=seed),
        train=with_rows(base.train, rows),
        selection=with_rows(base.train, rows[:0]),
    )


def with_rows(of: Rows, rows: Any) -> Rows:
    """Other rows of the same table."""
    return replace(of, rows=np.asarray(rows, dtype=np.int64))
