"""Cohorts as a GPU trains them, by the references of its kernels on the CPU, against the ways of a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fleetune.backbone.laid import arrays, laid
from fleetune.backbone.noise import NoiseKey
from fleetune.cohort import layers, passes
from fleetune.cohort.engine import Engine
from fleetune.cohort.graphs import step_of
from fleetune.cohort.own import active_of
from fleetune.cohort.passes import micro_batches, run_pass
from fleetune.cohort.tables import ALIGNED, Tables, fits, lay_out
from fleetune.cohort.trial import Trial, TrialInput
from tests.cohort.on_a_gpu import plain_engine, quick_engine
from tests.cohort.outcomes import train, trial
from tests.tiny import CONFIGS


def mixed(dropout: float) -> list[TrialInput]:
    """Trials of all kinds, each with so much dropout."""
    every = {"r": 9, "target_modules": "all-linear", "lora_dropout": dropout}
    return [
        trial("lora", {"r": 4, "lora_dropout": dropout}, ident="a", dropout=dropout, num_train_epochs=2),
        trial("bitfit", ident="b", seed=1, dropout=dropout, num_train_epochs=2),
        trial("head", ident="c", seed=2, dropout=dropout, num_train_epochs=2),
        trial("lora", every, ident="d", seed=3, dropout=dropout, num_train_epochs=2),
        trial("bitfit", {"terms": "query,output"}, ident="e", seed=4, dropout=dropout, per_device_train_batch_size=3),
    ]  # fmt: skip


TRIALS = mixed(0.1)
USUAL = ("bert", "roberta", "distilbert", "modernbert")
PACKED = [
    f if f in USUAL else pytest.param(f, marks=pytest.mark.slow)
    for f in CONFIGS
    if f not in ("mpnet", "deberta-v2")
]


def of(family: str, given: list[TrialInput] = TRIALS) -> list[TrialInput]:
    """Those that the family can train: three have no biases."""
    without = family in ("modernbert", "eurobert", "nomic_bert")
    return [one for one in given if not without or one.method.name != "bitfit"]


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([values[name].reshape(-1) for name in sorted(values)])


def ends(engine: Engine, given: list[TrialInput]) -> dict[str, Any]:
    return {ident: end.epochs[-1] for ident, end in train(engine, given).items()}


@pytest.mark.parametrize("family", PACKED)
def test_a_cohort_by_tables_ends_as_the_plain_one_does(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, whose bits are others. AdamW divides gradients by their size, also those that are little but rounding."""
    given = of(family, mixed(0.0))
    engine = plain_engine(family)
    mine, plain = ends(quick_engine(monkeypatch, family), given), ends(engine, given)
    for one in given:
        start, ident = flat(engine.start(one).state()), one.spec.id
        apart = float((flat(mine[ident]) - flat(plain[ident])).norm())
        assert apart <= 1e-6 * float((flat(plain[ident]) - start).norm())


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("modernbert", "albert"))]
)
def test_company_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: a trial's bits are its own, and rows that fill up the pass change nothing."""
    engine = quick_engine(monkeypatch, family)
    given = of(family)
    together = ends(engine, given)
    for one in given:
        (alone,) = ends(engine, [one]).values()
        for name, value in alone.items():
            assert_close(together[one.spec.id][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spoiled", range(len(TRIALS)))
def test_a_trial_that_diverges_spoils_no_other(
    spoiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the last one, which holds the rows that fill up the pass."""
    engine = quick_engine(monkeypatch)

    def gradients(bad: int | None) -> list[Tensor]:
        trials = [Trial(one, engine.start(one)) for one in TRIALS]
        if bad is not None:
            for flat in trials[bad].owned.flats:
                flat.fill_(torch.nan)
        passed = run_pass(engine, micro_batches(engine, trials))
        passed.add_gradients()
        assert torch.isfinite(passed.losses).tolist() == [k != bad for k in range(len(trials))]
        return [torch.cat(one.owned.grads) for one in trials]

    sound = gradients(None)
    for k, (a, b) in enumerate(zip(sound, gradients(spoiled), strict=True)):
        assert torch.equal(a, b) == (k != spoiled)


def test_only_a_gpu_takes_these_ways() -> None:
    assert plain_engine().graphs is None


# -- tables ---------------------------------------------------------------------------------------


def test_tables_hold_what_each_trial_owns_and_give_gradients_back() -> None:
    engine = plain_engine(dtype=torch.float32)
    owned = [engine.start(one) for one in TRIALS]
    rng = np.random.default_rng(0)
    for one in owned:
        for flat in one.flats:
            flat.copy_(torch.from_numpy(rng.normal(size=len(flat))))
    assert fits(owned, engine.sites)
    backbone = engine.backbone
    layout = lay_out(owned, engine.sites, backbone.bias_of, torch.device("cpu"))
    tables = Tables(layout, owned, torch.float32)
    expected = [[torch.zeros_like(flat) for flat in one.flats] for one in owned]
    seen = 0
    for site in engine.sites.part("encoder"):
        found = tables.at(site.name)
        if site.role == "pooler" or found is None:
            assert site.role == "pooler" or site.kind == "embedding"
            continue
        for into in (t.into for t in (found.bias, found.down, found.up) if t is not None):
            into.copy_(torch.from_numpy(rng.normal(size=tuple(into.shape))))
        for k, one in enumerate(owned):
            slot = one.slots().get(site.name)
            own = one.tensors.get(f"{site.name}.bias")
            if found.bias is not None:
                shared = backbone.bias_of(site.name)
                assert torch.equal(found.bias.values[k], shared if own is None else own)
                _expect(expected[k], one, f"{site.name}.bias", found.bias.into[k])
            if found.down is None or found.up is None:
                assert slot is None
                continue
            rank = 0 if slot is None else len(slot.down)
            assert found.down.values.shape[1] % ALIGNED == 0
            assert not found.down.values[k, rank:].any()
            assert not found.up.values[k, rank:].any()
            if slot is None:
                continue
            seen += 1
            assert torch.equal(found.down.values[k, :rank], slot.down)
            assert torch.equal(found.up.values[k, :rank], (slot.up * slot.scale).T)
            _expect(expected[k], one, f"{site.name}.lora_A", found.down.into[k, :rank])
            _expect(expected[k], one, f"{site.name}.lora_B", slot.scale * found.up.into[k, :rank].T)
    assert seen
    tables.add_gradients()
    tables.add_gradients()  # gradients add up
    for k, one in enumerate(owned):
        for mine, other in zip(one.grads, expected[k], strict=True):
            assert_close(mine, 2 * other)


def _expect(into: list[Tensor], one: Any, name: str, value: Tensor) -> None:
    if name in one.tensors:
        at = one.places[name]
        flat = torch.cat(into)
        flat[at : at + value.numel()] = value.reshape(-1)
        for part, new in zip(into, flat.split([len(p) for p in into]), strict=True):
            part.copy_(new)


def test_a_copy_of_a_weight_is_no_table() -> None:
    engine = plain_engine()
    assert not fits([engine.start(trial("full"))], engine.sites)


def test_the_pooler_stays_with_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes in the head's dtype."""
    engine = quick_engine(monkeypatch)
    owned = [engine.start(TRIALS[3])]
    active = engine.active(owned)
    assert active.tables is not None
    assert active.tables.at("bert.pooler.dense") is None
    whole = active_of(owned).low_rank
    assert set(active.low_rank) == {"bert.pooler.dense"} & set(whole)


# -- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [0, 5])
def test_rows_lie_where_they_are_said_to(spare: int) -> None:
    """The third trial has no sequence."""
    offsets, trials = np.asarray([0, 3, 7, 8, 12]), np.asarray([0, 2, 3, 3, 4])
    found = arrays(offsets, trials, [NoiseKey(n, n + 1) for n in (1, 3, 5, 7)], spare)
    on = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}
    where = laid(on, 4, {})
    assert where.tokens.trial.tolist() == [0] * 7 + [1] + [3] * (4 + spare)
    assert where.tokens.place.tolist() == [*range(7), 0, *range(4 + spare)]
    assert where.tokens.ends.tolist() == [7, 8, 8, 12 + spare]
    assert where.sequences.trial.tolist() == where.sequences.batch.tolist() == [0, 0, 1, 3]
    assert where.sequences.place.tolist() == [0, 1, 0, 0]
    assert where.first_tokens.tolist() == [0, 3, 7, 8]
    assert where.before.tolist() == [0, 3, 0, 0]  # three rows of one word of 128 bits
    assert len(set(where.keys.tolist())) == 4


@pytest.mark.parametrize("count", [1, 64, 220, 1100, 6656, 36_000, 65_536])
def test_few_rows_are_filled_up_in_vain(count: int) -> None:
    step = step_of(count)
    assert step & (step - 1) == 0
    assert step <= max(64, 6 * count**0.5)


def test_a_whole_pass_needs_no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going from trial to trial would cost a GPU what tables save."""
    monkeypatch.setattr(layers, "cohort_linear", None)
    monkeypatch.setattr(passes, "noise_on", None)
    engine = quick_engine(monkeypatch, "roberta")
    trials = [Trial(one, engine.start(one)) for one in TRIALS]
    assert torch.isfinite(run_pass(engine, micro_batches(engine, trials)).losses).all()
