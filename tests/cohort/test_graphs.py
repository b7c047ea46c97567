"""Which passes of a GPU are captured, replayed and forgotten; on the CPU a stand-in is replayed (on_a_gpu.py)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fleetune.backbone import laid
from fleetune.cohort import graphs as graphs_module
from fleetune.cohort import own
from fleetune.cohort import train as train_module
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, Event, PassesShrunk
from fleetune.cohort.graphs import Graphs, Work
from fleetune.cohort.memory import estimate
from fleetune.cohort.passes import Part, Passed, cut, micro_batches, run_pass, work_of
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Trial, TrialInput
from tests.cohort.on_a_gpu import plain_engine, quick_engine, replaying
from tests.cohort.outcomes import assert_bit_equal, train, trial

# Fifteen rows in batches of four: the last of an epoch has three.
GIVEN = [
    trial("lora", {"r": 4, "lora_dropout": 0.1}, ident="a", rows=15, dropout=0.1, num_train_epochs=3),
    trial("bitfit", ident="b", seed=1, rows=15, dropout=0.1, num_train_epochs=3),
    trial("head", ident="c", seed=2, rows=15, dropout=0.1, num_train_epochs=2),
    trial("lora", {"r": 2}, ident="d", seed=3, dropout=0.1, num_train_epochs=1),
]  # fmt: skip


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Of a GPU whose graphs are stand-ins."""
    return replaying(quick_engine(monkeypatch), monkeypatch)


def graphs_of(engine: Engine) -> Graphs:
    assert engine.graphs is not None
    return engine.graphs


def trials_of(engine: Engine, given: list[TrialInput]) -> list[Trial]:
    return [Trial(one, engine.start(one)) for one in given]


def in_groups(given: TrialInput, count: int) -> TrialInput:
    """The same trial, a step of it so many micro-batches."""
    update = {"gradient_accumulation_steps": count}
    return replace(given, settings=given.settings.model_copy(update=update))


def a_pass(engine: Engine, trials: list[Trial]) -> None:
    run_pass(engine, micro_batches(engine, trials))
    for one in trials:
        one.advance()


@pytest.mark.parametrize(("accumulation", "max_tokens"), [(1, 100), (2, 1000)])
def test_a_cohort_that_replays_ends_as_one_that_does_not(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, accumulation: int, max_tokens: int
) -> None:
    """Trials end one after the other, and the last batch of an epoch is short; groups are one slice of a pass."""
    given = [in_groups(one, accumulation) for one in GIVEN]
    forms: list[tuple[int, ...]] = []
    run = graphs_of(engine).run

    def running(work: Work) -> torch.Tensor:
        forms.append((len(work.owned), len(work.keys)))
        return run(work)

    monkeypatch.setattr(graphs_of(engine), "run", running)
    found = train(engine, given, max_tokens=max_tokens)
    assert graphs_of(engine).captures
    assert ((4, 8) in forms) == (accumulation == 2)
    plain = quick_engine(monkeypatch)
    for ident, ending in train(plain, given, max_tokens=max_tokens).items():
        assert_bit_equal(found[ident], ending)
    assert not graphs_of(engine)._seen, "all have left"
    assert not graphs_of(engine)._stacks._kept


def test_what_was_measured_takes_no_memory_from_then_on(engine: Engine) -> None:
    estimate(engine, GIVEN)
    assert not graphs_of(engine)._stacks._kept


def test_a_replay_counts_positions_as_other_passes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that hold the padding token, in a family that does not count it."""
    one = trial("lora", num_train_epochs=3)
    table = one.train.table
    ids = np.where(np.arange(len(table.ids)) % 3 == 1, 1, table.ids)
    one = replace(one, train=replace(one.train, table=replace(table, ids=ids)))
    engine = replaying(quick_engine(monkeypatch, "roberta"), monkeypatch)
    assert ids[0] != engine.backbone.config.pad_token_id == ids[1]
    found = train(engine, [one])[one.spec.id]
    expected = train(plain_engine("roberta"), [one])[one.spec.id]
    assert found.how == expected.how == "done"
    for name, value in expected.epochs[-1].items():
        assert_close(found.epochs[-1][name], value, rtol=1e-9, atol=1e-9)


def test_what_a_graph_reads_lives_as_long_as_it(engine: Engine) -> None:
    """Evaluations in many groups lay out other companies, and only some layouts are kept."""
    trials = trials_of(engine, GIVEN)
    for _ in range(3):
        a_pass(engine, trials)
    (form,) = [form for form in graphs_of(engine)._seen.values() if form.graph]
    captured = form.layout
    for k in range(4):
        engine.predict([trials[k].owned], [GIVEN[k].selection], [4])
    engine.predict([t.owned for t in trials[:2]], [g.selection for g in GIVEN[:2]], [4, 4])
    assert captured is not None
    assert form.layout is captured


@pytest.fixture
def by_kernels(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The forms of passes that run kernel by kernel, in their order; a replay does nothing, and reads nothing anew."""
    graphs, found = graphs_of(engine), list[object]()
    step = graphs._step

    def stepping(form: object) -> torch.Tensor:
        found.append(form)
        return step(form)  # type: ignore[arg-type]

    def capturing(form: Any) -> object:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(own, "lay_out", None)  # it sends, which a capture must not
            losses = torch.zeros_like(step(form))
        form.graph = SimpleNamespace(replay=lambda: None), losses
        return form.graph

    monkeypatch.setattr(graphs, "_step", stepping)
    monkeypatch.setattr(graphs, "_capture", capturing)
    return found


def test_a_form_with_a_graph_is_replayed_though_the_one_that_ran_is_forgotten(
    engine: Engine, by_kernels: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass by kernels would leave it with another layout than its graph reads."""
    monkeypatch.setattr(graphs_module, "_MOST", 2)
    graphs = graphs_of(engine)
    mine, other = trials_of(
        engine,
        [trial("bitfit", ident=i, rows=9, per_device_train_batch_size=5, num_train_epochs=9) for i in "ab"],
    )  # fmt: skip
    graphs.run(work_of(engine, micro_batches(engine, [mine])))  # type: ignore[arg-type]
    mine.advance()
    work = work_of(engine, micro_batches(engine, [mine]))
    assert work is not None
    graphs.run(work)
    (form,) = [form for form in graphs._seen.values() if form.graph]
    layout = form.layout
    graphs.run(work_of(engine, micro_batches(engine, [other])))  # type: ignore[arg-type]
    for one in trials_of(engine, GIVEN):
        engine.predict([one.owned], [one.given.selection], [4])
    assert not any(one.ran for one in graphs._seen.values() if one.work.owned == work.owned)
    graphs.run(work)
    assert len(by_kernels) == 2
    assert form.layout is layout


def test_a_pass_that_is_replayed_lays_no_tables_out(
    engine: Engine, by_kernels: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a round has more companies than are kept. Nor does a round that is laid out before its turn take memory."""
    monkeypatch.setattr(own, "_KEPT", 4)
    trials = trials_of(engine, [trial("bitfit", ident=str(k), num_train_epochs=9) for k in range(6)])  # fmt: skip
    for one in (*trials, *trials):
        a_pass(engine, [one])
    monkeypatch.setattr(own, "lay_out", None)
    for one in trials:
        a_pass(engine, [one])
    assert len(by_kernels) == len(trials)


def test_a_capture_meets_no_kernel_for_the_first_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention has other kernels for another size of block, and a capture must not load one."""
    graphs = graphs_of(engine)
    ran: set[object] = set()
    captured: list[int] = []
    step, capture = graphs._step, graphs._capture

    def stepping(form: object) -> torch.Tensor:
        ran.add(form.loads)  # type: ignore[attr-defined]
        return step(form)  # type: ignore[arg-type]

    def capturing(form: object) -> object:
        assert form.loads in ran, "its kernels have not run"  # type: ignore[attr-defined]
        captured.append(form.loads[1])  # type: ignore[attr-defined]
        return capture(form)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "_step", stepping)
    monkeypatch.setattr(graphs, "_capture", capturing)
    # Four rows of up to 14 tokens, or one alone: both are filled up to 64 rows of the pass.
    (one,) = trials_of(engine, [trial("bitfit", rows=5, dropout=0.1, num_train_epochs=9)])
    for _ in range(6):
        a_pass(engine, [one])
    assert sorted(set(captured)) == [16, 64]


@pytest.fixture
def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How much was sent, and how many passes ran for a graph; of these none may send: a replay would read what is gone."""
    graphs, found = graphs_of(engine), Counter[str]()
    step, send = graphs._step, laid.send

    def stepping(form: object) -> torch.Tensor:
        before = found["sent"]
        losses = step(form)  # type: ignore[arg-type]
        if form.graph is not None:  # type: ignore[attr-defined]
            found["replays"] += 1
            assert found["sent"] == before
        return losses

    def sending(values: np.ndarray, device: torch.device) -> torch.Tensor:
        found["sent"] += 1
        return send(values, device)

    monkeypatch.setattr(graphs, "_step", stepping)
    monkeypatch.setattr(laid, "send", sending)
    return found


def test_a_capture_sends_nothing(engine: Engine, counted: Counter[str]) -> None:
    """Groups of three micro-batches and of one, so of as many dropout rates."""
    train(engine, [in_groups(one, 3) for one in GIVEN[:3]], max_tokens=1000)
    assert counted["replays"]
    assert counted["sent"]


def test_a_capture_has_the_dropout_rates_of_who_brings_more(
    engine: Engine, counted: Counter[str]
) -> None:
    """Three micro-batches each time, now two of one trial and now two of the other, whose rates differ."""
    graphs = graphs_of(engine)
    made = [
        trial("bitfit", ident=i, dropout=rate, num_train_epochs=9)
        for i, rate in (("a", 0.1), ("b", 0.3))
    ]
    trials = trials_of(engine, [in_groups(one, 2) for one in made])
    a, a2, b, b2 = micro_batches(engine, trials, 10**6)
    for group in ([a, a2, b], [a, b, b2], [a, a2, b], [a, b, b2]):
        graphs.run(work_of(engine, group))  # type: ignore[arg-type]
    assert counted["sent"] and len([f for f in graphs._seen.values() if f.graph]) == 2


def test_a_group_that_does_not_fit_is_done_in_smaller_passes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single trial's too, down to its micro-batches; the results are those of a machine with room."""
    one = in_groups(GIVEN[0], 3)
    expected = train(quick_engine(monkeypatch), [one])
    run = graphs_of(engine).run

    def refusing(work: Work) -> torch.Tensor:
        if len(work.keys) > 1:
            raise torch.OutOfMemoryError
        return run(work)

    monkeypatch.setattr(graphs_of(engine), "run", refusing)
    found = train(engine, [one], max_tokens=1000)
    for name, value in expected["a"].epochs[-1].items():
        assert_close(found["a"].epochs[-1][name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by_graphs", [True, False])
def test_a_micro_batch_that_does_not_fit_is_done_in_parts(
    monkeypatch: pytest.MonkeyPatch, by_graphs: bool
) -> None:
    """They draw the dropout of the whole, and each adds its gradient once."""
    given = [in_groups(one, 2) for one in GIVEN]

    def made() -> Engine:
        engine = replaying(quick_engine(monkeypatch), monkeypatch)
        if not by_graphs:
            monkeypatch.setattr(graphs_of(engine), "takes", lambda owned: False)
        return engine

    expected = train(made(), given)
    engine, refused = made(), 0
    backbone = engine.backbone
    logits = backbone._logits

    def refusing(stream: Any, *rest: Any) -> Any:
        nonlocal refused
        if stream.noise is not None and stream.n_tokens > 20:
            refused += 1
            raise torch.OutOfMemoryError
        return logits(stream, *rest)

    monkeypatch.setattr(backbone, "_logits", refusing)
    found = train(engine, given, max_tokens=1000)
    assert refused
    for ident, ending in expected.items():
        assert found[ident].how == "done"
        for name, value in ending.epochs[-1].items():
            assert_close(found[ident].epochs[-1][name], value, rtol=1e-9, atol=1e-9)


def test_as_many_sequences_shared_otherwise_are_another_form(engine: Engine) -> None:
    """A graph holds each trial's slice of the sequences."""
    # Micro-batches of 4 and 2 rows in turn; the second trial is one ahead.
    trials = trials_of(
        engine, [trial("bitfit", ident=k, rows=6, dropout=0.1, num_train_epochs=9) for k in "ab"]
    )
    trials[1].advance()
    for _ in range(4):
        a_pass(engine, trials)
    found = [form.work.targets.counts for form in graphs_of(engine)._seen.values()]
    assert set(found) == {(4, 2), (2, 4)}


def test_forms_of_a_trial_that_has_left_are_forgotten(engine: Engine) -> None:
    """The others stay, since a round of several passes may be shared in several ways."""
    trials = trials_of(engine, GIVEN)
    for members in (trials, trials[:2], trials[2:], trials[1:3]):
        a_pass(engine, members)
    graphs_of(engine).forget(trials[0].owned)
    kept = {form.work.owned for form in graphs_of(engine)._seen.values()}
    assert kept == {tuple(t.owned for t in some) for some in (trials[2:], trials[1:3])}


@pytest.mark.parametrize("shortages", [1, 4])
def test_graphs_give_way_before_passes_become_smaller(
    engine: Engine, shortages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their pool is memory that nothing else can use. The results are those of a machine with room."""
    expected = train(quick_engine(monkeypatch), GIVEN)
    graphs, left = graphs_of(engine), shortages
    capture = graphs._capture

    def capturing(form: object) -> object:
        nonlocal left
        if left:
            left -= 1
            graphs._capturing = True
            raise torch.OutOfMemoryError
        return capture(form)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "_capture", capturing)
    events: list[Event] = []
    found = train(engine, GIVEN, watch=lambda _, event: events.append(event))
    assert not any(isinstance(event, PassesShrunk) for event in events)
    assert left == (0 if shortages == 1 else 1)
    assert graphs.captures == (shortages == 1), "with too many shortages there is no room for them"
    for ident, ending in expected.items():
        assert_bit_equal(found[ident], ending)


def test_an_evaluation_has_the_memory_of_graphs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = engine.predict

    def predicting(*given: object) -> object:
        if any(form.graph for form in graphs_of(engine)._seen.values()):
            raise torch.OutOfMemoryError
        return predict(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "predict", predicting)
    events: list[Event] = []
    found = train(engine, GIVEN, watch=lambda _, event: events.append(event))
    assert {ending.how for ending in found.values()} == {"done"}
    assert not any(isinstance(event, PassesShrunk) for event in events)


def test_rounds_of_the_same_trials_are_cut_alike(engine: Engine) -> None:
    """Batches vary in their tokens; only where one passes the limit are they cut by what they hold."""
    given = [trial("bitfit", ident=str(k), seed=k, num_train_epochs=3) for k in range(6)]
    seen: set[tuple[tuple[str, ...], ...]] = set()
    rounds = 0
    cohort = Cohort(engine, given, size=6, max_tokens=150)
    for event in cohort.run():
        if isinstance(event, Advanced) and len(cohort.active) == 6:
            rounds += 1
            parts = micro_batches(engine, cohort.active)
            groups = cut(parts, 150, 1, steady=True)
            assert all(sum(part.tokens for part in one) <= 150 for one in groups)
            seen.add(tuple(tuple(part.trial.id for part in one) for one in groups))
    assert rounds > 8
    assert len(seen) == 1


def test_a_group_that_no_pass_holds_is_one_round_of_passes_alike(engine: Engine) -> None:
    """Each holds one micro-batch of every trial, in their order, so that one form serves them all."""
    trials = trials_of(engine, [in_groups(one, 3) for one in GIVEN])
    typical = sum(one.typical for one in trials)
    limit = int(1.5 * typical)
    parts = micro_batches(engine, trials, limit)
    assert [part.ahead for part in parts] == [0, 1, 2] * len(GIVEN)
    groups = cut(parts, limit, 1, steady=True)
    assert [[part.ahead for part in own] for own in groups] == [[n] * len(GIVEN) for n in range(3)]
    assert all([part.trial for part in own] == trials for own in groups)
    # Two of each fit this limit: a trial's are neighbours.
    groups = cut(parts, int(2.5 * typical), 1, steady=True)
    assert [[part.ahead for part in own] for own in groups] == [[0, 1] * len(GIVEN), [2] * len(GIVEN)]  # fmt: skip
    few = micro_batches(engine, trials, int(typical / 4) + 1)
    assert {part.ahead for part in few} == {0, 1}, "a round has so many passes and no more"


@pytest.mark.parametrize("fails", [False, True])
def test_rounds_laid_out_before_their_turn_are_those_of_their_turn(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Also where a trial fails in the round that they were laid out in, and where its epoch ends."""
    given = [in_groups(one, 2) for one in GIVEN]
    rate = {"learning_rate": 1e300 if fails else 1e-3}
    given[1] = replace(given[1], settings=given[1].settings.model_copy(update=rate))
    taken = 0
    run = train_module.run_pass

    def running(engine: Engine, group: list[Part], work: Work | None = None) -> Passed:
        nonlocal taken
        taken += work is not None
        return run(engine, group, work)

    monkeypatch.setattr(train_module, "run_pass", running)
    found = train(engine, given, max_tokens=150)
    assert taken
    assert (found["b"].how != "done") == fails
    monkeypatch.setattr(Cohort, "_lay_ahead", lambda self: None)
    for ident, ending in train(quick_engine(monkeypatch), given, max_tokens=150).items():
        assert_bit_equal(found[ident], ending)
