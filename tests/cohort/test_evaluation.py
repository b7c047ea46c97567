"""Evaluation's passes: what is in them, and that predictions are the same however rows are laid into them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetune.cohort import engine as engine_module
from fleetune.cohort import evaluation
from fleetune.cohort.engine import Engine
from fleetune.cohort.evaluation import evaluation_passes
from fleetune.cohort.owned import Owned
from fleetune.cohort.trial import Rows
from fleetune.seeds import stream
from tests.cohort.test_isolation import HEAD, trial
from tests.tiny import tiny_model

LENGTHS = st.lists(st.integers(1, 256), min_size=1, max_size=200).map(np.asarray)
TRIALS = st.lists(st.tuples(LENGTHS, st.integers(1, 64)), min_size=1, max_size=5)


def held(passed: list[tuple[int, NDArray[np.int64]]], lengths: list[NDArray[np.int64]]) -> int:
    """Tokens of a pass."""
    return sum(int(lengths[k][rows].sum()) for k, rows in passed)


@given(trials=TRIALS, lanes=st.integers(1, 4))
def test_every_row_is_in_one_pass_and_no_batch_is_larger_than_asked(
    trials: list[tuple[NDArray[np.int64], int]], lanes: int
) -> None:
    lengths, sizes = [own for own, _ in trials], [size for _, size in trials]
    passes = evaluation_passes(lengths, sizes, sum(int(own.sum()) for own in lengths), lanes)
    for k, (own, size) in enumerate(trials):
        mine = [rows for one in passes for i, rows in one if i == k]
        assert sorted(np.concatenate(mine)) == list(range(len(own)))
        assert 1 <= min(map(len, mine)) <= max(map(len, mine)) <= size
    assert all([k for k, _ in one] == sorted({k for k, _ in one}) for one in passes)


@given(trials=TRIALS, lanes=st.integers(2, 4))
def test_passes_side_by_side_weigh_the_same(
    trials: list[tuple[NDArray[np.int64], int]], lanes: int
) -> None:
    lengths, sizes = [own for own, _ in trials], [size for _, size in trials]
    total = sum(int(own.sum()) for own in lengths)
    passes = evaluation_passes(lengths, sizes, total, lanes)
    least = max(-(-len(own) // size) for own, size in trials)
    if total < evaluation.LEAST_TOKENS * (least + lanes - 1):
        assert len(passes) <= least or len(passes) % lanes == 0
        return
    # Of each trial, what side by side passes hold differs by no more than from its longest row to its shortest.
    weights = [held(one, lengths) for one in passes]
    for turn in range(0, len(passes) - lanes + 1, lanes):
        beside = weights[turn : turn + lanes]
        assert max(beside) - min(beside) <= sum(int(own.max()) for own in lengths)


def test_a_few_rows_are_cut_for_the_lanes_only_where_they_suffice() -> None:
    """Rows that fit one batch keep every lane busy, unless a pass would be too small for what its calls cost."""

    def passes(rows: int) -> int:
        return len(evaluation_passes([np.full(rows, 32)], [64], rows * 32, 2))

    assert [passes(rows) for rows in (1, 11, 12, 64, 65, 130)] == [1, 1, 2, 2, 2, 4]


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert"])
def test_predictions_do_not_depend_on_passes_or_lanes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "LEAST_TOKENS", 1)
    model = tiny_model(family).double()
    inputs = [
        trial("lora", 0, {"r": 4}, rows=13),
        trial("bitfit", 1, {"add_missing": True}, rows=13),
        trial("full", 2, rows=13),
        trial("head", 3, rows=13),
    ]

    def predictions(lanes: int, sizes: list[int]) -> list[NDArray[Any]]:
        engine = Engine(copy.deepcopy(model), HEAD, dtype=torch.float64)
        engine.lanes.count = lanes
        owned = [engine.start(one) for one in inputs]
        return engine.predict(owned, [one.selection for one in inputs], sizes)

    one_by_one = predictions(1, [1, 1, 1, 1])
    for lanes, sizes, ahead in (
        (1, [64] * 4, 32), (2, [64] * 4, 1), (3, [4, 11, 1, 5], 2), (16, [64] * 4, 32), (1, [2] * 4, 1),
    ):  # fmt: skip
        monkeypatch.setattr(engine_module, "_AHEAD", ahead)
        for expected, found in zip(one_by_one, predictions(lanes, sizes), strict=True):
            assert expected.shape == (11, 3)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("family", "method"), [("deberta-v2", "lora"), ("mpnet", "full")])
def test_who_cannot_share_a_pass_is_predicted_alone(family: str, method: str) -> None:
    """Beside one another a table of relative positions would be taken for rows of the trials."""
    engine = Engine(tiny_model(family).double(), HEAD, dtype=torch.float64)
    inputs = [trial(method, seed, rows=13) for seed in (0, 1)]
    owned = [engine.start(one) for one in inputs]
    with torch.no_grad():
        for k, own in enumerate(owned):
            for flat in own.flats:
                flat += 0.1 * torch.from_numpy(stream(k, "apart").normal(size=len(flat)))
    rows = [one.selection for one in inputs]
    together = engine.predict(owned, rows, [64, 64])
    for own, one, found in zip(owned, rows, together, strict=True):
        (alone,) = engine.predict([own], [one], [64])
        np.testing.assert_allclose(found, alone, rtol=1e-12, atol=1e-12)


def one_trial() -> tuple[Engine, Owned, Rows, list[NDArray[Any]]]:
    """An engine, a trial's state and rows there, and what it predicts of them."""
    engine = Engine(tiny_model("bert").double(), HEAD, dtype=torch.float64)
    given = trial("lora", 0, rows=13)
    owned, rows = engine.start(given), given.selection
    return engine, owned, rows, engine.predict([owned], [rows], [64])


def test_smaller_batches_are_tried_where_memory_does_not_suffice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, owned, rows, expected = one_trial()
    logits_of, tried, most = engine.logits_of, list[int](), 3

    def short(*words: Any) -> torch.Tensor:
        tried.append(len(words[1][0]))
        if tried[-1] > most:
            raise MemoryError
        return logits_of(*words)

    monkeypatch.setattr(engine, "logits_of", short)
    (found,) = engine.predict_in_room([owned], [rows], [64])
    np.testing.assert_allclose(found, expected[0], rtol=1e-12, atol=1e-12)
    assert max(tried) == 11 and tried[-1] <= 3
    most = 0
    with pytest.raises(MemoryError):
        engine.predict_in_room([owned], [rows], [64])


def test_what_is_held_for_speed_gives_way_before_batches_become_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, owned, rows, expected = one_trial()
    held, tried, predict = 1, list[int](), engine.predict

    def gives_way() -> bool:
        nonlocal held
        held, before = 0, held
        return before > 0

    def short(*words: Any) -> list[NDArray[Any]]:
        tried.extend(words[2])
        if held:
            raise MemoryError
        return predict(*words)

    monkeypatch.setattr(engine, "gives_way", gives_way)
    monkeypatch.setattr(engine, "predict", short)
    (found,) = engine.predict_in_room([owned], [rows], [64])
    np.testing.assert_array_equal(found, expected[0])
    assert tried == [64, 64]
