"""The learning rate of a trial by its steps: transformers' own schedules, and what keeps one from running to the end.

A schedule of transformers takes its settings as they are and meets what is wrong with them when it is made, or when it comes
to the step concerned, which may be the last. So it is tried here before anything is trained.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch

from fleetune.config import TrainingSettings
from fleetune.errors import did_you_mean

# What get_scheduler fills in itself, and what nobody gives.
_FILLED_IN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
# Steps at which a schedule is tried, beside its ends and those around the end of the warm-up.
_TRIED = 33


def scheduler(optimizer: torch.optim.Optimizer, settings: TrainingSettings, rows: int) -> Any:
    """transformers' schedule for a training on so many rows."""
    from transformers import get_scheduler

    return get_scheduler(
        settings.lr_scheduler_type,
        optimizer,
        num_warmup_steps=settings.warmup(rows),
        num_training_steps=settings.total_steps(rows),
        scheduler_specific_kwargs=dict(settings.lr_scheduler_kwargs),
    )


def schedule_problems(settings: TrainingSettings, rows: int) -> list[str]:
    """What is wrong with the schedule of a training on so many rows; nothing where it runs through all of its steps."""
    warmup, total = settings.warmup(rows), settings.total_steps(rows)
    if warmup > total:
        return [
            f"warmup_steps={warmup} is more than the {total} steps of the whole training; lower it, or give a share below 1"
        ]
    if settings.lr_scheduler_type == "polynomial" and warmup == total:
        # transformers divides by the steps that are left after the warm-up.
        return [
            f"polynomial decay needs a step after the warm-up, but warmup_steps={warmup} is all of the training; lower it, or "
            "give another lr_scheduler_type"
        ]
    return _wrong_kwargs(settings) or _failures(settings, rows)


def _wrong_kwargs(settings: TrainingSettings) -> list[str]:
    """Settings that the schedule does not know, and those that it cannot do without."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    name, given = settings.lr_scheduler_type, settings.lr_scheduler_kwargs
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters  # type: ignore[index]
    known = {key: p for key, p in parameters.items() if key not in _FILLED_IN}
    problems = [
        f"lr_scheduler_kwargs.{key}: no setting of {name}"
        + (did_you_mean(key, known) if known else ", which has none; leave it out")
        for key in given
        if key not in known
    ]
    return problems + [
        f"lr_scheduler_kwargs.{key}: missing, and {name} needs it; give it, or another lr_scheduler_type"
        for key, parameter in known.items()
        if parameter.default is inspect.Parameter.empty and key not in given
    ]


def _failures(settings: TrainingSettings, rows: int) -> list[str]:
    """Make it, and ask it for the rate at some of the steps."""
    name, given = settings.lr_scheduler_type, settings.lr_scheduler_kwargs
    warmup, total = settings.warmup(rows), settings.total_steps(rows)
    peak = settings.learning_rate
    assert peak is not None
    said = f"lr_scheduler_kwargs={given!s:.80} and learning_rate={peak:g}"
    remedy = "give other lr_scheduler_kwargs, another learning_rate, or another lr_scheduler_type"
    steps = {0, warmup - 1, warmup, warmup + 1, total - 1, total}
    steps |= set(np.linspace(0, total, _TRIED).astype(int).tolist())
    try:
        nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        (share,) = scheduler(nothing, settings, rows).lr_lambdas
        for step in sorted(step for step in steps if 0 <= step <= total):
            rate = peak * share(step)
            if not 0 <= rate < math.inf:
                rule = f"{name} with {said} gives a learning rate of {rate:g} at step {step} of {total}"
                return [f"{rule}, and it must not be negative; {remedy}"]
    except Exception as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        return [f"{name} with {said} does not run through {total} steps: {told}; {remedy}"]
    return []
