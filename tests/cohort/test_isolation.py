"""The law of isolation: a trial in a cohort is the same computation as that trial alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, EpochDone, TrialDone
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import training_settings
from fleetune.data.tokens import TokenTable
from fleetune.methods.table import METHODS, make_method
from fleetune.records import TrialSpec
from tests.oracles import solo
from tests.tiny import tiny_model, tiny_table

TRAIN = tiny_table(38, seed=1, longest=24, ones=0.3)
EVEN = tiny_table(38, seed=1, longest=24)
SELECTION = tiny_table(11, seed=2, longest=24)
LABELS = np.random.default_rng(0).integers(0, 3, 38)
SELECTION_LABELS = np.random.default_rng(1).integers(0, 3, 11)
HEAD = frozenset({"classifier.weight", "classifier.bias"})


def trial(
    name: str,
    seed: int = 0,
    method: dict[str, Any] | None = None,
    *,
    rows: int = 38,
    table: TokenTable = TRAIN,
    **training: Any,
) -> TrialInput:
    settings = {
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 5,
        "weight_decay": 0.1,
        "warmup_steps": 3,
        "dropout": 0.0,
        **training,
    }
    return TrialInput(
        spec=TrialSpec(
            id=f"{name}-{seed}-{method}-{training}", task="tiny", method=name, seed=seed
        ),
        method=make_method(name, method or {}),
        settings=training_settings(settings),
        train=Rows(table, np.arange(rows), LABELS),
        selection=Rows(SELECTION, np.arange(11), SELECTION_LABELS),
        metrics=("accuracy",),
        best_metric="loss",
        higher_is_better=False,
    )


def train(
    model: Any,
    inputs: list[TrialInput],
    *,
    size: int = 8,
    max_tokens: int = 10**6,
    dtype=torch.float64,
):  # type: ignore[no-untyped-def]
    """Final weights, epoch results and micro-batch losses of every trial, by id."""
    cohort = Cohort(
        Engine(copy.deepcopy(model), HEAD, dtype=dtype), inputs, size=size, max_tokens=max_tokens
    )
    weights: dict[str, Any] = {}
    results: dict[str, list[Any]] = {i.spec.id: [] for i in inputs}
    for event in cohort.run():
        if isinstance(event, EpochDone):
            results[event.trial.id].append(event.result)
            # The weights as trained, not those of the best epoch, which TrialDone holds.
            weights[event.trial.id] = event.trial.owned.state()
        assert (
            isinstance(event, Advanced | EpochDone | TrialDone) or type(event).__name__ == "Started"
        )
    return weights, results


MIXED = [
    trial("lora", 0, {"r": 4}),
    trial("bitfit", 1, learning_rate=3e-2, per_device_train_batch_size=7),
    trial("lora", 2, {"r": 1, "target_modules": "all-linear", "use_rslora": True},
          gradient_accumulation_steps=3),
    trial("head", 3, num_train_epochs=1, lr_scheduler_type="cosine"),
    trial("bitfit", 0, {"terms": "paper-subset"}, max_grad_norm=0.05, max_steps=9),
    trial("full", 5, learning_rate=1e-3),
    trial("lora", 6, {"r": 3, "lora_alpha": 12.0}, label_smoothing_factor=0.1, max_grad_norm=0),
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("bert").double()


@pytest.fixture(scope="module")
def together(model: Any) -> Any:
    return train(model, MIXED)


@pytest.mark.parametrize("given", MIXED, ids=lambda g: g.spec.id)
def test_mixed_cohort_is_the_plain_loop(model: Any, together: Any, given: TrialInput) -> None:
    weights, results = together
    expected, losses = solo.train(model, given, HEAD)
    found = weights[given.spec.id]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    batch = given.settings.per_device_train_batch_size
    sizes = [min(batch, 38 - i) for i in range(0, 38, batch)]
    for epoch, result in enumerate(results[given.spec.id]):
        mine = losses[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        assert result.loss == pytest.approx(
            np.average(mine, weights=sizes[: len(mine)]), rel=1e-9, abs=1e-9
        )


# 3 micro-batches an epoch, the last one smaller.
WITH_DROPOUT = [
    trial("lora", 0, {"r": 4, "lora_dropout": 0.3}, rows=13, dropout=None),
    trial("bitfit", 0, rows=13, dropout=None),
    trial("lora", 1, {"r": 4, "lora_dropout": 0.3}, rows=13, dropout=0.2),
    trial("head", 2, rows=13, dropout=0.5),
]


@pytest.mark.parametrize(
    "family",
    ["bert", "modernbert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("albert", "mpnet"))],
)
def test_dropout_does_not_depend_on_the_company(family: str) -> None:
    """Alone, in company, with few tokens a pass, joining late: the same weights."""
    model = tiny_model(family).double()
    inputs = (
        WITH_DROPOUT
        if family != "modernbert"
        else [g for g in WITH_DROPOUT if g.method.name != "bitfit"]
    )
    together, _ = train(model, inputs)
    reversed_late, _ = train(model, inputs[::-1], size=2, max_tokens=150)
    for given in inputs:
        alone, _ = train(model, [given])
        for name, value in alone[given.spec.id].items():
            for found in (together, reversed_late):
                assert_close(found[given.spec.id][name], value, rtol=1e-9, atol=1e-9)


def test_dropout_differs_between_seeds(model: Any) -> None:
    same_start = [trial("lora", seed, {"lora_dropout": 0.3}, dropout=0.0) for seed in (0, 1)]
    weights, _ = train(model, same_start)
    first, second = (
        weights[g.spec.id]["bert.encoder.layer.0.attention.self.query.lora_B"] for g in same_start
    )
    assert not torch.allclose(first, second)


def test_training_moves_no_global_generator(model: Any) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(model, WITH_DROPOUT[:2])
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_starts_as_the_backbone(model: Any, name: str) -> None:
    """Before the first step a method leaves the backbone's output unchanged."""
    engine = Engine(copy.deepcopy(model), dtype=torch.float64)
    rows = Rows(SELECTION, np.arange(11), SELECTION_LABELS)
    head = make_method("head", {})
    plain, own = (engine.owned(make_method(m, {}), 3) for m in (head.name, name))
    expected, found = engine.predict([plain, own], [rows, rows], [4, 6])
    assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
