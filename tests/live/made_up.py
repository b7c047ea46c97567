"""Trials as the live view reads them, without a model: numbers that are set by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fleetune.records import EpochResult

ROWS, TOKENS = 40, 400


def trial(
    ident: str = "lora-s0",
    *,
    method: str = "lora",
    task: str = "reviews",
    phase: str = "train",
    epochs: int = 4,
    scores: tuple[float, ...] = (),
    higher: bool = True,
    half_way: bool = False,
) -> Any:
    """A trial of 40 rows with 400 tokens and ten steps an epoch, after so many epochs as it has scores."""
    results = [
        EpochResult(i, 1 / i, {"accuracy": s, "loss": 1 - s}, 10 * i, 1.0)
        for i, s in enumerate(scores, 1)
    ]
    best = max(range(len(scores)), key=lambda i: scores[i] * (1 if higher else -1), default=-1) + 1
    done = 10 * len(scores) + 5 * half_way
    return SimpleNamespace(
        id=ident,
        given=SimpleNamespace(
            spec=SimpleNamespace(id=ident, method=method, task=task, phase=phase),
            settings=SimpleNamespace(steps_per_epoch=lambda rows: 10),
            best_metric="accuracy",
            higher_is_better=higher,
            train=SimpleNamespace(
                table=SimpleNamespace(lengths=np.full(100, TOKENS // ROWS)), rows=np.arange(ROWS)
            ),
        ),
        rows=ROWS,
        step=done,
        last_step=10 * epochs,
        micro_step=done,
        micro_per_epoch=10,
        rows_seen=ROWS // 2 if half_way else 0,
        loss_sum=0.25 * ROWS // 2 if half_way else 0.0,
        results=results,
        best_epoch=best,
    )


class Clock:
    """Seconds that move when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
