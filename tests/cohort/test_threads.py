"""Threads beside each other: lanes within a cohort, and programs that train in several threads of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from fleetune.cohort.engine import Engine
from fleetune.cohort.lanes import Lanes, single_threads
from fleetune.methods.table import make_method
from tests.cohort.outcomes import assert_bit_equal, head_of, train, trial
from tests.tiny import tiny_model


def in_a_new_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_lanes_have_one_thread_and_leave_the_number_of_all_others() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        lanes = Lanes(torch.device("cpu"))
        assert lanes.map(lambda _: torch.get_num_threads(), range(7)) == [1] * 7
        assert in_a_new_thread(torch.get_num_threads) == torch.get_num_threads() == 3
        with single_threads(1, "one") as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
        assert in_a_new_thread(lambda: Lanes(torch.device("cpu")).count) == 3
    finally:
        torch.set_num_threads(before)


def slow_to_train(model: torch.nn.Module, seconds: float) -> None:
    """Let a pause stand where `Module.train` has told the root and not yet what is below it, as a thread may be cut there."""

    def training(mode: bool = True) -> torch.nn.Module:
        model.training = mode
        time.sleep(seconds)
        for child in model.children():
            child.train(mode)
        return model

    model.train = training  # type: ignore[method-assign]


def test_no_lane_goes_on_before_all_leaves_know_that_it_trains() -> None:
    """Attention that was not told yet would hand on no dropout."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for pause in (0.0, 0.02):
            model = tiny_model("bert").double()
            engine = Engine(model, head_of(model), dtype=torch.float64)
            slow_to_train(engine.backbone.model, pause)
            trials = [trial(seed=k, dropout=None, num_train_epochs=2) for k in range(6)]
            found.append(train(engine, trials, max_tokens=60))
        for name, ending in found[0].items():
            assert_bit_equal(found[1][name], ending)
    finally:
        torch.set_num_threads(before)


def test_heads_of_two_threads_are_those_of_their_seeds() -> None:
    """transformers draws from one generator of the whole process."""
    seeds, method = range(24), make_method("head", {})

    def heads(engine: Engine) -> list[dict[str, torch.Tensor]]:
        return [engine.owned(method, seed).state() for seed in seeds]

    def engine() -> Engine:
        model = tiny_model("roberta")
        return Engine(model, head_of(model))

    engines, start = [engine() for _ in range(4)], threading.Barrier(4)

    def at_once(engine: Engine) -> list[list[dict[str, torch.Tensor]]]:
        start.wait()
        return [heads(engine) for _ in range(4)]

    expected, state = heads(engine()), torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = [one for every in pool.map(at_once, engines) for one in every]
    for one in found:
        for mine, other in zip(one, expected, strict=True):
            assert all(torch.equal(mine[name], value) for name, value in other.items())
    assert torch.equal(torch.get_rng_state(), state)
