"""The slow, plain reference: one trial, one model, ordinary padded batches, torch modules and torch optimizers.

Nothing of the cohort engine is used: no packing, no slices, no flat buffers, no autograd functions of our own. Shared
with it are only what a trial starts from, which rows make a batch, and (where asked) the bits of dropout.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import get_scheduler

from fleetune.backbone.sites import site_map
from fleetune.cohort.owned import decays, initial_values
from fleetune.cohort.trial import TrialInput
from fleetune.seeds import stream


class LowRankLinear(nn.Module):
    """A frozen linear layer with a low-rank update, as the paper writes it."""

    def __init__(self, leaf: nn.Linear, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.leaf, self.scale = leaf, scale
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.leaf(x) + self.scale * (x @ self.down.T @ self.up.T)


def prepare(
    model: Any, given: TrialInput, fresh: frozenset[str]
) -> tuple[Any, dict[str, nn.Parameter]]:
    """A private copy of the model with only what the trial owns left trainable, and those parameters by name."""
    sites = site_map(model, fresh)
    pretrained = {name: p.detach() for name, p in model.named_parameters()}
    values, low_rank = initial_values(given.method, given.spec.seed, sites, pretrained, model)
    alone = copy.deepcopy(model).requires_grad_(False)
    found: dict[str, nn.Parameter] = {}
    for name in list(values):
        if ".lora_" in name:
            continue
        leaf = alone.get_submodule(name.rpartition(".")[0])
        parameter = nn.Parameter(values[name].clone())
        setattr(leaf, name.rpartition(".")[2], parameter)
        found[name] = parameter
    for factors in low_rank:
        parent, _, own = factors.site.rpartition(".")
        wrapped = LowRankLinear(
            alone.get_submodule(factors.site),
            values[f"{factors.site}.lora_A"],
            values[f"{factors.site}.lora_B"],
            factors.scale,
        )
        setattr(alone.get_submodule(parent), own, wrapped)
        found[f"{factors.site}.lora_A"], found[f"{factors.site}.lora_B"] = wrapped.down, wrapped.up
    return alone.eval(), found


def padded_batch(model: Any, table: Any, rows: Any) -> dict[str, Tensor]:
    """Rows of a table as an ordinary padded batch."""
    parts = [table.ids[table.offsets[r] : table.offsets[r + 1]] for r in rows]
    longest = max(len(part) for part in parts)
    ids = torch.full((len(parts), longest), model.config.pad_token_id)
    mask = torch.zeros((len(parts), longest), dtype=torch.long)
    for i, part in enumerate(parts):
        ids[i, : len(part)] = torch.from_numpy(part.astype("int64"))
        mask[i, : len(part)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def train(
    model: Any, given: TrialInput, fresh: frozenset[str] = frozenset()
) -> tuple[dict[str, Tensor], list[float]]:
    """Train to the end without dropout; the final weights by name and the loss of every micro-batch."""
    sites = site_map(model, fresh)
    alone, owned = prepare(model, given, fresh)
    settings = given.settings
    groups = [
        {
            "params": [p for n, p in owned.items() if decays(n, sites)],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for n, p in owned.items() if not decays(n, sites)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), eps=settings.adam_epsilon
    )  # fmt: skip
    n = len(given.train)
    schedule = get_scheduler(
        settings.lr_scheduler_type, optimizer, num_warmup_steps=settings.warmup(n), num_training_steps=settings.total_steps(n),
        scheduler_specific_kwargs=dict(settings.lr_scheduler_kwargs),
    )  # fmt: skip
    losses: list[float] = []
    step = epoch = 0
    size, accumulate = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    while step < settings.total_steps(n):
        order = given.train.rows[stream(given.spec.seed, "order", epoch).permutation(n)]
        batches = [order[i : i + size] for i in range(0, n, size)]
        for first in range(0, len(batches), accumulate):
            group = batches[first : first + accumulate]
            for rows in group:
                logits = alone(**padded_batch(alone, given.train.table, rows)).logits
                labels = torch.from_numpy(given.train.labels[rows])
                loss = functional.cross_entropy(
                    logits, labels, label_smoothing=settings.label_smoothing_factor
                )
                (loss / len(group)).backward()
                losses.append(loss.item())
            if settings.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(list(owned.values()), settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step == settings.total_steps(n):
                break
        epoch += 1
    return {name: p.detach() for name, p in owned.items()}, losses
