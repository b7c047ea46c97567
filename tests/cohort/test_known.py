"""Trials that enter the encoder above what never changes, on values worked out once: as if they went through all of it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fleetune.cohort import known
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, EpochDone
from fleetune.cohort.known import Entry
from fleetune.cohort.passes import cut, micro_batches
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Trial, TrialInput
from fleetune.data.packing import pack
from tests.cohort.test_isolation import HEAD, trial
from tests.oracles import solo
from tests.tiny import CONFIGS, tiny_model

HEADS = [
    trial("head", 0),
    trial("head", 1, gradient_accumulation_steps=2, per_device_train_batch_size=7),
    trial("head", 2, learning_rate=3e-2, label_smoothing_factor=0.1),
]
MATES = [trial("bitfit", 3), trial("head", 4, dropout=0.2)]
UPPER = [
    trial("lora", 5, {"r": 2, "layers_to_transform": (1,)}),
    trial("lora", 6, {"r": 3, "layers_to_transform": (1,), "target_modules": "all-linear"}),
]


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


def entry(engine: Engine, given: TrialInput) -> Entry:
    """Where a trial's next micro-batch enters."""
    (part,) = micro_batches(engine, [Trial(given, engine.start(given))])
    return part.entry


# Those whose layers differ most; the others with the long tests.
QUICK = ("bert", "modernbert")


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in CONFIGS]
)
def test_what_never_changes_is_left_out_and_nothing_else_changes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In company of trials that need the whole encoder, against a cohort without known values."""
    model = tiny_model(family).double()
    with_biases = family not in ("modernbert", "eurobert", "deberta-v2")
    upper = [] if family == "albert" else UPPER
    inputs = [*HEADS, *upper, *(MATES if with_biases else [])]
    if family == "deberta-v2":
        inputs = HEADS[:1]
    engine = engine_of(model)
    found = outcome(engine, inputs)
    padded = family in ("mpnet", "deberta-v2")
    # eurobert's head reads every token; the padded families keep to their own code.
    assert entry(engine, HEADS[0]) == (0 if padded or family == "eurobert" else None)
    if upper:
        assert entry(engine, UPPER[0]) == (0 if padded else 1)
    monkeypatch.setattr(known, "MOST_BYTES", 0)
    plain = engine_of(model)
    assert all(entry(plain, given) == 0 for given in inputs)
    expected = outcome(plain, inputs)
    for ident, (weights, results) in expected.items():
        for mine, other in zip(found[ident][1], results, strict=True):
            assert mine[0] == pytest.approx(other[0], rel=1e-9)
            assert mine[1] == pytest.approx(other[1], rel=1e-9)
        for name, value in weights.items():
            assert_close(found[ident][0][name], value, rtol=1e-9, atol=1e-9)


def test_it_is_the_plain_loop() -> None:
    model = tiny_model("bert").double()
    found = outcome(engine_of(model), [*HEADS, *UPPER])
    for given in [*HEADS, *UPPER]:
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


def test_lower_layers_run_once_a_row() -> None:
    """Of two layers the lower one sees each row once, and the upper one in every epoch."""
    engine = engine_of(tiny_model("bert").double())
    seen: list[tuple[int, int]] = []
    for number in (0, 1):
        query = engine.backbone.model.bert.encoder.layer[number].attention.self.query
        query.register_forward_hook(
            lambda *_, n=number: seen.append((n, engine.backbone.current.require().n_sequences))
        )
    outcome(engine, [trial("lora", 0, {"layers_to_transform": (1,)}, num_train_epochs=4)])
    rows = [sum(n for layer, n in seen if layer == number) for number in (0, 1)]
    assert rows == [38 + 11, 4 * (38 + 11)]


def test_only_what_nothing_changes_is_left_out() -> None:
    engine = engine_of(tiny_model("bert").double())
    assert entry(engine, trial("head")) is None
    assert entry(engine, trial("head", dropout=None)) == 0, "the backbone's own dropout changes it"
    assert entry(engine, trial("head", dropout=0.1)) == 0
    assert entry(engine, trial("bitfit")) == entry(engine, trial("full")) == 0
    assert entry(engine, trial("lora")) == 0
    upper = {"layers_to_transform": (1,), "lora_dropout": 0.5}
    assert entry(engine, trial("lora", 0, upper)) == 1, "its own dropout acts above"
    assert entry(engine, trial("lora", 0, upper, dropout=0.1)) == 0
    assert entry(engine, trial("lora", 0, {"layers_to_transform": (0, 1)})) == 0


def test_trials_that_enter_elsewhere_never_share_a_pass() -> None:
    engine = engine_of(tiny_model("bert").double())
    trials = [Trial(g, engine.start(g)) for g in [MATES[0], *HEADS, UPPER[0], MATES[1], UPPER[1]]]
    passes = cut(micro_batches(engine, trials), 10**6, 1)
    assert [[part.entry for part in one] for one in passes] == [[None] * 3, [0, 0], [1, 1]]


def test_tables_that_do_not_fit_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny_model("bert").double())
    train, selection = HEADS[0].train.table, HEADS[0].selection.table
    monkeypatch.setattr(known, "MOST_BYTES", len(train) * 32 * 8)
    assert engine.known.holds(train, None) and not engine.known.holds(selection, None)
    assert not engine.known.holds(selection, 1)
    assert engine.known.of(train, None, np.arange(len(train))).shape == (len(train), 32)


def test_known_values_are_those_of_the_rows_asked_for() -> None:
    """Token by token, in any order and twice, against the hidden states that the layer itself sees."""
    engine = engine_of(tiny_model("bert").double())
    table = HEADS[0].train.table
    rows = np.array([5, 0, 17, 5])
    seen: list[Tensor] = []
    layer = engine.backbone.model.bert.encoder.layer[1]
    query = layer.attention.self.query
    assert engine.known.holds(table, 1)
    query.register_forward_hook(lambda _m, args, _o: seen.append(args[0][0]))
    with torch.no_grad():
        engine.backbone.pooled(pack([(table, rows)]))
    assert_close(engine.known.of(table, 1, rows), seen[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [HEADS[0], UPPER[0]], ids=["head", "upper layers"])
def test_without_memory_for_the_values_the_encoder_is_used(
    given: TrialInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_model("bert").double())

    def refuse(*_: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(engine.backbone, "pooled", refuse)
    monkeypatch.setattr(engine.backbone, "entering", refuse)
    assert entry(engine, given) == 0
    assert outcome(engine, [given]).keys() == {given.spec.id}


def test_progress_counts_what_left_the_encoder_out() -> None:
    """A plan counts all tokens of all epochs, so what is told of a round does too."""
    given = [trial("head", seed, num_train_epochs=3) for seed in range(2)]
    engine = engine_of(tiny_model("bert").double())
    told = [
        e.tokens
        for e in Cohort(engine, given, size=8, max_tokens=200).run()
        if isinstance(e, Advanced)
    ]
    rows = given[0].train
    assert sum(told) == 2 * 3 * int(rows.table.lengths[rows.rows].sum())
