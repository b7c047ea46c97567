"""The search by itself, without training: scores come from a table, and the cohort is a loop of a few lines."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import TrainingSettings
from fleetune.methods.head import Head
from fleetune.records import EpochResult, TrialSpec
from fleetune.study.estimate import search_epochs
from fleetune.study.plan import batch_size
from fleetune.study.propose import FAILED, STOPPED, Tried, propose
from fleetune.study.search import Budget, Search, choose, rungs
from fleetune.study.settings import MethodSettings, SearchSettings
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
    (one_arm,) = toy.search.arms
    found = choose(one_arm, fixed_epochs=False)
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
    for sampler in ("tpe", "random"):
        first = ask(0, sampler=sampler)
        assert first != ask(1, sampler=sampler) and first != ask(0, task="other", sampler=sampler)
        # A later batch draws other settings, by a sampler too that looks at none of them.
        assert first != ask(0, history=(), sampler=sampler)
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
    tried = [Tried(picks, (0.5,), STOPPED) for picks in asked]
    further = propose("grid", one, tried, count=2, startup=1, seed=0, task="made")
    assert [p["weight_decay"] for p in further] == [0.0, 0.1] and further == asked[2:4]


@pytest.mark.parametrize(
    ("sampler", "settings", "batch"),
    [("tpe", 12, 4), ("tpe", 13, 5), ("tpe", 6, 3), ("tpe", 2, 2), ("random", 12, 12), ("grid", 12, 12)],
)  # fmt: skip
def test_a_sampler_that_learns_is_asked_in_thirds(sampler: str, settings: int, batch: int) -> None:
    found = SearchSettings(sampler=sampler, trials_per_method=settings)
    assert batch_size(found) == batch
    assert batch_size(replace(found, batch=5)) == min(5, settings)


def test_a_failed_trial_is_counted_and_its_batch_goes_on() -> None:
    toy = Toy(Budget(8, 4, True), arms=1, fails={"head-1-0", "head-6-0"}).run(2)
    (one_arm,) = toy.search.arms
    found = choose(one_arm, fixed_epochs=False)
    assert (found.tried, found.failed) == (8, 2) and len(toy.ends) == 8
    assert list(toy.ends.values()).count("failed") == 2


def test_where_every_trial_fails_nothing_is_chosen() -> None:
    toy = Toy(Budget(4, 2, True), arms=1, fails={f"head-{n}-0" for n in range(4)}).run(3)
    (one_arm,) = toy.search.arms
    found = choose(one_arm, fixed_epochs=False)
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
    found = choose(toy.search.arms[1], fixed_epochs=True)
    assert found.epochs == 9 and len(found.trials) == 5  # the toy's scores rise to the end


@pytest.mark.parametrize("rounds", range(1, 30, 3))
def test_its_state_goes_through_json(rounds: int) -> None:

    whole = Toy(Budget(9, 3, True)).run(4)
    toy = Toy(Budget(9, 3, True)).run(4, rounds=rounds)
    state = json.loads(json.dumps(toy.search.state()))
    toy.search = toy.make()
    toy.search.restore(state)
    toy.run(4)
    assert (toy.ends, toy.done, toy.rates) == (whole.ends, whole.done, whole.rates)


# --- repeats of a setting, and trials that fail


class Scripted:
    """A search of given settings whose scores are said beforehand; one batch, run one trial after the other.

    curves: by setting and repeat, the score of each epoch; a curve that ends in None fails after it.
    """

    def __init__(self, curves: dict[float, list[list[float | None]]], *, epochs: int = 9) -> None:
        self.told: dict[str, list[float | None]] = {}
        order = [
            (rate, n)
            for n in range(max(map(len, curves.values())))
            for rate in curves
            if n < len(curves[rate])
        ]

        def ask(one, tried, count):
            return [{"learning_rate": rate} for rate, _ in order]

        def make(one, picks, number, before):
            name = f"{picks['learning_rate']:g}-{before}"
            self.told[name] = curves[picks["learning_rate"]][before]
            return (given(name, epochs),)

        budget = Budget(len(order), len(order), True)
        self.make = lambda: Search([(arm(), budget)], ask, make)
        self.search = self.make()
        self.epochs: dict[str, int] = {}
        self.ends: dict[str, str] = {}

    def run(self) -> Scripted:
        parked: set[str] = set()
        while (one := self.search.next()) is not None:
            ident = one.spec.id
            parked.discard(ident)
            while ident not in self.ends:
                number = self.epochs.get(ident, 0)
                score = self.told[ident][number]
                if score is None:
                    self.ends[ident] = "failed"
                    self.search.left(ident, failed=True)
                    break
                self.epochs[ident] = number + 1
                result = EpochResult(number + 1, 0.0, {"accuracy": score}, 0, 0.0)
                self.search.observe(ident, result)
                if number + 1 == len(self.told[ident]):
                    self.ends[ident] = "done"
                    self.search.left(ident, failed=False)
                elif self.search.parks(ident, result):
                    parked.add(ident)
                    break
            for dropped in self.search.dropped():
                parked.remove(dropped)  # a cohort would not know a trial that has ended
                self.ends[dropped] = "stopped"
            # A cut at any time changes nothing.
            state = json.loads(json.dumps(self.search.state()))
            self.search = self.make()
            self.search.restore(state)
        assert not parked and self.search.arms[0].over
        return self

    def choose(self, *, fixed_epochs: bool = False):
        return choose(self.search.arms[0], fixed_epochs=fixed_epochs)


def flat(score: float, epochs: int = 9) -> list[float | None]:
    return [score] * epochs


def test_a_training_that_ends_before_its_rung_is_not_waited_for() -> None:
    """As with `max_steps` and larger batches. Of ten settings four end after two epochs, and the second rung lies at three."""
    long = {1e-2 + i * 1e-3: [flat(0.5 + 0.02 * i)] for i in range(5)}
    short = {1e-3 + i * 1e-4: [flat(0.6 + 0.01 * i, 2)] for i in range(4)}
    shortest = {1e-4: [flat(0.4, 1)]}
    toy = Scripted(long | short | shortest).run()
    assert len(toy.ends) == 10 and toy.choose().score == pytest.approx(0.63)
    # The short ones take the four places; who has ended cannot be stopped.
    assert [toy.ends[f"{rate:g}-0"] for rate in short] == ["done"] * 4
    assert toy.ends["0.0001-0"] == "done"
    assert [toy.ends[f"{rate:g}-0"] for rate in long] == ["stopped"] * 5


def test_a_rung_is_about_the_best_epoch_and_not_the_last() -> None:
    """A trial keeps its best epoch, so a dip at the rung does not stop it."""
    dips = [0.5, 0.9, 0.4, *[0.8] * 6]
    toy = Scripted({1e-3: [flat(0.6)], 1e-2: [dips], 3e-2: [flat(0.1)]}).run()
    assert toy.ends == {"0.001-0": "stopped", "0.01-0": "done", "0.03-0": "stopped"}


def test_an_epoch_that_is_done_again_counts_once() -> None:
    """As after a checkpoint that was damaged."""
    search = Scripted({1e-3: [flat(0.7)]}).search
    one = search.next()
    assert one is not None
    for number in (1, 2, 1, 2, 3):
        result = EpochResult(number, 0.0, {"accuracy": 0.1 * number}, 0, 0.0)
        search.observe(one.spec.id, result)
    (candidate,) = search.arms[0].candidates
    assert candidate.curves == {one.spec.id: pytest.approx([0.1, 0.2, 0.3])}


@pytest.mark.parametrize("halved", [False, True])
def test_the_best_by_luck_of_one_seed_is_not_chosen(halved: bool) -> None:
    """Whether the steady setting was trained to its end, or stopped by a mate of which a seed fails later."""
    steady, lucky = [flat(0.70), flat(0.70)], [flat(0.72), [*flat(0.72, 4), None]]
    if not halved:
        lucky[1] = [None]
    found = Scripted({1e-3: steady, 1e-2: lucky}).run().choose()
    assert found.picks == {"learning_rate": 1e-3} and found.score == pytest.approx(0.70)
    assert found.trials == ("0.001-0", "0.001-1")
    assert (found.tried, found.failed) == (4, 1) and found.stopped == (2 if halved else 1)


def test_where_every_setting_has_failures_the_fewest_count_and_then_the_mean() -> None:
    def fails(*scores: float | None) -> list[list[float | None]]:
        return [[0.5, None] if s is None else flat(s, 2) for s in scores]

    curves = {
        1e-3: fails(0.9, None, None),
        1e-2: fails(0.6, 0.7, None),
        3e-2: fails(0.6, 0.6, None),
    }
    found = Scripted(curves, epochs=2).run().choose()
    assert found.picks == {"learning_rate": 1e-2} and found.score == pytest.approx(0.65)


def test_repeats_of_a_setting_go_on_or_stop_together_by_their_mean() -> None:
    """0.01 has the best seed and 0.001 the best mean; a third of six places is two."""
    curves = {1e-3: [flat(0.70), flat(0.71)], 1e-2: [flat(0.75), flat(0.60)], 3e-2: [flat(0.5)] * 2}
    toy = Scripted(curves).run()
    ends = {rate: {toy.ends[f"{rate:g}-{n}"] for n in range(2)} for rate in curves}
    assert ends == {1e-3: {"done"}, 1e-2: {"stopped"}, 3e-2: {"stopped"}}
    assert toy.choose().picks == {"learning_rate": 1e-3}


def test_the_best_setting_goes_on_with_more_repeats_than_there_are_places() -> None:
    toy = Scripted({1e-3: [flat(0.7)] * 4, 1e-2: [flat(0.6)]}).run()
    assert toy.ends["0.01-0"] == "stopped" and list(toy.ends.values()).count("done") == 4


def test_a_repeat_that_another_batch_stopped_counts_with_what_its_mates_gained() -> None:
    """Alone its lucky seed would win; a stopped one at its early score would lose for that alone."""
    search = Scripted({1e-3: [flat(0.7)], 1e-2: [flat(0.7)], 3e-2: [flat(0.5)]}).run().search
    (one_arm,) = search.arms
    for number, (rate, curve, stopped) in enumerate(
        ((1e-2, [0.70, 0.76], False), (1e-2, [0.62], True), (1e-3, [0.69, 0.74], False))
    ):
        c = one_arm.candidates[number]
        c.picks, c.stopped, c.curves = (
            {"learning_rate": rate},
            stopped,
            {next(iter(c.units)): curve},
        )
        c.done = set() if stopped else set(c.units)
    found = choose(one_arm, fixed_epochs=False)
    # 0.01: 0.76, and 0.62 + 0.06.
    assert found.picks == {"learning_rate": 1e-3} and found.score == pytest.approx(0.74)
    one_arm.candidates[2].curves = {next(iter(one_arm.candidates[2].units)): [0.69, 0.71]}
    found = choose(one_arm, fixed_epochs=True)
    assert found.picks == {"learning_rate": 1e-2} and found.score == pytest.approx(0.72)
    assert found.epochs == 2 and len(found.trials) == 2


def test_where_the_only_survivor_fails_the_best_that_was_stopped_is_chosen() -> None:
    curves = {1e-3: [flat(0.6)], 1e-2: [flat(0.5)], 3e-2: [[0.7, 0.7, 0.7, 0.7, None]]}
    toy = Scripted(curves).run()
    assert toy.ends == {"0.001-0": "stopped", "0.01-0": "stopped", "0.03-0": "failed"}
    found = toy.choose(fixed_epochs=True)
    assert found.picks == {"learning_rate": 1e-3} and found.score == pytest.approx(0.6)
    assert (found.tried, found.stopped, found.failed) == (3, 2, 1) and found.trials == ("0.001-0",)
