"""Every gradient that the engine computes itself, against finite differences in float64.

The classes are found in the source, so a new one without a check here fails. Edge cases of each (trials without rows,
frozen neighbours, padding, windows) are in test_layers.py and tests/backbone/test_attention.py.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import fleetune
from fleetune.backbone import rows as backbone_rows
from fleetune.backbone.laid import Asked, Drawing, LaidRows, arrays, laid, site_words
from fleetune.backbone.noise import Noise, NoiseKey
from fleetune.cohort import grouped
from fleetune.cohort.bert_layer import Bias, Norm, Plan, Update, bert_layer
from fleetune.cohort.layers import _add_biases
from fleetune.cohort.linear import LowRankSlot, cohort_linear
from fleetune.cohort.tables import Owners, Stacked, Table
from tests.backbone.test_attention import HEADS, WIDTH, packed, stream_of
from tests.cohort.on_a_gpu import product

ROOT = Path(fleetune.__file__).parent
BOUNDS = [0, 3, 4, 8]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


def add_biases() -> bool:
    biases = [draw(5, seed=k) for k in range(3)]
    return gradcheck(lambda x, *b: _add_biases(x * 1.0, BOUNDS, list(b)), (draw(8, 5, seed=9), *biases))  # fmt: skip


Call = Callable[[Tensor, Tensor, Tensor, list[Tensor | None], list[LowRankSlot | None]], Tensor]


def linear_leaf(run: Call) -> bool:
    """One trial with a bias and factors behind a mask, one with a bias, one with factors."""
    weight, shared = draw(5, 4, seed=1).detach(), draw(5, seed=2).detach()

    def call(x: Tensor, b0: Tensor, b1: Tensor, a0: Tensor, u0: Tensor, a2: Tensor, u2: Tensor):  # type: ignore[no-untyped-def]
        slots = [LowRankSlot(a0, u0, 0.5, 0.5), None, LowRankSlot(a2, u2, 3.0, 0.0)]
        return run(x, weight, shared, [b0, b1, None], slots)

    biases = [draw(5, seed=3), draw(5, seed=4)]
    factors = [draw(2, 4, seed=5), draw(5, 2, seed=6), draw(1, 4, seed=7), draw(5, 1, seed=8)]
    return gradcheck(call, (draw(8, 4, seed=9), *biases, *factors))


def plain_linear() -> bool:
    mask = torch.tensor([[0.0, 2.0, 2.0, 0.0]] * 3, dtype=torch.float64)

    def run(x, weight, shared, biases, slots) -> Tensor:  # type: ignore[no-untyped-def]
        return cohort_linear(x, weight, shared, BOUNDS, biases, slots, [mask, None, None])

    return linear_leaf(run)


def owned_by_all(values: Tensor, into: Tensor) -> Table:
    count = len(values)
    owners = Owners(torch.arange(count, dtype=torch.int32), torch.ones(count, dtype=torch.int32))
    return Table(values, into, owners)


class ByTables(torch.autograd.Function):
    """A leaf that adds the gradients of what trials own to tables, as a function of those tables."""

    @staticmethod
    def forward(ctx: Any, run: Any, x: Tensor, *tables: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x, *tables)
        return run(x, [owned_by_all(table, table) for table in tables], torch.zeros(()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *tables = ctx.saved_tensors
        into = [torch.zeros_like(table) for table in tables]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            asks = torch.zeros((), requires_grad=True)
            y = ctx.run(x, list(map(owned_by_all, tables, into)), asks)
            to_x, _ = torch.autograd.grad(y, [x, asks], grads[0], allow_unused=True)
        return None, to_x, *into


def rows_of(bounds: list[int]) -> tuple[LaidRows, Drawing]:
    """Rows of three trials, the first of which drops half of its numbers."""
    offsets = np.asarray(bounds)
    found = arrays(offsets, np.asarray([0, 1, 2, 3]), [NoiseKey(seed, 0) for seed in (3, 4, 5)])
    where = laid({n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in found.items()}, 4, {})
    return where.tokens, Drawing(where.keys, where.levels_of([0.5, 0.0, 0.0]), (1, 2))


def grouped_linear() -> bool:
    """With a loop in the place of torch's grouped product, which knows no float64."""
    rows, drawing = rows_of(BOUNDS)
    weight, shared = draw(5, 4, seed=1).detach(), draw(5, seed=2).detach()

    def run(x: Tensor, given: list[Table], asks: Tensor) -> Tensor:
        owned = Stacked(*given)
        return grouped.grouped_linear(x, weight, shared, owned, rows, drawing, asks)

    tables = [draw(3, 5, seed=3), draw(3, 8, 4, seed=4), draw(3, 8, 5, seed=5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "grouped_mm", product)
        return gradcheck(lambda *given: ByTables.apply(run, *given), (draw(8, 4, seed=6), *tables))


def grouped_bias() -> bool:
    rows, _ = rows_of(BOUNDS)

    def run(x: Tensor, given: list[Table], asks: Tensor) -> Tensor:
        return grouped.grouped_bias(x * 1.0, Stacked(given[0], None, None), rows, asks)

    given = (draw(8, 5, seed=6), draw(3, 5, seed=3))
    return gradcheck(lambda *given: ByTables.apply(run, *given), given)


def whole_layer() -> bool:
    """Two trials that own all there is, and one without a row; dropout everywhere. All rows, and first tokens only."""
    heads, width, inner, rank = 2, 8, 12, 8
    offsets, trials = np.asarray([0, 3, 4, 8, 10]), np.asarray([0, 2, 2, 4])
    found = arrays(offsets, trials, [NoiseKey(seed, 0) for seed in (3, 4, 5)], 1)
    where = laid({n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in found.items()}, 4, {})
    joined, outward = draw(3 * width, width, seed=1), draw(width, width, seed=2)
    inward, back = draw(inner, width, seed=3), draw(width, inner, seed=4)
    weights = tuple(w.detach() for w in (joined, outward, inward, back))
    shapes = [(width, width)] * 4 + [(width, inner), (inner, width)]
    biases = [draw(3, n, seed=10 + n) for n in (3 * width, inner, width, width, width, width)]
    factors = [draw(3, rank, n, seed=i + n) for i, pair in enumerate(shapes) for n in pair]

    def drawing(*site: str | int) -> Drawing:
        return Drawing(where.keys, where.levels_of([0.5, 0.1, 0.2]), site_words(*site))

    for first_only in (False, True):

        def run(x: Tensor, given: list[Table], asks: Tensor) -> Tensor:
            qkv = given[0]
            before, *four = (Bias(table.values, table) for table in given[1:6])
            pairs = [Stacked(None, given[i], given[i + 1]) for i in range(6, len(given), 2)]
            norms = [
                Norm(four[i], drawing("n", i), draw(width, seed=5).detach(), four[i + 1], 1e-5)
                for i in (0, 2)
            ]
            plan = Plan(
                Asked(where, 0.5, None, first_only, drawing("a")),  # noqa: B023
                heads,
                where.sequences if first_only else where.tokens,  # noqa: B023
                weights,  # type: ignore[arg-type]
                qkv,
                None,
                tuple(Update(pair, drawing("l", i)) for i, pair in enumerate(pairs)),
                norms[0],
                before,
                norms[1],
            )
            return bert_layer(x, plan, asks)

        given = (draw(int(offsets[-1]) + 1, width, seed=6), *biases, *factors)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grouped, "grouped_mm", product)
            # Along random directions: there are some thousand numbers. The spare row belongs to no sequence.
            gradcheck(lambda *t: ByTables.apply(run, *t)[:10], given, fast_mode=True)
    return True


def dropped() -> bool:
    rows, drawing = rows_of(BOUNDS)
    return gradcheck(lambda x: backbone_rows.dropped(x, rows, drawing), (draw(8, 5, seed=6),))


def packed_attention() -> bool:
    """Two trials, one with dropout; sequences of several lengths; all rows, and first tokens only."""
    for first_only in (False, True):
        noise = Noise([NoiseKey(0, 0, 0.3), NoiseKey(1, 0, 0.0)])
        stream = stream_of([3, 1, 4, 2], [2, 2], noise, first_only)
        q, k, v = (draw(1, HEADS, 10, WIDTH, seed=s) for s in range(3))

        def call(q: Tensor, k: Tensor, v: Tensor, stream=stream) -> Tensor:  # type: ignore[no-untyped-def]
            stream.calls.clear()  # the same masks for every difference
            return packed(stream, q, k, v, 0.1)[0]

        gradcheck(call, (q, k, v))
    return True


CHECKS: dict[str, Callable[[], bool]] = {
    "fleetune.cohort.layers._AddBiases": add_biases,
    "fleetune.cohort.linear._CohortLinear": plain_linear,
    "fleetune.cohort.grouped._GroupedLinear": grouped_linear,
    "fleetune.cohort.grouped._GroupedBias": grouped_bias,
    "fleetune.cohort.bert_layer._BertLayer": whole_layer,
    "fleetune.backbone.rows._Dropped": dropped,
    "fleetune.backbone.attention._PackedAttention": packed_attention,
}


# These run on a GPU alone, by Triton; tests/gpu/test_cuda.py holds them against autograd's gradient of their references.
BY_KERNELS = {
    "fleetune.backbone.varlen._Attention",
}


def own_functions() -> set[str]:
    """Every subclass of autograd.Function in the package, by its full name."""
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        module = ".".join(("fleetune", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            bases = [ast.unparse(b) for b in node.bases] if isinstance(node, ast.ClassDef) else []
            if any(base.split(".")[-1] == "Function" for base in bases):
                found.add(f"{module}.{node.name}")  # type: ignore[attr-defined]
    return found


def test_every_gradient_of_our_own_has_a_check() -> None:
    assert own_functions() == CHECKS.keys() | BY_KERNELS


@pytest.mark.parametrize("name", CHECKS)
def test_gradient_is_that_of_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the check has run this class's backward, not another way to the same values."""
    module, _, own = name.rpartition(".")
    function = getattr(importlib.import_module(module), own)
    backward, ran = function.backward, []

    def counted(*arguments: object) -> object:
        ran.append(1)
        return backward(*arguments)

    monkeypatch.setattr(function, "backward", staticmethod(counted))
    assert CHECKS[name]()
    assert ran
