"""Trials that train the head alone on vectors worked out once: the same computation as through the encoder."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fleetune.cohort import pooled
from fleetune.cohort.engine import Engine
from fleetune.cohort.passes import cut, micro_batches
from fleetune.cohort.train import Cohort, EpochDone
from fleetune.cohort.trial import Trial, TrialInput
from tests.cohort.test_isolation import HEAD, trial
from tests.oracles import solo
from tests.tiny import CONFIGS, tiny_model

HEADS = [
    trial("head", 0),
    trial("head", 1, gradient_accumulation_steps=2, per_device_train_batch_size=7),
    trial("head", 2, learning_rate=3e-2, label_smoothing_factor=0.1),
]
MATES = [trial("bitfit", 3), trial("head", 4, dropout=0.2)]


def engine_of(model: Any) -> Engine:
    return Engine(copy.deepcopy(model), HEAD, dtype=torch.float64)


def outcome(engine: Engine, inputs: list[TrialInput]) -> dict[str, Any]:
    """Final weights, epoch losses and selection metrics by trial."""
    found = {}
    for event in Cohort(engine, inputs, size=8, max_tokens=200).run():
        if isinstance(event, EpochDone):
            results = [(r.loss, dict(r.selection)) for r in event.trial.results]
            found[event.trial.id] = (event.trial.owned.state(), results)
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_the_encoder_is_skipped_and_nothing_changes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In company of trials that need the encoder, against a cohort without the cache."""
    model = tiny_model(family).double()
    shares = family not in ("modernbert", "eurobert", "deberta-v2")
    inputs = [*HEADS, *(MATES if shares else [])] if family != "deberta-v2" else HEADS[:1]
    engine = engine_of(model)
    found = outcome(engine, inputs)
    skipped = engine.skips_encoder(engine.start(HEADS[0]), HEADS[0].train, dropout=0.0)
    # eurobert's head reads every token; the padded families keep to their own code.
    assert skipped == (family not in ("eurobert", "mpnet", "deberta-v2"))
    monkeypatch.setattr(pooled, "MOST_BYTES", 0)
    plain = engine_of(model)
    assert not plain.skips_encoder(plain.start(HEADS[0]), HEADS[0].train, dropout=0.0)
    expected = outcome(plain, inputs)
    for ident, (weights, results) in expected.items():
        for mine, other in zip(found[ident][1], results, strict=True):
            assert mine[0] == pytest.approx(other[0], rel=1e-9)
            assert mine[1] == pytest.approx(other[1], rel=1e-9)
        for name, value in weights.items():
            assert_close(found[ident][0][name], value, rtol=1e-9, atol=1e-9)


def test_it_is_the_plain_loop() -> None:
    model = tiny_model("bert").double()
    found = outcome(engine_of(model), HEADS)
    for given in HEADS:
        expected, _ = solo.train(model, given, HEAD)
        for name, value in expected.items():
            assert_close(found[given.spec.id][0][name], value, rtol=1e-9, atol=1e-9)


def test_the_encoder_runs_once_a_row() -> None:
    """However many epochs and trials: 38 training rows in one pass of 64, 11 selection rows in another."""
    engine = engine_of(tiny_model("bert").double())
    rows: list[int] = []
    layer = engine.backbone.model.bert.encoder.layer[0]
    layer.register_forward_hook(
        lambda *_: rows.append(engine.backbone.current.require().n_sequences)
    )
    outcome(engine, [trial("head", seed, num_train_epochs=4) for seed in range(3)])
    assert rows == [38, 11]


def test_only_a_fixed_encoder_is_skipped() -> None:
    engine = engine_of(tiny_model("bert").double())

    def skips(given: TrialInput) -> bool:
        (part,) = micro_batches(engine, [Trial(given, engine.start(given))])
        return part.skips_encoder

    assert skips(trial("head"))
    assert not skips(trial("head", dropout=None)), "the backbone's own dropout changes every pass"
    assert not skips(trial("head", dropout=0.1))
    assert not skips(trial("bitfit")) and not skips(trial("lora")) and not skips(trial("full"))


def test_trials_with_and_without_encoder_never_share_a_pass() -> None:
    engine = engine_of(tiny_model("bert").double())
    trials = [Trial(g, engine.start(g)) for g in [MATES[0], *HEADS, MATES[1]]]
    passes = cut(micro_batches(engine, trials), 10**6, 1)
    assert [[part.skips_encoder for part in one] for one in passes] == [[True] * 3, [False] * 2]


def test_tables_that_do_not_fit_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny_model("bert").double())
    train, selection = HEADS[0].train.table, HEADS[0].selection.table
    monkeypatch.setattr(pooled, "MOST_BYTES", len(train) * 32 * 8)
    assert engine.pooled.holds(train) and not engine.pooled.holds(selection)
    assert engine.pooled.of(train).shape == (len(train), 32)


def test_without_memory_for_the_vectors_the_encoder_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(tiny_model("bert").double())

    def refuse(_packed: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(engine.backbone, "pooled", refuse)
    assert not engine.skips_encoder(engine.start(HEADS[0]), HEADS[0].train, dropout=0.0)
    assert outcome(engine, HEADS).keys() == {given.spec.id for given in HEADS}
