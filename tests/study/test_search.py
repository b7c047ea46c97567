"""The search by itself, without training: scores come from a table, and the cohort is a loop of a few lines."""

from __future__ import annotations

import numpy as np
import pytest

from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import TrainingSettings
from fleetune.methods.head import Head
from fleetune.records import EpochResult, TrialSpec
from fleetune.study.estimate import search_epochs
from fleetune.study.propose import FAILED, STOPPED, Tried, propose
from fleetune.study.search import Budget, Search, choose, rungs
from fleetune.study.settings import MethodSettings
from fleetune.study.space import Arm, arms_of
from tests.tiny import tiny_table

TABLE = tiny_table(40)


def arm(name: str = "head", **searched: object) -> Arm:
    training = {"learning_rate": {"low": 1e-4, "high": 1e-1}, **searched}
    (found,) = arms_of([MethodSettings(name, training=training)], {})
    return found


def given(ident: str, epochs: int) -> TrialInput:
    rows = Rows(TABLE, np.arange(32), np.zeros(40, dtype=np.int64))
    return TrialInput(
        spec=TrialSpec(id=ident, task="made", method="head", seed=0),
        method=Head(),
        settings=TrainingSettings(num_train_epochs=epochs, learning_rate=1e-3),
        train=rows,
        selection=rows,
        metrics=("accuracy",),
        best_metric="accuracy",
        higher_is_better=True,
    )


def quality(rate: float) -> float:
    """Best at 1e-2, so that a search has something to find."""
    return 0.9 - 0.1 * abs(np.log10(rate) + 2)


class Toy:
    """A cohort without a model: each round every active trial does an epoch, in an order that the size decides."""

    def __init__(
        self,
        budget: Budget,
        *,
        epochs: int = 9,
        arms: int = 2,
        folds: int = 1,
        seed: int = 0,
        fails=(),
    ) -> None:
        self.epochs, self.folds, self.fails = epochs, folds, set(fails)
        self.rates: dict[str, float] = {}
        self.asked: list[tuple[str, int]] = []
        chosen = [(arm(name), budget) for name in ("head", "bitfit", "full")[:arms]]

        def ask(one, tried, count):
            self.asked.append((one.name, count))
            return propose("tpe", one, tried, count=count, startup=3, seed=seed, task="made")

        def make(one, picks, number, before):
            names = [f"{one.name}-{number}-{k}" for k in range(folds)]
            self.rates.update({n: picks["learning_rate"] for n in names})
            return tuple(given(n, epochs) for n in names)

        self.make = lambda: Search(chosen, ask, make)
        self.search = self.make()
        self.done: dict[str, int] = {}
        self.ends: dict[str, str] = {}
        self.parked: set[str] = set()
        self.active: list[str] = []
        self.fullest = 0

    def run(self, size: int, rounds: int = 10_000) -> Toy:
        for _ in range(rounds):
            while len(self.active) < size and (one := self.search.next()) is not None:
                self.parked.discard(one.spec.id)
                self.active.append(one.spec.id)
            self.fullest = max(self.fullest, len(self.active))
            if not self.active:
                assert not self.parked
                return self
            for ident in list(self.active):
                self._epoch(ident)
        return self

    def _epoch(self, ident: str) -> None:
        if ident in self.fails:
            self.active.remove(ident)
            self.ends[ident] = "failed"
            self.search.left(ident, failed=True)
        else:
            number = self.done[ident] = self.done.get(ident, 0) + 1
            score = quality(self.rates[ident]) * number / self.epochs
            result = EpochResult(number, 0.0, {"accuracy": score}, number, 0.0)
            self.search.observe(ident, result)
            if number == self.epochs:
                self.active.remove(ident)
                self.ends[ident] = "done"
                self.search.left(ident, failed=False)
            elif self.search.parks(ident, result):
                self.active.remove(ident)
                self.parked.add(ident)
        for dropped in self.search.dropped():
            self.parked.remove(dropped)
            self.ends[dropped] = "stopped"


@pytest.mark.parametrize(
    ("settings", "epochs", "at"),
    [(12, 25, (3, 8)), (4, 25, (8,)), (9, 9, (1, 3)), (3, 2, ()), (2, 25, ()), (27, 4, (1,)), (1, 1, ())],
)  # fmt: skip
def test_rungs_are_thirds_of_the_training(settings: int, epochs: int, at: tuple[int, ...]) -> None:
    assert rungs(settings, epochs) == at


@pytest.mark.parametrize("halving", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 50])
def test_the_same_trials_for_every_cohort_size(size: int, halving: bool) -> None:
    budget = Budget(12, 4, halving)
    one, other = Toy(budget).run(1), Toy(budget).run(size)
    assert one.rates == other.rates and one.ends == other.ends and one.done == other.done
    assert other.fullest == min(size, 8)  # batches of 4 from each of two methods


def test_every_method_trains_equally_many_epochs_and_as_many_as_foretold() -> None:
    for budget in (
        Budget(12, 4, True),
        Budget(7, 3, True),
        Budget(5, 5, False),
        Budget(10, 10, True),
    ):
        toy = Toy(budget, arms=3).run(4)
        spent = {
            name: sum(n for i, n in toy.done.items() if i.startswith(name))
            for name in ("head", "bitfit", "full")
        }
        assert set(spent.values()) == {search_epochs(budget, toy.epochs)}
        assert len(toy.ends) == 3 * budget.trials


def test_a_stopped_trials_place_is_taken_at_once() -> None:
    toy = Toy(Budget(9, 9, True), arms=1)
    toy.run(9, rounds=1)
    assert len(toy.active) == 0 and len(toy.parked) == 3  # the best three of nine wait to be called
    toy.run(9, rounds=1)
    assert len(toy.active) == 3 and sorted(toy.ends.values()) == ["stopped"] * 6
    best = sorted(toy.rates, key=lambda i: -quality(toy.rates[i]))[:3]
    assert set(toy.active) == set(best)


def test_halving_keeps_the_best_setting_of_each_batch() -> None:
    toy = Toy(Budget(12, 4, True), arms=1).run(3)
    for start in range(0, 12, 4):
        batch = [f"head-{n}-0" for n in range(start, start + 4)]
        best = max(batch, key=lambda i: quality(toy.rates[i]))
        assert toy.ends[best] == "done"
    (lane,) = toy.search.lanes
    found = choose(lane, fixed_epochs=False)
    assert found.picks["learning_rate"] == max(toy.rates.values(), key=quality)
    assert (found.tried, found.stopped, found.failed, found.epochs) == (12, 6, 0, None)


def test_tpe_learns_from_what_was_tried() -> None:
    """The last third of its proposals lie nearer to the best rate than random ones do, on average over seeds."""
    gaps = {"tpe": [], "random": []}
    for seed in range(8):
        one = arm()
        rates = np.logspace(-4, -1, 12)
        tried = [Tried({"learning_rate": float(r)}, (quality(r),), "done") for r in rates]
        for sampler, found in gaps.items():
            asked = propose(sampler, one, tried, count=6, startup=3, seed=seed, task="made")
            found += [abs(np.log10(p["learning_rate"]) + 2) for p in asked]
    assert np.mean(gaps["tpe"]) < 0.7 * np.mean(gaps["random"])


def test_proposals_follow_from_seed_arm_and_history_alone() -> None:
    one = arm()
    tried = [
        Tried({"learning_rate": 1e-3}, (0.5,), STOPPED),
        Tried({"learning_rate": 1e-1}, (), FAILED),
    ]

    def ask(seed: int, history=tried, task: str = "made", sampler: str = "tpe"):
        return propose(sampler, one, history, count=3, startup=1, seed=seed, task=task)

    assert ask(0) == ask(0) and ask(0, sampler="random") == ask(0, sampler="random")
    assert ask(0) != ask(1) and ask(0) != ask(0, task="other") and ask(0) != ask(0, history=())
    assert all(1e-4 <= p["learning_rate"] <= 1e-1 for p in ask(3))


def test_random_rates_are_spread_by_their_logarithm() -> None:
    asked = propose("random", arm(), (), count=400, startup=1, seed=0, task="made")
    share = np.mean([p["learning_rate"] < 10**-2.5 for p in asked])
    assert share == pytest.approx(
        0.5, abs=0.1
    )  # four standard errors; 0.03 of them on a linear scale


def test_a_grid_goes_around_again_with_further_seeds() -> None:
    one = arm(learning_rate=[1e-3, 1e-2], weight_decay=[0.0, 0.1])
    asked = propose("grid", one, (), count=6, startup=1, seed=0, task="made")
    assert [(p["learning_rate"], p["weight_decay"]) for p in asked] == [
        (1e-3, 0.0), (1e-3, 0.1), (1e-2, 0.0), (1e-2, 0.1), (1e-3, 0.0), (1e-3, 0.1),
    ]  # fmt: skip


def test_a_failed_trial_is_counted_and_its_batch_goes_on() -> None:
    toy = Toy(Budget(8, 4, True), arms=1, fails={"head-1-0", "head-6-0"}).run(2)
    (lane,) = toy.search.lanes
    found = choose(lane, fixed_epochs=False)
    assert (found.tried, found.failed) == (8, 2) and len(toy.ends) == 8
    assert list(toy.ends.values()).count("failed") == 2


def test_where_every_trial_fails_nothing_is_chosen() -> None:
    toy = Toy(Budget(4, 2, True), arms=1, fails={f"head-{n}-0" for n in range(4)}).run(3)
    (lane,) = toy.search.lanes
    found = choose(lane, fixed_epochs=False)
    assert found.picks is None and (found.tried, found.failed) == (4, 4)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_folds_of_a_setting_stand_and_fall_together(size: int) -> None:
    toy = Toy(Budget(6, 3, True), arms=2, folds=5, fails={"head-1-3"}).run(size)
    for name in ("head", "bitfit"):
        for number in range(6):
            ends = {toy.ends.get(f"{name}-{number}-{k}") for k in range(5)}
            if (name, number) == ("head", 1):
                assert ends <= {"failed", "stopped", None}
            else:
                assert len(ends) == 1
    found = choose(toy.search.lanes[1], fixed_epochs=True)
    assert found.epochs == 9 and len(found.trials) == 5  # the toy's scores rise to the end


@pytest.mark.parametrize("rounds", range(1, 30, 3))
def test_its_state_goes_through_json(rounds: int) -> None:
    import json

    whole = Toy(Budget(9, 3, True)).run(4)
    toy = Toy(Budget(9, 3, True)).run(4, rounds=rounds)
    state = json.loads(json.dumps(toy.search.state()))
    toy.search = toy.make()
    toy.search.restore(state)
    toy.run(4)
    assert (toy.ends, toy.done, toy.rates) == (whole.ends, whole.done, whole.rates)
