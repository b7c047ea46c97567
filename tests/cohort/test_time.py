"""What a trial's time is: its share of the cohort's, by the passes that it took part in."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from fleetune.cohort import train as train_module
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import EpochDone
from fleetune.cohort.passes import Part, Passed, run_pass
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import TrialInput
from tests.cohort.outcomes import TRAIN, N, engine_of, trial


def seconds(inputs: list[TrialInput], **limits: Any) -> dict[str, float]:
    """Of each trial at its end; all of them together take no longer than the whole."""
    began = time.perf_counter()
    found: dict[str, float] = {}
    for event in Cohort(engine_of("bert"), inputs, **limits).run():
        if isinstance(event, EpochDone):
            found[event.trial.id] = event.result.seconds
    assert 0 < sum(found.values()) <= time.perf_counter() - began
    return found


def test_a_pass_is_divided_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes a round, of which the second takes three times as long; the longer trial of a pass pays more."""

    def took(engine: Engine, parts: list[Part]) -> Passed:
        return replace(run_pass(engine, parts), seconds=3.0 if heavy & {parts[0].trial.id} else 1.0)

    heavy = {"c", "d"}
    monkeypatch.setattr(train_module, "run_pass", took)
    # A batch of all rows: every round holds the same tokens. Half as many rows for `b` and `d`.
    inputs = [
        trial("lora", ident=ident, rows=rows, selection=0, per_device_train_batch_size=rows, num_train_epochs=2)
        for ident, rows in (("a", N), ("b", N // 2), ("c", N), ("d", N // 2))
    ]  # fmt: skip
    whole, half = (int(TRAIN.lengths[:rows].sum()) for rows in (N, N // 2))
    found = seconds(inputs, size=4, max_tokens=whole + half)
    assert found["c"] / found["a"] == pytest.approx(3.0)
    assert found["d"] / found["b"] == pytest.approx(3.0)
    assert found["b"] / found["a"] == pytest.approx(half / whole)


def test_a_trial_that_waits_pays_nothing() -> None:
    """One place: the second trial's clock does not run while the first trains, however long that takes."""
    long = trial("lora", ident="long", num_train_epochs=10)
    short = trial("lora", ident="short", num_train_epochs=1)
    found = seconds([long, short], size=1, max_tokens=4096)
    assert found["short"] < found["long"]
