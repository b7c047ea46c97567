"""The engine on a CUDA device: `pytest -m gpu tests/gpu`. Each part stands beside its reference on the CPU too."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from fleetune.backbone import blocks, philox, varlen
from fleetune.backbone.laid import Asked, Drawing, Laid, LaidRows, arrays, laid, site_words
from fleetune.backbone.noise import NoiseKey
from fleetune.backbone.philox import Drawn, Streams, multiply
from fleetune.backbone.rows import add_bias, add_sums, dropped, multipliers
from fleetune.backbone.varlen import attend, reference
from fleetune.cohort import grouped
from fleetune.cohort import open as open_backbone
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import EpochDone, Event
from fleetune.cohort.passes import cut, micro_batches, run_pass
from fleetune.cohort.tables import Owners, Stacked, Table
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Trial, TrialInput
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


def changed(given: TrialInput, **settings: Any) -> TrialInput:
    """The same trial under other settings."""
    return replace(given, settings=given.settings.model_copy(update=settings))


def engine_on(device: str, dtype: torch.dtype, family: str = "bert") -> Engine:
    model = tiny_model(family)
    return Engine(model.double() if dtype == torch.float64 else model, dtype=dtype, device=device)


def run_round(engine: Engine, trials: list[Trial]) -> None:
    """Forward and backward of each trial's next micro-batch, in the passes that a cohort would make of them."""
    for group in cut(micro_batches(engine, trials), 10**6, 1, steady=True):
        run_pass(engine, group).add_gradients()


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
    places = Drawn(*(torch.from_numpy(values).cuda() for values in whose))
    streams = Streams(
        torch.from_numpy(rng.integers(-(1 << 62), 1 << 62, trials)).cuda(),
        torch.from_numpy(rng.integers(0, 1 << 16, trials)).cuda(),
        torch.from_numpy(1 + rng.random(trials)).to("cuda", dtype),
    )
    mine = torch.full((rows, width), 7.0, dtype=dtype, device="cuda")
    other = mine.clone()
    multiply(mine, places, streams)
    philox.reference(other, places, streams)
    assert torch.equal(mine, other)


def laid_out(
    lengths: list[int], counts: list[int], spare: int = 0, batches: list[int] | None = None
) -> Laid:
    """A pass of so many sequences a trial, and a micro-batch (one a trial if None), on the device."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    trials = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cuts = np.concatenate([[0], np.cumsum(counts if batches is None else batches)]).astype(np.int64)
    keys = [NoiseKey(3 + m, 5 * m) for m in range(len(cuts) - 1)]
    found = arrays(offsets, trials, keys, spare, cuts)
    on_device = {name: torch.from_numpy(value).cuda() for name, value in found.items()}
    return laid(on_device, max(lengths), {})


LENGTHS, COUNTS = [5, 40, 3, 70, 1, 12, 33, 300], [3, 0, 1, 4]
BATCHES, RATES = [1, 2, 1, 3, 1], [0.1, 0.2, 0.0, 0.5, 0.3]


def drawn(*shape: int) -> Tensor:
    """Numbers that bfloat16 holds."""
    return torch.randn(shape, device="cuda").bfloat16()


def near(mine: Tensor, exact: Tensor, roundings: float = 4) -> None:
    """A few roundings of 2^-8 lie between."""
    assert mine.shape == exact.shape
    assert float((mine.float() - exact.float()).norm()) <= roundings * 2**-8 * float(exact.norm())


@pytest.mark.parametrize("width", [768, 384, 40, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_dropped_as_the_reference_drops_them(width: int, dtype: torch.dtype) -> None:
    where = laid_out(LENGTHS, COUNTS, 9, BATCHES)
    x = torch.randn(sum(LENGTHS) + 9, width, device="cuda").to(dtype).requires_grad_()
    drawing = Drawing(where.keys, where.levels_of(RATES), site_words("site", 0))
    mine = dropped(x, where.tokens, drawing)
    expected = x * multipliers(x, where.tokens, drawing)
    assert torch.equal(mine, expected)
    direction = torch.randn_like(x)
    (a,), (b,) = (torch.autograd.grad(y, x, direction) for y in (mine, expected))
    assert torch.equal(a, b)


@pytest.mark.parametrize("counts", [COUNTS, [8], [1] * 8])
@pytest.mark.parametrize("width", [768, 3072, 40])
def test_biases_and_sums_of_rows(width: int, counts: list[int]) -> None:
    """Sums of two of the trials, and of columns of a wider tensor."""
    rows = laid_out(LENGTHS, counts).tokens
    y, table = drawn(sum(LENGTHS), width), drawn(len(counts), width)
    expected = (y.float() + table.float()[rows.trial.long()]).bfloat16()
    cuts = rows.ends.diff(prepend=rows.ends.new_zeros(1)).tolist()
    wide = drawn(sum(LENGTHS), 2 * width)
    wide[:, width:] = y
    owners = sorted({0, len(counts) - 1})
    before = torch.randn(len(counts), width, device="cuda")
    right = before.clone()
    for k in owners:
        right[k] += y.float().split(cuts)[k].sum(0)
    given = torch.tensor(owners, dtype=torch.int32, device="cuda")
    found = [before.clone() for _ in range(3)]
    for into, values in zip(found, (y, y, wide[:, width:]), strict=True):
        add_sums(values, rows, into, given)
    assert_close(found[0], right, rtol=1e-5, atol=1e-4)
    assert torch.equal(found[0], found[1])
    assert_close(
        found[2], right, rtol=1e-5, atol=1e-4
    )  # rows that lie apart may have another order
    add_bias(y, table, rows)
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("width", "longest", "window", "first_only", "drops"),
    [
        (64, 130, None, False, True),
        (64, 130, None, False, False),
        (64, 300, None, False, True),
        (32, 300, 9, False, True),
        (64, 130, None, True, True),
        (32, 130, 9, False, True),
        (8, 30, None, False, True),
        (64, 12, None, False, True),
    ],
)
def test_attention_is_the_loops(
    width: int, longest: int, window: int | None, first_only: bool, drops: bool
) -> None:
    """In bfloat16, against a loop over sequences in float32."""
    lengths = [min(n, longest) for n in LENGTHS]
    where = laid_out(lengths, COUNTS, 7, BATCHES)
    drawing = Drawing(where.keys, where.levels_of(RATES), site_words("a", 1))
    asked = Asked(where, width**-0.5, window, first_only, drawing if drops else None)
    given = [drawn(sum(lengths) + 7, 3, width).requires_grad_() for _ in range(3)]
    wide = [x.detach().float().requires_grad_() for x in given]
    direction = drawn(sum(lengths) + 7, 3, width)
    mine, exact = attend(*given, asked), reference(*wide, asked)
    near(mine.detach(), exact.detach())
    assert not mine[sum(lengths) :].any()
    found = torch.autograd.grad(mine, given, direction)
    for a, b in zip(found, torch.autograd.grad(exact, wide, direction.float()), strict=True):
        near(a, b)
        assert not a[sum(lengths) :].any()
    again = torch.autograd.grad(attend(*given, asked), given, direction)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(("longest", "first_only"), [(130, False), (300, False), (130, True)])
@pytest.mark.parametrize("tables", [4, 1])
def test_attention_adds_each_trials_bias(longest: int, first_only: bool, tables: int) -> None:
    """To query, key and value that lie side by side, as do their gradients."""
    lengths, heads, width = [min(n, longest) for n in LENGTHS], 3, 64
    where, count = laid_out(lengths, COUNTS, 7, BATCHES), sum(lengths) + 7
    drawing = Drawing(where.keys, where.levels_of(RATES), site_words("a", 1))
    asked = Asked(where, width**-0.5, None, first_only, drawing)
    qkv, bias = drawn(count, 3 * heads * width), drawn(tables, 3 * heads * width)
    direction = drawn(count, heads, width)

    def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = x.view(count, 3, heads, width).unbind(1)
        return q, k, v

    exact = (qkv.float() + by_trial(bias, where.tokens)).requires_grad_()
    right = reference(*parts(exact), asked)
    out, kept = varlen.forward(*parts(qkv), asked, bias)
    near(out, right.detach())
    into = torch.full_like(qkv, torch.nan)
    into[:, : heads * width] = 0.0 if first_only else torch.nan
    varlen.backward(*parts(qkv), out, kept, direction, asked, parts(into), bias)
    (expected,) = torch.autograd.grad(right, exact, direction.float())
    for mine, one in zip(parts(into), parts(expected), strict=True):
        near(mine, one)
        assert not mine[sum(lengths) :].any()


def by_trial(table: Tensor, rows: LaidRows) -> Tensor:
    """Each row's row of a table, in float32."""
    return table.float()[
        rows.trial.long() if len(table) > 1 else torch.zeros_like(rows.trial).long()
    ]


@pytest.mark.parametrize(("drops", "tables"), [(True, 4), (False, 1)])
def test_a_residual_norm_is_its_parts(drops: bool, tables: int) -> None:
    """In bfloat16, against torch's operations in float32, with the same dropout."""

    where, width = laid_out(LENGTHS, COUNTS, 9, BATCHES), 768
    rows, count = where.tokens, sum(LENGTHS) + 9
    drawing = Drawing(where.keys, where.levels_of(RATES), site_words("n", 1))
    drawing = drawing if drops else None
    y, residual, grad = (drawn(count, width) for _ in range(3))
    bias, shift, weight = (
        drawn(tables, width),
        drawn(tables, width),
        torch.rand(width, device="cuda"),
    )
    wide = [x.float().requires_grad_() for x in (y, residual)]
    inner = wide[0] + by_trial(bias, rows)
    if drawing is not None:
        inner = inner * multipliers(inner, rows, drawing)
    summed = functional.layer_norm(inner + wide[1], (width,), weight, None, 1e-5)
    exact = summed + by_trial(shift, rows)
    mine, kept, moments = blocks.residual_norm(
        y, residual, bias, weight, shift, 1e-5, rows, drawing
    )
    near(mine, exact.detach())
    found = blocks.residual_norm_backward(grad, kept, moments, weight, rows, drawing)
    for a, b in zip(found, torch.autograd.grad(exact, wide, grad.float()), strict=True):
        near(a, b)


@pytest.mark.parametrize("tables", [4, 1])
def test_an_activation_with_bias_is_its_parts(tables: int) -> None:
    rows = laid_out(LENGTHS, COUNTS).tokens
    y, grad, bias = drawn(sum(LENGTHS), 200), drawn(sum(LENGTHS), 200), drawn(tables, 200)
    wide = y.float().requires_grad_()
    exact = functional.gelu(wide + by_trial(bias, rows))
    near(blocks.gelu(y, bias, rows), exact.detach())
    (to_y,) = torch.autograd.grad(exact, wide, grad.float())
    near(blocks.gelu_backward(grad, y, bias, rows), to_y)


@pytest.mark.parametrize(
    ("width", "out", "rank", "drops"),
    [(768, 768, 16, True), (768, 3072, 8, False), (40, 136, 24, True)],
)
def test_low_rank_updates_are_each_trials_own(width: int, out: int, rank: int, drops: bool) -> None:
    """In bfloat16, against products in float32, row by row with the trial's own factors; one trial has none.

    What is updated, and its gradient, are columns of a wider tensor.
    """
    where = laid_out(LENGTHS, COUNTS, 9, BATCHES)
    rows, count = where.tokens, sum(LENGTHS) + 9
    drawing = Drawing(where.keys, where.levels_of(RATES), site_words("l", 1)) if drops else None
    x, to_input = drawn(count, width), drawn(count, width)
    y, grad = (drawn(count, 2 * out)[:, out:] for _ in range(2))
    owns = torch.tensor([1, 1, 0, 1], dtype=torch.int32, device="cuda")
    owners = Owners(owns.nonzero()[:, 0].int(), owns)
    down, up = (drawn(4, rank, n) * owns[:, None, None] / 8 for n in (width, out))
    into = [torch.zeros_like(table, dtype=torch.float32) for table in (down, up)]
    tables = [Table(t.bfloat16(), g, owners) for t, g in zip((down, up), into, strict=True)]
    owned = Stacked(None, *tables)
    whose = rows.trial.long()
    mask = 1.0 if drawing is None else multipliers(x.float(), rows, drawing)
    used = x.float() * mask
    narrow = torch.einsum("td,trd->tr", used, down.float()[whose])
    exact = y.float() + torch.einsum("tr,tre->te", narrow, up.float()[whose])
    through = torch.einsum("te,tre->tr", grad.float(), up.float()[whose])
    back = to_input.float() + torch.einsum("tr,trd->td", through, down.float()[whose]) * mask
    few = grouped.add_update(y, x, owned, rows, drawing)
    near(y, exact)
    grouped.add_update_backward(grad, to_input, x, few, owned, rows, drawing)
    near(to_input, back)
    for k in range(len(COUNTS)):
        own = whose == k
        if own.any() and owns[k]:
            near(into[0][k], through[own].T @ used[own])
            near(into[1][k], narrow[own].T @ grad.float()[own])
        else:
            assert not into[0][k].any()
            assert not into[1][k].any()


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "modernbert"])
def test_a_pass_by_kernels_is_that_by_references(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of all trials after a pass; the references in float32 on the processor, with the same dropout."""
    given = [one for one in TRIALS if family != "modernbert" or one.method.name != "bitfit"]

    def gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
        engine = engine_on(device, dtype, family)
        engine.lanes.count = 1
        trials = [Trial(one, engine.start(one)) for one in given]
        for one in trials:  # B starts at zero, and so would the gradients of A
            rng = np.random.default_rng(0)
            for flat in one.owned.flats:
                flat.add_(torch.from_numpy(0.05 * rng.normal(size=len(flat))).to(flat))
        run_round(engine, trials)
        return [torch.cat(one.owned.grads).cpu() for one in trials]

    # In the head of distilbert a unit near zero would be on in one precision and off in the other.
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda _, x: functional.gelu(x))
    mine = gradients("cuda", torch.bfloat16)
    monkeypatch.setattr(open_backbone, "suits", lambda *_: True)
    for a, b in zip(mine, gradients("cpu", torch.float32), strict=True):
        near(a, b, roundings=12)


@pytest.mark.parametrize(("accumulation", "max_tokens"), [(1, 100), (3, 1000)])
def test_replayed_passes_are_those_that_ran(
    monkeypatch: pytest.MonkeyPatch, accumulation: int, max_tokens: int
) -> None:
    """A cohort whose passes are captured and replayed ends bit-equal to one whose passes run kernel by kernel.

    Evaluations lay out other companies meanwhile; trials end one after the other; the last batch of an epoch is short.
    """
    given = [
        changed(
            replace(one, train=replace(one.train, rows=one.train.rows[:15])),
            num_train_epochs=n,
            gradient_accumulation_steps=accumulation,
        )
        for one, n in zip(TRIALS, (6, 5, 4, 3), strict=True)
    ]

    def in_pairs(cohort: Cohort, event: Event) -> None:
        if isinstance(event, EpochDone):
            for two in combinations(cohort.active, 2):
                rows = [one.given.selection for one in two]
                cohort.engine.predict([one.owned for one in two], rows, [4, 4])

    def outcome(captures: bool) -> tuple[dict[str, Tensor], int]:
        engine, captured = engine_on("cuda", torch.bfloat16), 0
        assert engine.graphs is not None
        capture = engine.graphs._capture

        def counted(form: Any) -> Any:
            nonlocal captured
            captured += 1
            return capture(form)

        monkeypatch.setattr(engine.graphs, "_capture", counted)
        engine.graphs.captures = captures
        endings = train(engine, given, max_tokens=max_tokens, watch=in_pairs)
        return {ident: flat(end.epochs[-1]) for ident, end in endings.items()}, captured

    (found, some), (plain, none) = outcome(True), outcome(False)
    assert some > 0
    assert none == 0
    for ident, value in plain.items():
        assert torch.equal(found[ident], value)


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


def test_a_resumed_trial_is_the_uninterrupted_one() -> None:
    """A snapshot is read to the processor; from there all of it goes back to the GPU."""
    engine = engine_on("cuda", torch.bfloat16)
    given = trial("lora", {"r": 4}, num_train_epochs=3)
    cut: list[tuple[dict[str, Tensor], dict[str, Any]]] = []

    def keep(_: Cohort, event: Event) -> None:
        if isinstance(event, EpochDone) and event.result.epoch == 1:
            tensors, numbers = event.trial.checkpoint()
            cut.append(({n: t.cpu().clone() for n, t in tensors.items()}, numbers))

    whole = train(engine, [given], watch=keep)[given.spec.id]
    cohort = Cohort(engine, [], size=1, max_tokens=10**6)
    resumed = cohort.place(given, cut[0])
    for _ in cohort.run():
        pass
    for name, value in whole.best.items():
        assert torch.equal(resumed.owned.state()[name], value), name


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
        run_round(engine, trials)
        return [one.advance() for one in trials]

    for _ in range(3):
        a_round()  # compiles kernels, then captures
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        a_round()
    finally:
        torch.cuda.set_sync_debug_mode("default")
