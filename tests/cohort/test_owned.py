"""What a trial starts from: fresh heads as transformers makes them, in the dtype of the computation."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from fleetune.backbone.load import quiet
from fleetune.cohort.engine import Engine
from fleetune.methods.table import make_method
from tests.cohort.outcomes import train, trial
from tests.tiny import CONFIGS, tiny_model


def as_made(family: str) -> Any:
    """A model as transformers initialises it."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **CONFIGS[family], num_labels=3)
        return AutoModelForSequenceClassification.from_config(config)


def fresh_of(model: Any) -> frozenset[str]:
    """What a checkpoint of a masked-language model lacks: head and pooler."""
    base = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters()]
    return frozenset(n for n in names if not n.startswith(base) or ".pooler." in n)


@pytest.mark.parametrize("family", CONFIGS)
def test_fresh_parameters_have_transformers_scale(family: str) -> None:
    """Each spreads as one that transformers draws itself, within five standard errors of that ratio, 1 / sqrt(n); what it
    sets to a constant is that constant. Seeds differ."""
    model = as_made(family)
    fresh = fresh_of(model)
    expected = {n: p.detach().clone() for n, p in model.named_parameters() if n in fresh}
    engine = Engine(model, fresh)
    found, other = (engine.owned(make_method("head", {}), seed).tensors for seed in (0, 1))
    for name, value in expected.items():
        mine = found[name].detach()
        if float(value.std()) == 0:
            assert torch.equal(mine, value), name
            continue
        ratio = float(mine.std() / value.std())
        assert ratio == pytest.approx(1, abs=5 / value.numel() ** 0.5), name
        assert not torch.equal(mine, other[name]), name


def test_low_rank_factors_start_as_in_peft() -> None:
    """A uniform within 1 / sqrt(d_in), of each site and each seed its own; B is zero."""
    model = tiny_model("bert")
    engine = Engine(model, fresh_of(model))
    one, other = (engine.owned(make_method("lora", {"r": 8}), seed).tensors for seed in (0, 1))
    downs = [name for name in one if name.endswith(".lora_A")]
    for name in downs:
        values, bound = one[name].detach(), one[name].shape[1] ** -0.5
        assert 0.9 * bound < float(values.abs().max()) <= bound, name
        assert not torch.equal(values, other[name]), name
        assert not one[f"{name.removesuffix('A')}B"].any(), name
    assert len(downs) == 4
    assert not any(torch.equal(one[a], one[b]) for a, b in combinations(downs, 2))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_fresh_parameters_take_the_wide_dtype(family: str) -> None:
    """Weights are read in float32, whatever is computed in; a head of another dtype than its input could not run."""
    model = tiny_model(family)
    engine = Engine(model, fresh_of(model), dtype=torch.float64)
    ending = train(engine, [trial("head", num_train_epochs=1)])["head-0"]
    assert ending.how == "done"
    assert {tensor.dtype for tensor in ending.best.values()} == {torch.float64}
    narrow = Engine(tiny_model(family), fresh_of(model))
    for name, value in narrow.owned(make_method("head", {}), 0).tensors.items():
        wide = engine.owned(make_method("head", {}), 0).tensors[name]
        assert np.array_equal(wide.detach().numpy(), value.detach().numpy().astype(np.float64))
