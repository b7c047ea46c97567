"""A trial's steps, its best epoch, its end by failure, and going on from a checkpoint."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.testing import assert_close

from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, EpochDone, Started, TrialDone, TrialFailed
from fleetune.cohort.optim import TrialOptimizer
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Rows, Trial, TrialInput
from fleetune.config import Scheduler, training_settings
from fleetune.methods.table import METHODS, make_method
from fleetune.records import TrialSpec
from tests.tiny import tiny_model, tiny_table

N = 23
TRAIN, SELECTION = tiny_table(N, seed=1, longest=16), tiny_table(7, seed=2, longest=16)
LABELS = np.random.default_rng(0).integers(0, 3, N)
SELECTION_LABELS = np.random.default_rng(1).integers(0, 3, 7)
HEAD = frozenset({"classifier.weight", "classifier.bias"})


def trial(
    name: str = "head",
    method: dict[str, Any] | None = None,
    *,
    ident: str = "",
    best: str = "loss",
    higher: bool = False,
    **training: Any,
) -> TrialInput:
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 5, "dropout": 0.0, **training}
    return TrialInput(
        spec=TrialSpec(id=ident or name, task="tiny", method=name, seed=3),
        method=make_method(name, method or {}),
        settings=training_settings(settings),
        train=Rows(TRAIN, np.arange(N), LABELS),
        selection=Rows(SELECTION, np.arange(7), SELECTION_LABELS),
        metrics=("accuracy",),
        best_metric=best,
        higher_is_better=higher,
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("bert")


@pytest.fixture(scope="module")
def engine(model: Any) -> Engine:
    return Engine(copy.deepcopy(model), HEAD)


def started(engine: Engine, given: TrialInput) -> Trial:
    return Trial(given, engine.start(given))


def after_backward(one: Trial, loss: float, rows: int) -> str | None:
    """What a cohort does with a trial at the end of a round."""
    norm = one.advance()
    return one.account([loss], None if norm is None else float(norm), [rows])


# -- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 23, 40, 41])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 50])
@pytest.mark.parametrize("epochs", [0.3, 1.0, 1.5, 3.0])
def test_steps_are_those_of_a_plain_loop(rows: int, accumulate: int, epochs: float) -> None:
    settings = training_settings(
        {
            "per_device_train_batch_size": 5,
            "gradient_accumulation_steps": accumulate,
            "num_train_epochs": epochs,
        }
    )
    micro = [list(range(rows))[at : at + 5] for at in range(0, rows, 5)]
    groups = [micro[at : at + accumulate] for at in range(0, len(micro), accumulate)]
    assert settings.steps_per_epoch(rows) == len(groups)
    assert settings.total_steps(rows) == math.ceil(epochs * len(groups))


def test_max_steps_overrides_epochs() -> None:
    settings = training_settings({"max_steps": 7, "num_train_epochs": 100})
    assert settings.total_steps(10) == settings.total_steps(10_000) == 7


@pytest.mark.parametrize(
    ("warmup", "steps"),
    [(0, 0), (0.1, 2), (0.06, 1), (0.5, 8), (0.99, 15), (1, 1), (4, 4), (99, 99)],
)
def test_warmup_is_steps_or_a_share_of_them(warmup: float, steps: int) -> None:
    """15 steps in all; a share is rounded up, as transformers does."""
    settings = training_settings({"max_steps": 15, "warmup_steps": warmup})
    assert settings.warmup(1000) == steps


def test_a_warm_up_that_is_a_share_warms_up(engine: Engine) -> None:
    given = trial(max_steps=10, warmup_steps=0.4)
    optimizer = TrialOptimizer(engine.start(given), given.settings, N)
    rates = []
    for _ in range(6):
        rates.append(optimizer.learning_rate)
        optimizer.step()
    assert rates[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01]) and rates[5] < 0.01


def test_the_optimizer_has_the_settings_that_were_given(engine: Engine) -> None:
    given = trial(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-5, weight_decay=0.1)
    adam = TrialOptimizer(engine.start(given), given.settings, N).adam
    assert [(g["betas"], g["eps"], g["weight_decay"]) for g in adam.param_groups] == [
        ((0.8, 0.95), 1e-5, 0.1), ((0.8, 0.95), 1e-5, 0.0),
    ]  # fmt: skip


def test_groups_of_micro_batches_end_with_the_epoch(engine: Engine) -> None:
    """5 micro-batches an epoch in threes: groups of 3 and 2, never across epochs."""
    one = started(engine, trial(gradient_accumulation_steps=3, num_train_epochs=2))
    sizes, left, steps, rows = [], [], [], []
    while not one.ended:
        sizes.append(one.group_size)
        left.append(one.left_in_group)
        ahead = [one.batch(k) for k in range(left[-1])]
        assert np.array_equal(ahead[0], one.batch()) and len(
            {tuple(rows) for rows in ahead}
        ) == len(ahead)
        rows.append(len(one.batch()))
        assert after_backward(one, 1.0, rows[-1]) is None
        steps.append(one.step)
    assert sizes == [3, 3, 3, 2, 2] * 2
    assert left == [3, 2, 1, 2, 1] * 2
    assert steps == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4]
    assert rows == [5, 5, 5, 5, 3] * 2


def test_every_epoch_visits_every_row_in_an_order_of_its_own(engine: Engine) -> None:
    one = started(engine, trial(num_train_epochs=3))
    epochs = []
    for _ in range(3):
        seen = []
        for _ in range(5):
            seen += one.batch().tolist()
            after_backward(one, 1.0, 5)
        epochs.append(seen)
    assert all(sorted(seen) == list(range(N)) for seen in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize(
    ("training", "ends"),
    [
        ({"num_train_epochs": 2}, [5, 10]),
        ({"max_steps": 7}, [5, 7]),
        ({"num_train_epochs": 1.5}, [5, 8]),
        ({"num_train_epochs": 0.2}, [1]),
        ({"max_steps": 5}, [5]),
        ({"num_train_epochs": 2.5, "gradient_accumulation_steps": 2}, [3, 6, 8]),
    ],
)
def test_selection_is_evaluated_at_each_epochs_end_and_at_the_last_step(
    model: Any, training: dict[str, Any], ends: list[int]
) -> None:
    cohort = Cohort(Engine(copy.deepcopy(model), HEAD), [trial(**training)], size=1, max_tokens=999)
    events = list(cohort.run())
    results = [event.result for event in events if isinstance(event, EpochDone)]
    assert [result.step for result in results] == ends
    assert [result.epoch for result in results] == list(range(1, len(ends) + 1))
    assert isinstance(events[0], Started) and isinstance(events[-1], TrialDone)
    size = training.get("gradient_accumulation_steps", 1)
    micro = events[-1].trial.micro_step
    # With groups of 2, an epoch has 5 micro-batches in 3 steps; 2 steps of the third epoch are 4.
    assert micro == (ends[-1] if size == 1 else 14)


# -- best epoch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "higher", "scores", "expected"),
    [
        ("accuracy", True, [0.5, 0.7, 0.6], 2),
        ("accuracy", True, [0.7, 0.5, 0.7], 1),
        ("accuracy", True, [0.5, 0.6, 0.7, 0.7], 3),
        ("loss", False, [0.5, 0.4, 0.6], 2),
        ("loss", False, [0.4, 0.5, 0.4], 1),
        ("loss", False, [0.0, 0.0], 1),
        ("accuracy", True, [0.0, -0.0], 1),
    ],
)
def test_best_epoch_is_the_earliest_of_equals(
    engine: Engine, best: str, higher: bool, scores: list[float], expected: int
) -> None:
    one = started(engine, trial(best=best, higher=higher))
    states = []
    for score in scores:
        with torch.no_grad():
            one.owned.flats[0].add_(1.0)
        states.append(one.owned.state())
        one.finish_epoch({best: score})
    assert one.best_epoch == expected
    one.take_best()
    for name, value in states[expected - 1].items():
        assert torch.equal(one.owned.tensors[name], value), f"{name}: the trial goes on with them"


# -- failure --------------------------------------------------------------------------------------

# Warm-up of one step: the first step changes nothing, the second throws the biases beyond all
# numbers, so the loss of the third is not one.
HOPELESS = {"learning_rate": 1e250, "warmup_steps": 1, "num_train_epochs": 2, "max_grad_norm": 0}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {}),
        ("roberta", {}),
        ("modernbert", {}),
        ("eurobert", {"classifier_pooling": "late"}),
        ("eurobert", {"classifier_pooling": "mean"}),
        ("mpnet", {}),
    ],
)
def test_trial_that_diverges_ends_alone(family: str, settings: dict[str, Any]) -> None:
    """Its mates go on as if it had ended the step before; compared in float64, and exactly."""
    model = tiny_model(family, **settings).double()
    mates = [
        trial(
            "lora", {"r": 2, "lora_dropout": 0.1}, ident="first", num_train_epochs=2, dropout=0.1
        ),
        trial("head", ident="second", num_train_epochs=2),
    ]

    def run(third: TrialInput) -> tuple[list[Any], dict[str, Any]]:
        cohort = Cohort(
            Engine(copy.deepcopy(model), dtype=torch.float64),
            [mates[0], third, mates[1]],
            size=3,
            max_tokens=10**6,
        )
        events = list(cohort.run())
        done = [e.trial for e in events if isinstance(e, TrialDone)]
        return events, {t.id: (t.owned.state(), t.results) for t in done}

    widely = {"r": 2, "target_modules": "all-linear"}
    events, found = run(trial("lora", widely, ident="lost", **HOPELESS))
    (failure,) = (event for event in events if isinstance(event, TrialFailed))
    assert failure.trial.id == "lost"
    assert "the loss became nan at step 3" in failure.reason and "learning_rate" in failure.reason
    events, expected = run(trial("lora", widely, ident="lost", **{**HOPELESS, "max_steps": 2}))
    (failure,) = (event for event in events if isinstance(event, TrialFailed))
    assert failure.reason == "its predictions are not finite at step 2"
    assert found.keys() == {"first", "second"}
    for ident, (weights, results) in found.items():
        expected_weights, expected_results = expected[ident]
        for name, value in weights.items():
            assert_close(value, expected_weights[name], rtol=0, atol=1e-12, msg=lambda m: m)
        for mine, other in zip(results, expected_results, strict=True):
            assert mine.loss == pytest.approx(other.loss, abs=1e-12)
            assert mine.selection == pytest.approx(other.selection, abs=1e-12)


def test_gradient_that_is_not_finite_ends_the_trial(engine: Engine) -> None:
    one = started(engine, trial())
    one.owned.grads[0][0] = math.inf
    reason = after_backward(one, 1.0, 5)
    assert reason is not None and "gradient became inf at step 1" in reason


# -- checkpoints ----------------------------------------------------------------------------------

RESUMED = {
    "bitfit": {},
    "lora": {"r": 3, "lora_dropout": 0.2},
    "head": {},
    "full": {},
}


def stored(one: Trial) -> tuple[bytes, str]:
    """A checkpoint as it lies on disk."""
    tensors, numbers = one.checkpoint()
    return save({name: tensor.clone() for name, tensor in tensors.items()}), json.dumps(numbers)


@dataclass
class Outcome:
    """What a training gave, `seconds` left out."""

    epochs: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """The weights at the end of each epoch, as trained."""
    checkpoints: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """After so many micro-batches: "5" before the evaluation due there, "5 evaluated" after."""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)
    best_epoch: int = 0


def outcome(
    engine: Engine, given: TrialInput, max_tokens: int, start: tuple[bytes, str] | None = None
) -> Outcome:
    """Train a trial to its end, from a checkpoint if there is one."""
    waiting = [given] if start is None else []
    cohort = Cohort(engine, waiting, size=1, max_tokens=max_tokens)
    if start is not None:
        cohort.place(given, (load(start[0]), json.loads(start[1])))
    found = Outcome()
    for event in cohort.run():
        if isinstance(event, EpochDone):
            found.epochs.append(event.trial.owned.state())
            found.checkpoints[f"{event.trial.micro_step} evaluated"] = stored(event.trial)
        if isinstance(event, Advanced):
            found.checkpoints[str(event.trials[0].micro_step)] = stored(event.trials[0])
        if isinstance(event, TrialDone):
            one = event.trial
            found.best, found.best_epoch = one.owned.state(), one.best_epoch
            found.results = [(r.epoch, r.loss, dict(r.selection), r.step) for r in one.results]
    return found


@pytest.mark.parametrize(
    "name",
    [n if n in ("lora", "bitfit") else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
@pytest.mark.parametrize("max_tokens", [1, 10**6], ids=["one a round", "groups at once"])
def test_resumed_trial_is_the_uninterrupted_one(model: Any, name: str, max_tokens: int) -> None:
    """Bit for bit: from the end of every epoch, before its evaluation and after it, and from within
    epochs and, where a round is one micro-batch, accumulation groups; with dropout, in the midst of a schedule."""
    given = trial(
        name,
        RESUMED[name],
        num_train_epochs=2.5,
        gradient_accumulation_steps=2,
        warmup_steps=4,
        weight_decay=0.1,
        dropout=None,
        lr_scheduler_type="cosine",
    )
    whole = outcome(Engine(copy.deepcopy(model), HEAD), given, max_tokens)
    # 5 micro-batches an epoch; the training ends after 8 steps, which are 14 of them.
    at_once = max_tokens > 1 and given.method.abilities.shares_backbone
    rounds = [2, 4, 5, 7, 9, 10, 12, 14] if at_once else [*range(1, 15)]
    assert [int(key) for key in whole.checkpoints if "evaluated" not in key] == rounds
    assert len(whole.epochs) == 3
    for key, epochs_left in {
        "1": 3, "4": 3, "5": 3, "5 evaluated": 2, "8": 2, "9": 2, "10": 2, "10 evaluated": 1,
        "13": 1, "14": 1,
    }.items():  # fmt: skip
        if key not in whole.checkpoints:
            continue
        again = outcome(
            Engine(copy.deepcopy(model), HEAD), given, max_tokens, whole.checkpoints[key]
        )
        assert (again.results, again.best_epoch) == (whole.results, whole.best_epoch), key
        equal(again.best, whole.best, f"best, from {key}")
        rest = whole.epochs[3 - epochs_left :]
        for mine, other in zip(again.epochs, rest, strict=True):
            equal(mine, other, f"from {key}")


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], where: str) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{name}, {where}"


def test_restored_moments_lie_where_the_parameters_do(engine: Engine) -> None:
    """A snapshot is read to the processor. "meta" stands for a GPU, whose fused step refuses moments from elsewhere."""
    given = trial()
    began = TrialOptimizer(engine.start(given), given.settings, N)
    began.step()
    elsewhere = TrialOptimizer(engine.start(given), given.settings, N)
    elsewhere.owned.flats = [nn.Parameter(flat.to("meta")) for flat in elsewhere.owned.flats]
    elsewhere.restore(*began.state())
    for flat in elsewhere.owned.flats:
        found = elsewhere.adam.state[flat]
        assert found.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert {value.device.type for value in found.values()} == {"meta"}


@pytest.mark.parametrize("name", get_args(Scheduler))
def test_resumed_schedule_goes_on(engine: Engine, name: str) -> None:
    extra: dict[str, Any] = {
        "cosine_with_min_lr": {"min_lr": 1e-4},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
        "warmup_stable_decay": {"num_decay_steps": 4},
    }.get(name, {})
    given = trial(max_steps=12, warmup_steps=3, lr_scheduler_type=name, lr_scheduler_kwargs=extra)

    def rates(optimizer: TrialOptimizer, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(optimizer.learning_rate)
            assert [group["lr"] for group in optimizer.adam.param_groups] == [found[-1]] * 2
            optimizer.step()
        return found

    whole = rates(TrialOptimizer(engine.start(given), given.settings, N), 12)
    first = TrialOptimizer(engine.start(given), given.settings, N)
    before = rates(first, 5)
    resumed = TrialOptimizer(engine.start(given), given.settings, N)
    resumed.restore(*first.state())
    assert before + rates(resumed, 7) == whole
    assert len(set(whole)) > 1 or name == "constant"
