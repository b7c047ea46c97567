"""The leaves: gradients against finite differences, values against slow and plain ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional
from torch.testing import assert_close

from fleetune.backbone.noise import Noise, NoiseKey
from fleetune.backbone.stream import Current, Stream
from fleetune.cohort.layers import (
    Active,
    CohortDropout,
    CohortLayerNorm,
    CohortLinear,
    CohortOther,
    _add_biases,
)
from fleetune.cohort.linear import LowRankSlot, cohort_linear

D, E = 4, 3
# Five trials with 2, 0, 3, 1 and 2 rows: a trial may have none at some leaf, and one row is a
# special case of many kernels.
BOUNDS = [0, 2, 2, 5, 6, 8]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


# -- gradients ------------------------------------------------------------------------------------

# What each of the five trials owns: b bias, l low-rank, m low-rank behind a dropout mask, -
# nothing.
OWNED = ["bbbbb", "-----", "lllll", "mmmmm", "b-l-m", "-l--b", "xXb-l", "XXXXX", "---m-"]
"""x is b and l together, X is b and m together."""


def cohort_linear_parts(owned: str) -> tuple[list[Tensor], Any]:
    """The tensors that trials own, in one list, and the call that takes them."""
    tensors: list[Tensor] = []
    masks: list[Tensor | None] = []
    places: list[tuple[int | None, int | None]] = []
    for k, letter in enumerate(owned):
        bias = low_rank = None
        if letter in "bxX":
            bias = len(tensors)
            tensors.append(draw(E, seed=10 + k).requires_grad_())
        if letter in "lmxX":
            low_rank = len(tensors)
            rank = k + 1
            tensors += [
                draw(rank, D, seed=20 + k).requires_grad_(),
                draw(E, rank, seed=30 + k).requires_grad_(),
            ]
        places.append((bias, low_rank))
        rows = BOUNDS[k + 1] - BOUNDS[k]
        mask = (draw(rows, D, seed=40 + k) > 0).double() * 1.5
        masks.append(mask if letter in "mX" else None)
    weight, shared = draw(E, D, seed=1), draw(E, seed=2)

    def call(x: Tensor, with_shared: bool, *tensors: Tensor) -> Tensor:
        biases = [None if b is None else tensors[b] for b, _ in places]
        slots = [
            None if at is None else LowRankSlot(tensors[at], tensors[at + 1], 0.5 + at, 0.3)
            for _, at in places
        ]
        return cohort_linear(
            x,
            weight,
            shared if with_shared else None,
            BOUNDS,
            biases if any(b is not None for b in biases) else None,
            slots if any(s is not None for s in slots) else None,
            masks,
        )

    def plain(x: Tensor, with_shared: bool, *tensors: Tensor) -> Tensor:
        parts = []
        for k, (bias, at) in enumerate(places):
            part = x[BOUNDS[k] : BOUNDS[k + 1]]
            y = part @ weight.T
            if bias is not None or with_shared:
                y = y + (shared if bias is None else tensors[bias])
            if at is not None:
                mask = masks[k]
                kept = part if mask is None else part * mask
                y = y + (0.5 + at) * (kept @ tensors[at].T @ tensors[at + 1].T)
            parts.append(y)
        return torch.cat(parts)

    return tensors, (call, plain)


@pytest.mark.parametrize("owned", OWNED)
@pytest.mark.parametrize("with_shared", [True, False])
@pytest.mark.parametrize("input_grad", [True, False])
def testcohort_linear_gradients(owned: str, with_shared: bool, input_grad: bool) -> None:
    """Against finite differences; and values and gradients against a plain loop over the trials."""
    tensors, (call, plain) = cohort_linear_parts(owned)
    x = draw(8, D, seed=3).requires_grad_(input_grad)
    if not input_grad and not tensors:
        return
    assert gradcheck(lambda x, *t: call(x, with_shared, *t), (x, *tensors))
    found, expected = call(x, with_shared, *tensors), plain(x, with_shared, *tensors)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = [x, *tensors] if input_grad else tensors
    direction = draw(8, E, seed=4)
    # A bias of a trial without rows, or a mask that drops all, has a gradient of zero and not none.
    mine = torch.autograd.grad(found, wanted, direction)
    other = torch.autograd.grad(expected, wanted, direction, materialize_grads=True)
    for a, b in zip(mine, other, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


def testcohort_linear_leaves_its_input_alone() -> None:
    """The input is another leaf's output, and saved by others."""
    tensors, (call, _) = cohort_linear_parts("bXlm-")
    x = draw(8, D, seed=3).requires_grad_()
    before = x.detach().clone()
    y = call(x, True, *tensors)
    direction = draw(8, E, seed=4)
    kept = direction.clone()
    y.backward(direction)
    assert torch.equal(x.detach(), before)
    assert torch.equal(direction, kept), "the gradient that comes in belongs to others too"


@pytest.mark.parametrize("trained", [*itertools.product([True, False], repeat=2)])
def test_add_biases_gradients(trained: tuple[bool, bool]) -> None:
    """With an input that needs a gradient or not, and with frozen biases among the trained."""
    input_grad, all_biases = trained
    x = draw(8, E, seed=5).requires_grad_(input_grad)
    biases = [draw(E, seed=50 + k).requires_grad_(all_biases or k % 2 == 0) for k in range(5)]

    def call(x: Tensor, *biases: Tensor) -> Tensor:
        return _add_biases(x * 2.0, BOUNDS, list(biases))

    assert gradcheck(call, (x, *biases))
    plain = torch.cat([2.0 * x[BOUNDS[k] : BOUNDS[k + 1]] + biases[k] for k in range(5)])
    assert_close(call(x, *biases), plain, rtol=1e-15, atol=1e-15)


def test_add_biases_without_gradients() -> None:
    y = draw(8, E, seed=5)
    biases = [draw(E, seed=50 + k) for k in range(5)]
    plain = torch.cat([y[BOUNDS[k] : BOUNDS[k + 1]] + biases[k] for k in range(5)])
    found = _add_biases(y, BOUNDS, biases)
    assert found is y and torch.equal(found, plain)


# -- whole leaves ---------------------------------------------------------------------------------

LENGTHS = np.array([3, 1, 4, 2, 5, 1])
TRIALS = np.array([0, 2, 3, 6])


def stream_of(layout: Any, noise: Noise | None = None) -> Stream:
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Stream(offsets, TRIALS, layout, torch.device("cpu"), noise)


def frozen(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # a new leaf draws from the global generator
        leaf = make()
    with torch.no_grad():
        for i, parameter in enumerate(leaf.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=60 + i))
    return leaf.double().requires_grad_(False)


def run(
    leaf: nn.Module, current: Current, stream: Stream, active: Active, x: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of the input and all that is owned, for a fixed direction."""
    current.stream, current.active = stream, active
    x = x.clone().requires_grad_()
    y = leaf(x)
    owned = [t for tensors in active.owned.values() for t in tensors if t is not None]
    for slots in active.low_rank.values():
        owned += [t for slot in slots if slot for t in (slot.down, slot.up)]
    grads = torch.autograd.grad(y, [x, *owned], draw(*y.shape, seed=70))
    return y.detach(), list(grads)


SHARES = [
    {"bias": "bbb"},
    {"bias": "b-b"},
    {"bias": "-b-"},
    {"weight": "www"},
    {"weight": "-w-"},
    {"weight": "w--", "bias": "b-b"},
    {"weight": "w-w", "bias": "bb-"},
]
"""Which of the three trials own the leaf's weight and bias."""


def owned_by(share: dict[str, str], leaf: nn.Module, seed: int) -> Active:
    shapes = {own: p.shape for own, p in leaf.named_parameters()}
    owned = {
        f"leaf.{own}": [
            draw(*shapes[own], seed=seed + 10 * i + k).requires_grad_() if letter != "-" else None
            for k, letter in enumerate(letters)
        ]
        for i, (own, letters) in enumerate(share.items())
    }
    return Active(owned, {})


@pytest.mark.parametrize("rows", ["packed tokens", "padded tokens", "sequences"])
@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("kind", ["linear", "layer norm"])
def test_fast_leaf_is_the_generic_one(kind: str, share: dict[str, str], rows: str) -> None:
    """`CohortOther` runs torch's own leaf on each trial's slice with functional_call."""
    layout = "padded" if rows.startswith("padded") else "packed"
    stream = stream_of(layout)
    shape = {
        "packed tokens": (1, stream.n_tokens),
        "padded tokens": (stream.n_sequences, stream.longest),
        "sequences": (stream.n_sequences, 1),
    }[rows]
    own = frozen(lambda: nn.Linear(D, E) if kind == "linear" else nn.LayerNorm(D, eps=1e-3))
    current = Current()
    fast_class = CohortLinear if kind == "linear" else CohortLayerNorm
    fast, slow = fast_class("leaf", current, own), CohortOther("leaf", current, own)  # type: ignore[arg-type]
    active = owned_by(share, own, seed=100)
    x = draw(*shape, D, seed=6)
    found, grads = run(fast, current, stream, active, x)
    expected, expected_grads = run(slow, current, stream, active, x)
    assert found.shape == (*shape, E if kind == "linear" else D)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, other in zip(grads, expected_grads, strict=True):
        assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["linear", "layer norm", "other"])
def test_leaf_that_nobody_owns_is_the_frozen_one(kind: str) -> None:
    own = frozen(lambda: nn.Linear(D, E) if kind == "linear" else nn.LayerNorm(D))
    current = Current()
    classes = {"linear": CohortLinear, "layer norm": CohortLayerNorm, "other": CohortOther}
    leaf = classes[kind]("leaf", current, own)  # type: ignore[arg-type]
    current.stream, current.active = stream_of("packed"), Active({}, {})
    x = draw(1, 16, D, seed=6)
    assert torch.equal(leaf(x), own(x))


def test_each_trial_runs_its_own_embedding() -> None:
    """`CohortOther` on token numbers, where a trial owns the table, as with `full`."""
    own = frozen(lambda: nn.Embedding(11, D))
    current = Current()
    leaf = CohortOther("leaf", current, own)
    table = draw(11, D, seed=8)
    current.stream = stream_of("packed")
    current.active = Active({"leaf.weight": [None, table, None]}, {})
    ids = torch.arange(16)[None] % 11
    expected = own(ids).clone()
    low, high = current.stream.bounds(current.stream.n_token_rows)[1:3]
    expected[0, low:high] = table[ids[0, low:high]]
    assert torch.equal(leaf(ids), expected)


def test_a_parameter_that_the_model_reads_itself_is_the_trials_own() -> None:
    """deberta-v2 reads its table of relative positions without calling it; what the leaf alone knows stays the leaf's."""
    own = frozen(lambda: nn.Embedding(11, D, padding_idx=3))
    current = Current()
    leaf = CohortOther("leaf", current, own)
    assert leaf.weight is own.weight, "outside of a pass"
    table = draw(11, D, seed=8)
    current.stream, current.active = stream_of("packed"), Active({"leaf.weight": [table]}, {})
    assert torch.equal(leaf.weight, table) and leaf.padding_idx == 3
    current.active = Active({}, {})
    assert leaf.weight is own.weight


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("noisy", [True, False])
def test_low_rank_leaf_is_the_papers_formula(layout: Any, noisy: bool) -> None:
    """Trials with factors and dropout, with a bias too, and with a weight of their own."""
    noise = Noise([NoiseKey(seed=k, step=5) for k in range(3)]) if noisy else None
    stream = stream_of(layout, noise)
    own = frozen(lambda: nn.Linear(D, E))
    current = Current()
    leaf = CohortLinear("leaf", current, own)  # type: ignore[arg-type]
    slots = [
        LowRankSlot(draw(2, D, seed=1), draw(E, 2, seed=2), 3.0, 0.4),
        LowRankSlot(draw(1, D, seed=3), draw(E, 1, seed=4), 0.5, 0.0),
        None,
    ]
    biases: list[Tensor | None] = [None, draw(E, seed=5), None]
    weights: list[Tensor | None] = [None, None, draw(E, D, seed=9)]
    shape = (1, 16) if layout == "packed" else (stream.n_sequences, stream.longest)
    x = draw(*shape, D, seed=6)
    rows = x.view(-1, D)
    for with_weight in (False, True):
        owned = {"leaf.bias": biases, **({"leaf.weight": weights} if with_weight else {})}
        stream.calls.clear()
        current.stream, current.active = stream, Active(owned, {"leaf": slots})
        found = leaf(x).view(-1, E)
        low, high = stream.bounds(stream.n_token_rows)[:2]
        kept = rows[low:high]
        if noise is not None:
            existing = stream.existing(shape, 0)
            drop = rows.new_empty(high - low, D)
            kept = kept * noise.rows(0, 0.4, drop, existing, 0, "leaf.lora", 0)
            assert (kept == 0).any()
        update = 3.0 * kept @ slots[0].down.T @ slots[0].up.T  # type: ignore[union-attr]
        expected = [functional.linear(rows[low:high], own.weight, own.bias) + update]  # type: ignore[arg-type]
        low, high = stream.bounds(stream.n_token_rows)[1:3]
        part = rows[low:high]
        update = 0.5 * part @ slots[1].down.T @ slots[1].up.T  # type: ignore[union-attr]
        expected.append(functional.linear(part, own.weight, biases[1]) + update)  # type: ignore[arg-type]
        part = rows[high:]
        weight = weights[2] if with_weight else own.weight
        expected.append(functional.linear(part, weight, own.bias))  # type: ignore[arg-type]
        assert_close(found, torch.cat(expected), rtol=1e-12, atol=1e-12)


# -- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_dropout_of_each_trial(layout: Any) -> None:
    """The backbone's rate where a trial sets none; none in evaluation; new masks in each call."""
    keys = [NoiseKey(0, 0), NoiseKey(1, 0, 0.0), NoiseKey(2, 0, 0.75)]
    current = Current()
    leaf = CohortDropout("leaf", current, nn.Dropout(0.25))
    stream = stream_of(layout, Noise(keys))
    current.stream = stream
    width = 512
    shape = (1, 16) if layout == "packed" else (stream.n_sequences, stream.longest)
    x = torch.ones(*shape, width, dtype=torch.float64)
    first, second = (leaf(x).view(-1, width) for _ in range(2))
    assert not torch.equal(first, second)
    for k, rate in enumerate([0.25, 0.0, 0.75]):
        low, high = stream.bounds(stream.n_token_rows)[k : k + 2]
        real = stream.existing(shape, k)
        part = first[low:high] if real is None else first[low:high][torch.from_numpy(real)]
        # 16-bit rates of 1/4 and 3/4 are exact, so a kept activation is scaled by just 1 / (1 -
        # rate).
        assert set(part.unique().tolist()) <= {0.0, 1 / (1 - rate)}
        dropped = float((part == 0).double().mean())
        assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / part.numel()) ** 0.5)
    current.stream = stream_of(layout, None)
    assert leaf(x) is x
