"""Where memory does not suffice: the pass is undone and done again in smaller ones, and nothing else changes.

Failures are injected at every leaf's forward and backward. The reference is the same cohort with the smaller limit set by
hand before that round: the passes are then composed the same, so all must be bit-equal. Parts of a micro-batch add up its
gradient in another order, so there the reference is a machine with room, but for float64's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fleetune.backbone.shortage import is_out_of_memory
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, Event, PassesShrunk
from fleetune.cohort.layers import Leaf
from fleetune.cohort.train import Cohort
from fleetune.data.packing import Packed
from tests.cohort.outcomes import assert_bit_equal, head_of, train, trial
from tests.tiny import tiny_model

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
    ),
]
# Every epoch is one step of three micro-batches: rounds 2 and 3 find gradients of the ones before.
THREES = {"gradient_accumulation_steps": 3, "rows": 12, "num_train_epochs": 1}
TRIALS = [
    trial("lora", {"r": 2, "lora_dropout": 0.2}, ident="a", dropout=0.1, **THREES),
    trial("bitfit", ident="b", seed=1, rows=12, num_train_epochs=1),
    trial("lora", {"target_modules": "all-linear"}, ident="c", seed=2, **THREES),
    trial("head", ident="d", seed=3, rows=11, num_train_epochs=1, dropout=0.1),
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One layer: every leaf of it is tried."""
    model = tiny_model("bert", num_hidden_layers=1).double()
    return Engine(model, head_of(model), dtype=torch.float64)


class Failing:
    """Raises once, in training, at the n-th call of a leaf's forward or of its output's gradient."""

    def __init__(self, where: str, at: int, error: BaseException, round_: int = 2) -> None:
        self.where, self.at, self.error, self.round = where, at, error, round_
        self.rounds = 1
        self.forwards = self.backwards = 0
        self.raised = False

    def _now(self, count: int) -> None:
        if self.rounds == self.round and count == self.at and not self.raised:
            self.raised = True
            raise self.error

    def __call__(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        self.forwards += 1
        if self.where == "forward":
            self._now(self.forwards)
        elif output.requires_grad:
            output.register_hook(self._gradient)

    def _gradient(self, _: Tensor) -> None:
        self.backwards += 1
        self._now(self.backwards)

    def watch(self, _cohort: Cohort, event: Event) -> None:
        if isinstance(event, Advanced):
            self.rounds += 1
            self.forwards = self.backwards = 0


@contextmanager
def injected(engine: Engine, hook: Callable[..., None]) -> Generator[None]:
    leaves = [m for m in engine.backbone.model.modules() if isinstance(m, Leaf)]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    yield
    for handle in handles:
        handle.remove()


class Recorder:
    """The limits that were announced, and the trials' tokens of each round."""

    def __init__(self, *others: Callable[[Cohort, Event], None]) -> None:
        self.others, self.shrunk = others, []

    def __call__(self, cohort: Cohort, event: Event) -> None:
        if isinstance(event, PassesShrunk):
            self.shrunk.append((event.training, event.evaluation))
        for other in self.others:
            other(cohort, event)


def with_limit(engine: Engine, tokens: int, rounds: int) -> Any:
    """The reference: the limit lowered by hand after so many rounds."""
    seen = 0

    def watch(cohort: Cohort, event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Advanced)
        if seen == rounds:
            cohort.max_tokens = tokens

    return train(engine, TRIALS, watch=watch)


def calls(engine: Engine) -> tuple[int, int]:
    """How many leaves run forward and backward in one pass."""
    counter = Failing("backward", -1, MemoryError(), round_=-1)
    most = [0, 0]

    def count(_cohort: Cohort, event: Event) -> None:
        if isinstance(event, Advanced):
            most[0] = max(most[0], counter.forwards)
            most[1] = max(most[1], counter.backwards)
            counter.forwards = counter.backwards = 0

    with injected(engine, counter):
        train(engine, TRIALS, watch=count)
    return most[0], most[1]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_failed_pass_is_done_again_in_smaller_ones(engine: Engine, where: str) -> None:
    """At every leaf, in the second round, in the midst of accumulation groups."""
    points = calls(engine)[where == "backward"]
    assert points > 10
    expected: dict[int, Any] = {}
    for at in range(1, points + 1):
        failing = Failing(where, at, ERRORS[at % len(ERRORS)])
        recorder = Recorder(failing.watch)
        with injected(engine, failing):
            found = train(engine, TRIALS, watch=recorder)
        assert failing.raised
        ((tokens, _),) = recorder.shrunk
        if tokens not in expected:
            expected[tokens] = with_limit(engine, tokens, rounds=1)
        for ident, end in found.items():
            assert_bit_equal(end, expected[tokens][ident])
    assert len(expected) == 1, "the same pass failed each time"


def test_halves_that_fail_are_halved_again(engine: Engine) -> None:
    """Down to single trials; and the smaller passes stay in force for all later rounds."""
    most: list[int] = []

    def refuse(_module: Any, _inputs: Any, output: Tensor) -> None:
        stream = engine.backbone.current.require()
        if torch.is_grad_enabled():
            if stream.n_trials > 1 and len(most) > 20:
                raise MemoryError
            most.append(stream.n_trials)

    recorder = Recorder()
    with injected(engine, refuse):
        found = train(engine, TRIALS, watch=recorder)
    assert most[0] == len(TRIALS) and most[-1] == 1
    # From the first failure on nothing but single trials has passed; each limit is announced.
    limits = [tokens for tokens, _ in recorder.shrunk]
    assert limits == sorted(limits, reverse=True) and len(set(limits)) == len(limits)
    alone = train(engine, TRIALS)
    for ident, end in found.items():
        # Other passes, so other last bits: float64 rounding over at most six steps.
        for mine, other in zip(end.epochs, alone[ident].epochs, strict=True):
            for name, value in other.items():
                assert_close(mine[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_trial_that_does_not_fit_alone_fails_alone(engine: Engine, where: str) -> None:
    """Not even a row of it. The message names what to lower; the others end as they would without it."""
    large = trial("lora", ident="large", seed=5, per_device_train_batch_size=8)
    rows: list[int] = []

    def refuse(_module: Any, _inputs: Any, output: Tensor) -> None:
        noise = engine.backbone.current.require().noise
        if noise is None or all(key.seed != 5 for key in noise.keys):
            return
        rows.append(engine.backbone.current.require().n_sequences)
        if where == "forward":
            raise MemoryError
        if output.requires_grad:
            output.register_hook(lambda _: (_ for _ in ()).throw(MemoryError()))

    with injected(engine, refuse):
        found = train(engine, [TRIALS[0], large, *TRIALS[1:]])
    assert rows[-1] == 1
    assert (
        "its micro-batch of 8 rows does not fit in memory: even 1 of them (" in found["large"].how
    )
    assert "lower max_length" in found["large"].how
    alone = train(engine, TRIALS)
    for one in TRIALS:
        mine = found[one.spec.id]
        assert mine.how == "done"
        for name, value in alone[one.spec.id].epochs[-1].items():
            assert_close(mine.epochs[-1][name], value, rtol=1e-9, atol=1e-9)


def refusing(engine: Engine, most: int, where: str, refused: list[int]) -> Callable[..., None]:
    """A hook that lets no pass of training through that holds more tokens; refused: theirs."""

    def refuse(module: Any, _inputs: Any, output: Tensor) -> None:
        tokens = engine.backbone.current.require().n_tokens
        if not torch.is_grad_enabled() or tokens <= most:
            return

        def fail(_: Any = None) -> None:
            refused.append(tokens)
            raise MemoryError

        if where == "forward":
            fail()
        # By then the head has its gradient, and of these trials it is the lowest that has one.
        elif "layer.0.attention.self.value" in module.name and output.requires_grad:
            output.register_hook(fail)

    return refuse


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_micro_batch_that_does_not_fit_is_done_in_parts(
    engine: Engine, where: str, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and in company, in the midst of accumulation groups, with dropout: the numbers of a machine with room."""
    noisy = {"dropout": 0.2, "rows": 15, "num_train_epochs": 2, "per_device_train_batch_size": 8}
    lora = trial("lora", {"r": 2, "lora_dropout": 0.2}, ident="a", **noisy)
    groups = trial("bitfit", ident="b", seed=1, gradient_accumulation_steps=2, **noisy)
    small = trial("lora", ident="c", seed=2, rows=4, per_device_train_batch_size=1)
    monkeypatch.setattr(engine.lanes, "count", lanes)
    for given in ([lora], [groups], [lora, groups, small]):
        plain = train(engine, given)
        refused: list[int] = []
        with injected(engine, refusing(engine, 30, where, refused)):
            found = train(engine, given)
        assert refused
        if len(given) == lanes == 1:
            assert refused == sorted(set(refused), reverse=True), (
                "what is known not to fit is not tried"
            )
        for ident, ending in plain.items():
            assert found[ident].how == "done"
            for mine, other in zip(found[ident].epochs, ending.epochs, strict=True):
                for name, value in other.items():
                    assert_close(mine[name], value, rtol=1e-9, atol=1e-9)
            for one, other in zip(found[ident].results, ending.results, strict=True):
                assert one.loss == pytest.approx(other.loss, rel=1e-9)


def test_rows_on_known_values_that_do_not_fit_are_done_in_parts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [trial("head", rows=15, per_device_train_batch_size=8, num_train_epochs=2)]
    plain = train(engine, given)
    from_pooled = engine.backbone.from_pooled

    def refuse(values: Tensor, *rest: Any) -> Tensor:
        if torch.is_grad_enabled() and len(values) > 3:
            raise MemoryError
        return from_pooled(values, *rest)

    monkeypatch.setattr(engine.backbone, "from_pooled", refuse)
    (found,) = train(engine, given).values()
    (ending,) = plain.values()
    for name, value in ending.epochs[-1].items():
        assert_close(found.epochs[-1][name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("refused", [1, 10**6])
def test_heads_on_known_values_that_fail_cost_their_mates_nothing(
    engine: Engine, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their pass holds rows and no tokens, and the limit is one of tokens."""
    heads = [trial("head", ident=f"h{k}", seed=k, rows=8, num_train_epochs=1) for k in range(2)]
    given = [*heads, TRIALS[1]]
    plain = train(engine, given)
    from_pooled, calls = engine.backbone.from_pooled, 0

    def refuse(values: Tensor, packed: Packed, *rest: Any) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if torch.is_grad_enabled() and calls <= refused and len(packed.trials) > 2:
            raise MemoryError
        return from_pooled(values, packed, *rest)

    monkeypatch.setattr(engine.backbone, "from_pooled", refuse)
    recorder = Recorder()
    found = train(engine, given, watch=recorder)
    assert recorder.shrunk == []
    for ident, ending in plain.items():
        assert_bit_equal(found[ident], ending)


def test_evaluation_that_fails_is_done_again_in_smaller_passes(engine: Engine) -> None:
    """First fewer trials at once, then fewer rows; the metrics are those of one large pass."""

    def refuse(_module: Any, _inputs: Any, _output: Tensor) -> None:
        stream = engine.backbone.current.require()
        if not torch.is_grad_enabled() and stream.n_sequences > 2:
            raise MemoryError

    recorder = Recorder()
    with injected(engine, refuse):
        found = train(engine, TRIALS, watch=recorder)
    assert recorder.shrunk and all(training == 10**6 for training, _ in recorder.shrunk)
    plain = train(engine, TRIALS)
    for ident, end in found.items():
        assert end.how == "done"
        for mine, other in zip(end.results, plain[ident].results, strict=True):
            assert mine.selection == pytest.approx(other.selection, rel=1e-12)


def test_row_that_does_not_fit_evaluation_fails_its_trial(engine: Engine) -> None:
    def refuse(_module: Any, _inputs: Any, _output: Tensor) -> None:
        if not torch.is_grad_enabled():
            raise MemoryError

    with injected(engine, refuse):
        found = train(engine, TRIALS[:2])
    assert all("lower max_length" in end.how for end in found.values())


def test_other_errors_are_not_taken_for_it(engine: Engine) -> None:
    failing = Failing("forward", 3, RuntimeError("shapes do not fit"))
    with injected(engine, failing), pytest.raises(RuntimeError, match="shapes do not fit"):
        train(engine, TRIALS, watch=failing.watch)


def test_torchs_own_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as caught_numpy:
        np.empty(1 << 60, dtype=np.uint8)
    assert is_out_of_memory(caught_numpy.value)
    assert not is_out_of_memory(RuntimeError("expected scalar type Float"))
