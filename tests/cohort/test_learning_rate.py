"""What is refused before a training, and what is not, against the schedule stepped to its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from fleetune.cohort.learning_rate import schedule_problems
from fleetune.cohort.optim import TrialOptimizer
from fleetune.config import Scheduler, TrainingSettings, training_settings

ROWS = 90
NEEDED: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr": 1e-5},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
}


def settings(name: str, given: dict[str, Any], **more: Any) -> TrainingSettings:
    return training_settings(
        {
            "learning_rate": 5e-5,
            "per_device_train_batch_size": 10,
            "num_train_epochs": 2,
            "lr_scheduler_type": name,
            "lr_scheduler_kwargs": given,
            **more,
        }
    )


def stepped(training: TrainingSettings) -> str | None:
    """How a training ends that nobody has checked: None for well."""
    owned: Any = SimpleNamespace(flats=[torch.ones(3), torch.ones(2)], zero_grad=lambda: None)
    owned.grads = [torch.zeros(3), torch.zeros(2)]
    try:
        optimizer = TrialOptimizer(owned, training, ROWS)
        for _ in range(training.total_steps(ROWS)):
            optimizer.step()
    except Exception as error:
        return str(error)
    return None


@pytest.mark.parametrize("warmup", [0, 1, 0.3, 17])
@pytest.mark.parametrize("name", get_args(Scheduler))
def test_a_schedule_that_runs_is_not_refused(name: str, warmup: float) -> None:
    training = settings(name, NEEDED.get(name, {}), warmup_steps=warmup)
    assert stepped(training) is None
    assert schedule_problems(training, ROWS) == []


@pytest.mark.parametrize(
    ("name", "given", "more", "told"),
    [
        ("cosine_with_min_lr", {}, {}, "min_lr or min_lr_rate"),
        ("warmup_stable_decay", {}, {}, "num_decay_steps: missing"),
        ("cosine", {"num_cycle": 1}, {}, 'did you mean "num_cycles"?'),
        ("linear", {"lr_end": 0}, {}, "no setting of linear, which has none"),
        ("polynomial", {"lr_end": 1e-4}, {}, "smaller than initial lr"),
        ("polynomial", {"power": -1}, {}, "negative power"),
        ("polynomial", {"power": "two"}, {}, "unsupported operand"),
        ("polynomial", {}, {"warmup_steps": 18}, "needs a step after the warm-up"),
        ("inverse_sqrt", {"timescale": 0}, {}, "division by zero"),
    ],
)
def test_a_schedule_that_ends_a_training_is_refused(
    name: str, given: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    training = settings(name, given, **more)
    assert stepped(training) is not None
    (problem,) = schedule_problems(training, ROWS)
    assert told in problem


@pytest.mark.parametrize(
    ("name", "given", "more", "told"),
    [
        ("constant", {"num_cycles": 1}, {}, "no setting of constant"),
        ("polynomial", {"lr_end": -1e-4}, {}, "must not be negative"),
        ("linear", {}, {"warmup_steps": 19}, "more than the 18 steps"),
    ],
)
def test_what_would_run_and_not_do_what_was_asked_is_refused_too(
    name: str, given: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    training = settings(name, given, **more)
    assert stepped(training) is None
    (problem,) = schedule_problems(training, ROWS)
    assert told in problem
