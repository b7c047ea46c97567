"""Passes: how a round is cut, and that parts of a micro-batch are the same computation as the whole."""

from __future__ import annotations

import copy
import time
from functools import partial
from itertools import groupby
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fleetune.backbone.families import FAMILIES as FAMILY_ROWS
from fleetune.cohort import passes as passes_module
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, EpochDone, TrialDone
from fleetune.cohort.lanes import Lanes
from fleetune.cohort.passes import Part, are_alone, cut, divide, micro_batches
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Trial
from tests.cohort import test_isolation
from tests.cohort.test_isolation import EVEN, HEAD
from tests.tiny import tiny_model

# Rows of one token beside others would make what is laid out here less even than it is said to be.
trial = partial(test_isolation.trial, table=EVEN)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny micro-batches of these tests are to be divided too."""
    monkeypatch.setattr(passes_module, "LEAST_TOKENS", 1)


def engine_with(model: Any, lanes: int) -> Engine:
    engine = Engine(copy.deepcopy(model), HEAD, dtype=torch.float64)
    engine.lanes.count = lanes
    return engine


def outcome(model: Any, inputs: list[Any], lanes: int, max_tokens: int = 10**6) -> dict[str, Any]:
    """Final weights and epoch losses by trial."""
    cohort = Cohort(engine_with(model, lanes), inputs, size=8, max_tokens=max_tokens)
    found: dict[str, Any] = {}
    for event in cohort.run():
        if isinstance(event, EpochDone):
            losses = [result.loss for result in event.trial.results]
            found[event.trial.id] = (event.trial.owned.state(), losses)
    return found


NOISY = [
    trial("lora", 0, {"r": 4, "lora_dropout": 0.3}, rows=13, dropout=None),
    trial("bitfit", 1, rows=13, dropout=0.2, gradient_accumulation_steps=2),
    trial("full", 2, rows=13, dropout=None, learning_rate=1e-3),
]


FAMILIES = ("bert", "modernbert", "eurobert", "albert", "mpnet", "deberta-v2")
# A packed family with a lane for each row and more, one with windows, one that is padded.
QUICK = {("bert", 2), ("bert", 7), ("modernbert", 3), ("mpnet", 3)}


@pytest.mark.parametrize(
    ("family", "lanes"),
    [
        (family, lanes)
        if (family, lanes) in QUICK
        else pytest.param(family, lanes, marks=pytest.mark.slow)
        for family in FAMILIES
        for lanes in (2, 3, 7)
    ],
)
def test_parts_are_the_whole(family: str, lanes: int) -> None:
    """On any number of lanes, dropout included; a lane for each row and more are possible too."""
    model = tiny_model(family).double()
    with_biases = family not in ("modernbert", "eurobert")
    inputs = [g for g in NOISY if with_biases or g.method.name != "bitfit"]
    # mpnet's table of relative positions belongs to no trial, so who owns it trains alone.
    company = [g for g in inputs if family != "mpnet" or g.method.name != "full"]
    companies = [company] if FAMILY_ROWS[family].shares else []
    for mates in ([inputs[0]], [inputs[-1]], *companies):
        expected, found = outcome(model, mates, 1), outcome(model, mates, lanes)
        assert expected.keys() == found.keys()
        for ident, (weights, losses) in expected.items():
            assert found[ident][1] == pytest.approx(losses, rel=1e-10)
            for name, value in weights.items():
                assert_close(found[ident][0][name], value, rtol=1e-9, atol=1e-9)


def test_the_same_lanes_give_the_same_bits() -> None:
    """Which lane ends first is chance, and must leave no trace."""
    model = tiny_model("bert").double()
    first, second = (outcome(model, NOISY, 3, max_tokens=60) for _ in range(2))
    for ident, (weights, losses) in first.items():
        assert second[ident][1] == losses
        for name, value in weights.items():
            assert torch.equal(second[ident][0][name], value)


def test_lanes_work_in_threads_of_one_thread_each() -> None:
    lanes = Lanes(torch.device("cpu"))
    lanes.count = 3
    seen = lanes.map(lambda _: torch.get_num_threads(), range(6))
    assert seen == [1] * 6
    assert lanes.map(lambda x: -x, [5, 4, 3, 2, 1]) == [-5, -4, -3, -2, -1], "in their order"
    with pytest.raises(ZeroDivisionError):
        lanes.map(lambda x: 1 // x, [1, 0, 1])


def test_no_pass_runs_on_when_an_error_is_raised() -> None:
    """Else the memory that they hold would be missing to whoever tries again with less."""
    lanes = Lanes(torch.device("cpu"))
    lanes.count = 2
    running, ran = set[int](), list[int]()

    def run(x: int) -> None:
        ran.append(x)
        if x == 0:
            raise MemoryError
        running.add(x)
        time.sleep(0.3)
        running.discard(x)

    with pytest.raises(MemoryError):
        lanes.map(run, range(20))
    assert not running and len(ran) < 20


def is_whole(part: Part) -> bool:
    return len(part.rows) == part.total


def parts(counts: list[int], lanes: int) -> list[Part]:
    """Micro-batches of so many rows each."""
    model = tiny_model("bert")
    engine = Engine(model, HEAD)
    made = [
        trial("bitfit", seed, rows=38, per_device_train_batch_size=n)
        for seed, n in enumerate(counts)
    ]
    engine.lanes.count = lanes
    return micro_batches(engine, [Trial(one, engine.start(one)) for one in made])


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # it changes nothing between examples
)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    lanes=st.integers(1, 4),
    limit=st.integers(1, 400),
)
def test_every_row_is_in_one_pass(counts: list[int], lanes: int, limit: int) -> None:
    whole, made = parts(counts, 1), parts(counts, lanes)
    passes = cut(made, limit, lanes)
    place = {id(part): n for n, part in enumerate(made)}
    laid = [place[id(part)] for one in passes for part in one]
    assert sorted(laid) == list(range(len(made))), "each once"
    for one in passes:
        assert [place[id(part)] for part in one] == sorted(place[id(part)] for part in one), (
            "in order"
        )
        assert len(one) == 1 or sum(part.tokens for part in one) <= limit
        assert len({part.trial.id for part in one}) == len(one)
    for batch in whole:
        mine = sorted(
            (p for p in made if p.trial.id == batch.trial.id), key=lambda p: p.rows_before
        )
        assert np.array_equal(np.concatenate([p.rows for p in mine]), batch.rows)
        assert [p.rows_before for p in mine] == np.cumsum([0, *(len(p.rows) for p in mine)])[
            :-1
        ].tolist()
        assert [p.tokens_before for p in mine] == np.cumsum([0, *(p.tokens for p in mine)])[
            :-1
        ].tolist()
        assert all(p.total == len(batch.rows) for p in mine)


@pytest.mark.parametrize("steady", [True, False])
def test_passes_that_did_not_fit_are_cut_again_by_trial(steady: bool) -> None:
    """A pass that had a trial in two places would add two gradients to one tensor at once on a GPU. All of a round's failed."""
    engine = Engine(tiny_model("bert"), HEAD)
    engine.lanes.count = 1
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16, "rows": 38}
    made = [trial("bitfit", seed, **settings) for seed in range(4)]
    trials = [Trial(one, engine.start(one)) for one in made]
    whole = micro_batches(engine, trials, 10**6)
    assert len(whole) == 64
    held = sum(part.tokens for part in whole)
    failed = cut(whole, held // 2, 1, steady=steady)
    assert len(failed) > 1
    for limit in (held // 3, held // 5, held // 7, held // 16):
        for one in cut([part for group in failed for part in group], limit, 1, steady=steady):
            runs = [own for own, _ in groupby(part.trial.id for part in one)]
            assert len(runs) == len(set(runs))
            for own in runs:
                numbers = [part.ahead for part in one if part.trial.id == own]
                assert numbers == sorted(numbers)


def test_lanes_are_filled_evenly() -> None:
    loads = [sum(part.tokens for part in one) for one in cut(parts([12] * 8, 2), 10**6, 2)]
    assert len(loads) == 2 and max(loads) < 1.4 * min(loads)
    assert {is_whole(part) for part in parts([5] * 8, 2)} == {True}
    odd = cut(parts([5] * 3, 2), 10**6, 2)
    assert [len({part.trial.id for part in one}) for one in odd] == [3, 3]
    loads = [sum(part.tokens for part in one) for one in odd]
    assert max(loads) < 1.2 * min(loads)
    assert len(cut(parts([5] * 9, 2), 10**6, 2)) == 2
    assert {is_whole(part) for part in parts([5] * 9, 2)} == {True}, "nine are even enough"


@given(tokens=st.lists(st.integers(1, 60), min_size=2, max_size=12), lanes=st.integers(1, 4))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_passes_are_balanced(tokens: list[int], lanes: int) -> None:
    """Without any of its parts the fullest pass holds no more than the least full one."""
    made = [Part(cast("Trial", object()), np.arange(n), n) for n in tokens]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Part, "tokens", property(lambda part: len(part.rows)))
        passes = cut(made, 10**6, lanes)
    loads = [sum(len(part.rows) for part in one) for one in passes]
    assert sum(loads) == sum(tokens)
    assert len(loads) == min(lanes, len(tokens))
    fullest = passes[loads.index(max(loads))]
    assert max(loads) - min(len(part.rows) for part in fullest) <= min(loads)


MATES = [
    trial(
        "lora",
        0,
        {"r": 4, "lora_dropout": 0.3},
        rows=37,
        dropout=None,
        gradient_accumulation_steps=4,
    ),
    trial("bitfit", 1, rows=37, dropout=0.2, gradient_accumulation_steps=4),
    trial("lora", 3, {"target_modules": "all-linear"}, rows=37, gradient_accumulation_steps=3),
    trial("head", 4, rows=22, dropout=0.0, gradient_accumulation_steps=3),
]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "lanes", "count"),
    [
        *(("bert", lanes, count) for lanes in (1, 2, 3) for count in (1, 2, 4)),
        ("mpnet", 1, 4),  # padded
        slow("mpnet", 2, 2),
        *(slow(family, 1, 4) for family in ("modernbert", "albert", "distilbert", "eurobert")),
    ],
)
def test_groups_at_once_are_one_micro_batch_after_the_other(
    family: str, lanes: int, count: int
) -> None:
    """In fewer rounds; dropout, losses and groups that end with an epoch included. Four on one lane are one slice each."""
    model = tiny_model(family).double()
    company = {1: MATES[:1], 2: MATES[1:3], 4: MATES}[count]
    if family in ("modernbert", "eurobert"):  # without biases
        company = [g for g in company if g.method.name != "bitfit"]
        company.append(trial("lora", 1, rows=37, dropout=0.2, gradient_accumulation_steps=4))
    rounds: list[int] = []
    found: list[dict[str, Any]] = []
    for max_tokens in (1, 10**6):
        cohort = Cohort(engine_with(model, lanes), company, size=8, max_tokens=max_tokens)
        events = list(cohort.run())
        rounds.append(sum(isinstance(event, Advanced) for event in events))
        done = [event.trial for event in events if isinstance(event, TrialDone)]
        found.append({t.id: (t.owned.state(), [(r.step, r.loss) for r in t.results]) for t in done})
    one_by_one, at_once = found
    assert rounds[1] <= 0.7 * rounds[0]
    assert one_by_one.keys() == at_once.keys() == {t.spec.id for t in company}
    for ident, (weights, results) in one_by_one.items():
        assert [step for step, _ in at_once[ident][1]] == [step for step, _ in results]
        losses = [loss for _, loss in results]
        assert [loss for _, loss in at_once[ident][1]] == pytest.approx(losses, rel=1e-10)
        for name, value in weights.items():
            assert_close(at_once[ident][0][name], value, rtol=1e-9, atol=1e-9)


def test_a_round_holds_no_more_than_a_pass_a_lane() -> None:
    engine = engine_with(tiny_model("bert"), 2)
    made = [Trial(one, engine.start(one)) for one in MATES[:2]]
    one = sum(part.tokens for part in micro_batches(engine, made))
    counts = [len(micro_batches(engine, made, limit)) for limit in (1, one // 2 - 1, one, 10**6)]
    assert counts == [2, 2, 4, 8]
    assert {part.siblings for part in micro_batches(engine, made, one)} == {2}
    assert {part.siblings for part in micro_batches(engine, made, 1)} == {1}
    assert [p.ahead for p in micro_batches(engine, made, 10**6)] == [0, 1, 2, 3] * 2
    made[0].advance(3)
    assert len(micro_batches(engine, made, 10**6)) == 2, "one of the group is left"


def test_small_groups_of_many_trials_are_one_slice_each() -> None:
    """More than a pass a lane, as long as each trial's are a quarter of a pass; and none is divided among passes."""
    engine = engine_with(tiny_model("bert"), 2)
    given = [trial("bitfit", k, rows=38, gradient_accumulation_steps=3) for k in range(9)]
    made = [Trial(one, engine.start(one)) for one in given]
    largest = max(sum(p.tokens for p in micro_batches(engine, [one], 10**6)) for one in made)
    every = micro_batches(engine, made, 4 * largest)
    assert [part.ahead for part in every] == [0, 1, 2] * 9
    passes = cut(every, 4 * largest, 2)
    assert len(passes) > 2, "it is more than two passes hold"
    assert all(sum(part.tokens for part in one) <= 4 * largest for one in passes)
    assert all(are_alone(one) for one in passes)
    assert len(micro_batches(engine, made, 4 * largest - 1)) < 27
    # Smaller passes, after memory did not suffice, divide them again.
    small = cut(every, largest // 2, 2)
    assert not all(are_alone(one) for one in small)
    assert sorted(id(part) for one in small for part in one) == sorted(map(id, every))


def test_who_owns_the_backbone_goes_one_micro_batch_at_a_time() -> None:
    engine = engine_with(tiny_model("bert"), 1)
    full = trial("full", 2, rows=13, gradient_accumulation_steps=2)
    assert len(micro_batches(engine, [Trial(full, engine.start(full))], 10**6)) == 1


def test_small_micro_batches_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sum(part.tokens for part in parts([5], 1))
    monkeypatch.setattr(passes_module, "LEAST_TOKENS", tokens // 2 + 1)
    assert [is_whole(part) for part in parts([5], 2)] == [True]
    monkeypatch.setattr(passes_module, "LEAST_TOKENS", tokens // 2)
    assert [is_whole(part) for part in parts([5], 2)] == [False, False]


def test_a_batch_of_fewer_rows_than_lanes_has_a_part_a_row() -> None:
    (whole,) = parts([2], 1)
    assert [len(part.rows) for part in divide(whole, 4)] == [1, 1]


def test_a_part_is_divided_as_its_whole_is() -> None:
    """Each says what of the whole micro-batch comes before it, and how many there are."""
    (whole,) = parts([11], 1)
    first, second = divide(whole, 2)
    for part in (first, second, *divide(first, 2), *divide(second, 3)):
        before = whole.lengths[: part.rows_before]
        end = part.rows_before + len(part.rows)
        assert part.rows.tolist() == whole.rows[part.rows_before : end].tolist()
        assert part.tokens_before == before.sum()
        assert part.squares_before == (before**2).sum()
        assert part.words_before == (before * -(-before // 8)).sum()
    assert [part.siblings for part in (first, second, *divide(second, 3))] == [2, 2, 4, 4, 4]
