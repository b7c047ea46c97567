"""The engine on a CUDA device: `pytest -m gpu tests/gpu`. Each part stands beside its reference on the CPU too."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fleetune.backbone import attention
from fleetune.backbone.philox import Drawn, Streams, multiply, reference
from fleetune.cohort.engine import Engine
from fleetune.cohort.grouped import grouped_linear, suits
from fleetune.cohort.linear import LowRankSlot, cohort_linear
from fleetune.cohort.passes import micro_batches, run_pass
from fleetune.cohort.trial import Trial, TrialInput
from fleetune.data.packing import Packed
from tests.cohort.outcomes import train, trial
from tests.cohort.test_rounding import TRIALS as ROUNDED
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TRIALS = [
    trial("lora", {"r": 4, "lora_dropout": 0.1}, ident="a", num_train_epochs=2, dropout=0.1),
    trial("bitfit", ident="b", seed=1, num_train_epochs=2),
    trial("head", ident="c", seed=2, num_train_epochs=2),
    trial("lora", {"r": 2, "target_modules": "all-linear"}, ident="d", seed=3, num_train_epochs=2),
]


def engine_on(device: str, dtype: torch.dtype, family: str = "bert") -> Engine:
    model = tiny_model(family)
    return Engine(model.double() if dtype == torch.float64 else model, dtype=dtype, device=device)


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([values[name].reshape(-1).double().cpu() for name in sorted(values)])


def ends(engine: Engine, given: list[TrialInput]) -> dict[str, Tensor]:
    return {ident: flat(end.epochs[-1]) for ident, end in train(engine, given).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 13), (300, 384), (33, 3000)])
def test_the_kernel_draws_what_its_reference_draws(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng([rows, width])
    trials = 3
    low = rng.integers(0, width, rows)
    high = np.minimum(low + rng.integers(0, width + 1, rows), width)
    whose = (rng.integers(0, trials, rows), rng.integers(0, 1 << 40, rows), low, high)
    drawn = Drawn(*(torch.from_numpy(values).cuda() for values in whose))
    streams = Streams(
        torch.from_numpy(rng.integers(-(1 << 62), 1 << 62, trials)).cuda(),
        torch.from_numpy(rng.integers(0, 1 << 16, trials)).cuda(),
        torch.from_numpy(1 + rng.random(trials)).to("cuda", dtype),
    )
    mine = torch.full((rows, width), 7.0, dtype=dtype, device="cuda")
    other = mine.clone()
    multiply(mine, drawn, streams)
    reference(other, drawn, streams)
    assert torch.equal(mine, other)


def test_grouped_products_are_the_plain_ones() -> None:
    """In bfloat16, against the plain leaf in float32; a few roundings of 2^-8 lie between."""
    rng, bounds = np.random.default_rng(0), [0, 90, 90, 400, 401, 570]

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to("cuda", torch.bfloat16).float()

    x, weight, shared = draw(570, 384), draw(1536, 384), draw(1536)
    biases = [draw(1536) if k % 2 else None for k in range(5)]
    factors = [(draw(2 * k + 1, 384), draw(1536, 2 * k + 1)) for k in range(5)]
    mask = torch.from_numpy(2.0 * rng.integers(0, 2, (570, 384))).to("cuda", torch.float32)
    masks = [mask[low:high] for low, high in itertools.pairwise(bounds)]
    direction = draw(570, 1536)
    given = [x, *(b for b in biases if b is not None), *(t for pair in factors for t in pair)]
    for tensor in given:
        tensor.requires_grad_()
    slots = [LowRankSlot(a, b, 0.5, 0.5) for a, b in factors]
    narrow = torch.bfloat16
    assert suits(x.to(narrow), weight.to(narrow))
    mine = grouped_linear(
        x.to(narrow), weight.to(narrow), shared.to(narrow), bounds, biases, slots, mask.to(narrow)
    )
    plain = cohort_linear(x, weight, shared, bounds, biases, slots, masks)  # type: ignore[arg-type]
    pairs = [
        (mine.float(), plain),
        *zip(
            torch.autograd.grad(mine, given, direction.to(narrow)),
            torch.autograd.grad(plain, given, direction),
            strict=True,
        ),
    ]
    for a, b in pairs:
        difference = float((a.detach().float() - b.detach()).norm())
        assert difference <= 4 * 2**-8 * float(b.detach().norm())


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_attention_by_torchs_kernel_is_that_by_tiles(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 9)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, 60, offsets[-1])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    stream = Packed(ids, places, None, offsets, np.asarray([0, 9]))
    engine = engine_on("cuda", torch.bfloat16, family)
    owned = [engine.owned(TRIALS[2].method, 0)]
    with torch.inference_mode():
        mine = engine.logits(owned, stream, None)
        monkeypatch.setattr(attention, "flash_suits", lambda *_: False)
        tiles = engine.logits(owned, stream, None)
    assert_close(mine, tiles, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_company_changes_nothing(family: str) -> None:
    given = [one for one in TRIALS if family != "modernbert" or one.method.name != "bitfit"]
    engine = engine_on("cuda", torch.float64, family)
    together = ends(engine, given)
    for one in given:
        (alone,) = ends(engine, [one]).values()
        assert_close(together[one.spec.id], alone, rtol=1e-9, atol=1e-12)


def test_in_bfloat16_company_costs_no_more_than_rounding() -> None:
    """As tests/cohort/test_rounding.py asks of a CPU."""
    low, exact = engine_on("cuda", torch.bfloat16), engine_on("cuda", torch.float64)
    together = ends(low, ROUNDED)
    for one in ROUNDED:
        (alone,), (right,) = ends(low, [one]).values(), ends(exact, [one]).values()
        rounding = float((alone - right).norm())
        assert float((together[one.spec.id] - alone).norm()) <= 2 * rounding


def test_the_same_cohort_twice_is_bit_equal() -> None:
    """A resumed run ends with the same numbers only if a pass does."""
    first, second = (ends(engine_on("cuda", torch.bfloat16), TRIALS) for _ in range(2))
    for ident, value in first.items():
        assert torch.equal(value, second[ident])


def test_without_dropout_a_gpu_trains_what_a_cpu_trains() -> None:
    given = [
        trial("lora", {"r": 4}, ident="a", dropout=0.0),
        trial("bitfit", ident="b", dropout=0.0),
    ]
    gpu, cpu = (ends(engine_on(device, torch.float64), given) for device in ("cuda", "cpu"))
    for ident, value in cpu.items():
        assert_close(gpu[ident], value, rtol=1e-8, atol=1e-11)


def test_a_round_waits_for_nothing() -> None:
    engine = engine_on("cuda", torch.bfloat16)
    trials = [Trial(one, engine.start(one)) for one in TRIALS]

    def a_round() -> Any:
        passed = run_pass(engine, micro_batches(engine, trials))
        passed.add_gradients()
        return [one.advance() for one in trials]

    a_round()  # compiles kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        a_round()
    finally:
        torch.cuda.set_sync_debug_mode("default")
