"""What is said of a running run: speed, time left, bests, ends; by arithmetic done here by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetune.cohort.events import (
    Advanced,
    EpochDone,
    Started,
    TrialDone,
    TrialFailed,
    TrialParked,
    TrialStopped,
)
from fleetune.cohort.memory import Needs
from fleetune.cohort.plan import Limits, Planned
from fleetune.live.state import Plan, State, clock, plan_of
from fleetune.study.prepare import prepare
from tests import runs
from tests.live.made_up import Clock, trial
from tests.runs import Made


def test_speed_and_time_left_are_those_of_the_rounds() -> None:
    time = Clock()
    state = State(Plan(trials=2, tokens=3200), time)
    one, two = trial("a"), trial("b")
    for event in (Started(one), Started(two)):
        state.follow(event)
    assert state.seconds_left is None and state.share == 0
    for _ in range(8):
        time.now += 2.0
        state.follow(Advanced((one, two), rows=8, tokens=100))
    # 8 rows and 100 tokens in 2 s; 800 of 3200 tokens are done.
    assert state.examples_per_second == pytest.approx(4.0)
    assert state.seconds_left == pytest.approx(2400 / 50)
    assert state.share == pytest.approx(0.25)


def test_what_an_earlier_command_did_is_not_awaited_again() -> None:
    state = State(Plan(3, 4800, frozenset({"a"}), 1600), Clock())
    state.follow(Started(trial("b", scores=(0.5, 0.6))))  # two of four epochs, from a snapshot
    assert state.ended == 1
    assert [best.value for best in state.bests.values()] == [0.6]
    assert state.share == pytest.approx((1600 + 800) / 4800)


def test_a_trial_that_was_parked_is_not_counted_twice() -> None:
    state, one = State(Plan(2, 3200), Clock()), trial("a", scores=(0.5,))
    state.follow(Started(trial("a")))
    state.follow(TrialParked(one))
    assert state.parked == {"a"} and state.active == []
    state.follow(Started(one))
    assert state.parked == set() and state.share == 0.0


def test_ends_are_counted_once_and_failed_trials_leave_no_work() -> None:
    state = State(Plan(3, 4800, frozenset({"a"}), 1600), Clock())
    for name in ("a", "b", "c"):
        state.follow(Started(trial(name)))
    # A snapshot may hold a trial that has ended since; it ends a second time.
    state.follow(TrialDone(trial("a")))
    assert state.ended == 1
    state.follow(TrialFailed(trial("b", scores=(0.5,)), "the loss became nan"))
    assert (state.ended, state.failed) == (2, 1)
    # Of its four epochs three are not trained: 1200 tokens fewer to wait for.
    assert state.tokens == 1600 + 1200
    state.follow(TrialParked(trial("c")))
    state.follow(TrialStopped(trial("c")))
    assert state.ended == 3 and state.active == [] and state.parked == set()


@pytest.mark.parametrize(("higher", "best"), [(True, ("b", 0.9)), (False, ("a", 0.7))])
def test_the_best_of_a_method_follows_the_direction_of_its_metric(
    higher: bool, best: tuple[str, float]
) -> None:
    state = State(Plan(3, 100), Clock())
    trials = [trial(i, scores=(s,), higher=higher) for i, s in (("a", 0.7), ("b", 0.9), ("c", 0.8))]
    for one in trials:
        state.follow(Started(one))
        state.follow(EpochDone(one, one.results[-1]))
    (found,) = state.bests.values()
    assert (found.trial, found.value, found.metric) == (*best, "accuracy")


def test_a_new_phase_starts_its_own_bests() -> None:
    state = State(Plan(3, 100), Clock())
    one = trial("lora-t01", phase="search", scores=(0.9,))
    state.follow(Started(one))
    state.follow(EpochDone(one, one.results[-1]))
    assert len(state.bests) == 1
    state.follow(Started(trial("lora-s1000", phase="confirm")))
    assert (state.task, state.phase, state.bests) == ("reviews", "confirm", {})


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3723, "1:02:03")]
)
def test_a_time_reads_as_on_a_clock(seconds: float, told: str) -> None:
    assert clock(seconds) == told


def test_the_plan_of_a_folder_knows_what_is_done(made: Made) -> None:
    given = runs.settings(made.folder, made.backbone)
    prepared = prepare(given)
    fresh, done = plan_of(prepared, made.folder / "none"), plan_of(prepared, made.run)
    lengths = prepared.tasks[0].rows.table.lengths
    # Four methods, two seeds, two epochs of the same rows' tenths; a tenth of the rows selects.
    assert 8 * 2 * lengths.sum() * 0.8 < fresh.tokens < 8 * 2 * lengths.sum()
    assert (fresh.trials, fresh.ended, fresh.tokens_before) == (8, frozenset(), 0)
    assert done.ended == {f"{m}-s{s}" for m in runs.METHODS for s in (0, 1)}
    assert done.tokens_before == done.tokens == fresh.tokens
    assert not fresh.optimistic


def test_steps_that_end_within_an_epoch_are_what_is_planned(made: Made, tmp_path: Path) -> None:
    """`max_steps` asks for less than an epoch, or for more than a whole one; nothing is left to wait for at the end."""
    for steps in (2, 6):
        given = runs.settings(made.folder, made.backbone, ["head", "lora"], max_steps=steps)
        prepared, folder = prepare(given), tmp_path / str(steps)
        now = State(plan_of(prepared, folder))
        runs.train(folder, prepared, now.follow)
        # Which rows a last step takes depends on the seed, and rows have 7 to 12 tokens.
        assert now.tokens == pytest.approx(now.plan.tokens, rel=0.1), steps


def test_news_are_told_once() -> None:
    """Ten cohorts of one trial each have one reason."""
    now = State(Plan(trials=2, tokens=10))
    needs = Needs(0, 0, 0, 0, 0)
    first, second = (Planned(Limits(1, 8), needs, why) for why in (("alone",), ("alone", "small")))
    assert [now.news(first), now.news(second), now.news(first)] == [["alone"], ["small"], []]
