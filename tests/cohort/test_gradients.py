"""Every gradient that the engine computes itself, against finite differences in float64.

The classes are found in the source, so a new one without a check here fails. Edge cases of each (trials without rows,
frozen neighbours, padding, windows) are in test_layers.py and tests/backbone/test_attention.py.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import fleetune
from fleetune.backbone.noise import Noise, NoiseKey
from fleetune.cohort import grouped
from fleetune.cohort.layers import _add_biases
from fleetune.cohort.linear import LowRankSlot, cohort_linear
from tests.backbone.test_attention import HEADS, WIDTH, packed, stream_of

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


def grouped_linear() -> bool:
    """With a loop in the place of torch's grouped product, which knows no float64."""
    mask = torch.tensor([[0.0, 2.0, 2.0, 0.0]] * 3 + [[1.0] * 4] * 5, dtype=torch.float64)

    def product(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        parts = list(pairwise([0, *offs.tolist()]))
        if b.dim() == 3:
            return torch.cat([a[low:high] @ b[k] for k, (low, high) in enumerate(parts)])
        return torch.stack([a[:, low:high] @ b[low:high] for low, high in parts])

    def run(x, weight, shared, biases, slots) -> Tensor:  # type: ignore[no-untyped-def]
        return grouped.grouped_linear(x, weight, shared, BOUNDS, biases, slots, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "grouped_mm", product)
        return linear_leaf(run)


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
    "fleetune.backbone.attention._PackedAttention": packed_attention,
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
    assert own_functions() == CHECKS.keys()


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
