"""The linear leaf by grouped products, as on a GPU, against the one that goes from trial to trial; both on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fleetune.backbone.device_noise import DeviceNoise
from fleetune.cohort import layers, passes
from fleetune.cohort.engine import Engine
from fleetune.cohort.grouped import grouped_linear, suits
from fleetune.cohort.linear import LowRankSlot, cohort_linear
from fleetune.cohort.trial import TrialInput
from tests.cohort.outcomes import train, trial
from tests.tiny import tiny_model

D, E = 24, 16
# The last but one has a single row, the second none.
BOUNDS = [0, 9, 9, 40, 41, 57]
# b bias, l low-rank factors, m the same behind a dropout mask, x b and l, X b and m, - nothing
OWNED = ["bbbbb", "-----", "lllll", "mmmmm", "b-l-m", "-l--b", "xXb-l", "XXXXX", "---m-"]


def both(
    owned: str, dtype: torch.dtype, *, shared_bias: bool = True, spoiled: slice | None = None
) -> list[list[Tensor]]:
    """Output and all gradients, of the grouped leaf and of the plain one. spoiled: rows that are not finite."""
    rng = np.random.default_rng([ord(c) for c in owned])

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype).requires_grad_()

    x, weight = draw(BOUNDS[-1], D, dtype=dtype), draw(E, D, dtype=dtype).detach()
    bias = draw(E, dtype=dtype).detach() if shared_bias else None
    biases = [draw(E) if letter in "bxX" else None for letter in owned]
    slots = [
        LowRankSlot(draw(k + 1, D), draw(E, k + 1), 2.0 / (k + 1), 0.5 if letter in "mX" else 0.0)
        if letter in "lmxX"
        else None
        for k, letter in enumerate(owned)
    ]
    mask = torch.from_numpy(2.0 * rng.integers(0, 2, (BOUNDS[-1], D))).to(dtype)
    masks: list[Tensor | None] = []
    for k, slot in enumerate(slots):
        own = slice(BOUNDS[k], BOUNDS[k + 1])
        dropped = slot is not None and slot.dropout > 0
        masks.append(mask[own] if dropped else None)
        if not dropped:
            mask[own] = 1.0
    whole = mask if any(m is not None for m in masks) else None
    owns = [b for b in biases if b is not None]
    owns += [t for slot in slots if slot is not None for t in (slot.down, slot.up)]
    mine = biases if any(b is not None for b in biases) else None
    low_rank = slots if any(s is not None for s in slots) else None
    direction = draw(BOUNDS[-1], E, dtype=dtype).detach()
    if spoiled is not None:
        x.data[spoiled], direction[spoiled] = torch.inf, torch.nan
    found: list[list[Tensor]] = []
    for y in (
        grouped_linear(x, weight, bias, BOUNDS, mine, low_rank, whole),
        cohort_linear(x, weight, bias, BOUNDS, mine, low_rank, masks),
    ):
        gradients = torch.autograd.grad(y, [x, *owns], direction)
        found.append([y.detach(), *gradients])
    return found


@pytest.mark.parametrize("shared_bias", [True, False])
@pytest.mark.parametrize("owned", OWNED)
def test_output_and_gradients_are_those_of_the_plain_leaf(owned: str, shared_bias: bool) -> None:
    mine, other = both(owned, torch.float32, shared_bias=shared_bias)
    for a, b in zip(mine, other, strict=True):
        assert a.dtype == b.dtype
        # Sums of up to 57 products in another order.
        assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("owned", OWNED)
def test_in_bfloat16_both_round_the_same_values(owned: str) -> None:
    """Each of the few roundings on the way is one of 2^-8; against float32, which the test above ties to the plain leaf."""
    mine, plain = both(owned, torch.bfloat16)
    for a, b in zip(mine, plain, strict=True):
        assert a.dtype == b.dtype
        assert float((a.float() - b.float()).norm()) <= 4 * 2**-8 * float(b.float().norm())


@pytest.mark.parametrize("owned", ["XXXXX", "b-l-m"])
def test_a_trial_that_diverges_spoils_no_other(owned: str) -> None:
    """Rows and gradients of the third trial are not finite: all that belongs to the others is bit-equal."""
    rows = slice(BOUNDS[2], BOUNDS[3])
    sound, _ = both(owned, torch.float32)
    spoiled, _ = both(owned, torch.float32, spoiled=rows)
    others = torch.ones(BOUNDS[-1], dtype=torch.bool)
    others[rows] = False
    for a, b in zip(
        sound[:2], spoiled[:2], strict=True
    ):  # the output, and the gradient of the input
        assert torch.equal(a[others], b[others])
        assert not bool(torch.isfinite(b[rows]).all())
    # Biases come first, then A and B of each trial.
    owners = [k for k, letter in enumerate(owned) if letter in "bxX"]
    owners += [k for k, letter in enumerate(owned) if letter in "lmxX" for _ in "AB"]
    for k, a, b in zip(owners, sound[2:], spoiled[2:], strict=True):
        assert torch.equal(a, b) == (k != 2)


def test_only_what_the_kernels_take_is_grouped() -> None:
    rows, weight = torch.zeros(3, 24, dtype=torch.bfloat16), torch.zeros(16, 24)
    assert not suits(rows, weight), "on a CPU the plain leaf is faster"


# -- whole cohorts as a GPU trains them -----------------------------------------------------------

STEPS = 8
TRIALS = [
    trial("lora", {"r": 4, "lora_dropout": 0.1}, ident="a", num_train_epochs=2, dropout=0.1),
    trial("bitfit", ident="b", seed=1, num_train_epochs=2),
    trial("head", ident="c", seed=2, num_train_epochs=2),
    trial("lora", {"r": 2, "target_modules": "all-linear"}, ident="d", seed=3, num_train_epochs=2),
]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grouped products and a GPU's dropout, by the CPU; the list tells how many rows each grouped product had."""
    counted: list[int] = []

    def widths(rows: Tensor, weight: Tensor) -> bool:
        grouped = rows.dtype != torch.float64 and all(n % 8 == 0 for n in weight.shape)
        counted.extend([len(rows)] if grouped else [])
        return grouped

    monkeypatch.setattr(layers, "suits", widths)
    monkeypatch.setattr(passes, "noise_on", lambda _, keys: DeviceNoise(keys))
    return counted


def ends(engine: Engine, given: list[TrialInput]) -> dict[str, Any]:
    return {ident: end.epochs[-1] for ident, end in train(engine, given).items()}


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_a_gpus_dropout_keeps_trials_apart(family: str, as_on_a_gpu: list[int]) -> None:
    """In float64, where nothing is grouped: each trial ends as it does alone."""
    given = TRIALS[:1] if family == "deberta-v2" else TRIALS
    given = [one for one in given if family != "modernbert" or one.method.name != "bitfit"]
    model = tiny_model(family).double()
    engine = Engine(model, dtype=torch.float64)
    together = ends(engine, given)
    assert not as_on_a_gpu
    for one in given:
        (alone,) = ends(engine, [one]).values()
        for name, value in alone.items():
            assert_close(together[one.spec.id][name], value, rtol=1e-9, atol=1e-12)


def test_a_grouped_cohort_ends_as_the_plain_one_does(
    as_on_a_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny_model("bert"), dtype=torch.float32)
    grouped = ends(engine, TRIALS)
    assert as_on_a_gpu
    monkeypatch.setattr(layers, "suits", lambda *_: False)
    plain = ends(engine, TRIALS)
    for one in TRIALS:

        def flat(values: dict[str, Tensor]) -> Tensor:
            return torch.cat([values[name].reshape(-1) for name in sorted(values)])

        start, end = flat(engine.start(one).state()), flat(plain[one.spec.id])
        # All weights together: one whose gradient is nothing but rounding (a key's bias) moves in a direction of its own.
        moved = float((end - start).norm())
        assert float((flat(grouped[one.spec.id]) - end).norm()) <= 1e-2 * moved
