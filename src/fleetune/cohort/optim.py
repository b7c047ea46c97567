"""One trial's optimizer: AdamW, schedule and clipping as transformers' Trainer has them.

torch's own fused AdamW and transformers' own schedules, on the trial's two flat buffers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fleetune.cohort.learning_rate import scheduler
from fleetune.cohort.owned import Owned
from fleetune.config import TrainingSettings


class TrialOptimizer:
    """Steps of one trial; knows nothing of its mates."""

    def __init__(self, owned: Owned, settings: TrainingSettings, rows: int) -> None:
        assert settings.learning_rate is not None, "a trial's settings are resolved"
        self.owned = owned
        self.max_grad_norm = settings.max_grad_norm
        for flat, grad in zip(owned.flats, owned.grads, strict=True):
            flat.grad = grad
        self.adam = torch.optim.AdamW(
            [
                {"params": [owned.flats[0]], "weight_decay": settings.weight_decay},
                {"params": [owned.flats[1]], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            fused=True,
        )
        self.schedule: Any = scheduler(self.adam, settings, rows)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self) -> Tensor:
        """Clip, step, advance the schedule, clear the gradient. Returns the norm before clipping."""
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(grad) for grad in self.owned.grads])
        )
        if self.max_grad_norm > 0:
            # As torch.nn.utils.clip_grad_norm_, which would compute the norm again.
            share = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            for grad in self.owned.grads:
                grad.mul_(share)
        self.adam.step()
        self.schedule.step()
        self.owned.zero_grad()
        return norm

    def state(self) -> tuple[dict[str, Tensor], int]:
        """AdamW's moments by name, and how many steps were made."""
        tensors: dict[str, Tensor] = {}
        for i, flat in enumerate(self.owned.flats):
            for key, value in self.adam.state[flat].items():
                tensors[f"{key}.{i}"] = value
        return tensors, int(self.schedule.last_epoch)

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Put back what `state` gave, which may lie on another device."""
        for i, flat in enumerate(self.owned.flats):
            found = {k.rpartition(".")[0]: v for k, v in tensors.items() if k.endswith(f".{i}")}
            # A fused step wants its count there too.
            own = {key: value.to(flat.device, copy=True) for key, value in found.items()}
            self.adam.state[flat] = own
        self.schedule.last_epoch = steps
        rules = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        rates = [base * rule(steps) for base, rule in rules]
        for group, rate in zip(self.adam.param_groups, rates, strict=True):
            group["lr"] = rate
        self.schedule._last_lr = rates
