"""What one trial owns: its trainable parameters, laid flat in two buffers.

All parameters of a trial are views of two flat tensors, one with weight decay and one without, and so are their
gradients. Clipping, AdamW, snapshots and checkpoints then are a few operations on two tensors, however many
hundred biases a trial has.

Sources: initialisation of A and B as in peft (kaiming_uniform with a = sqrt(5), zeros); of fresh heads by transformers'
own `_init_weights`; which parameters decay, transformers' `Trainer.get_decay_parameter_names`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fleetune.backbone.draws import drawing
from fleetune.backbone.sites import SiteMap
from fleetune.cohort.linear import LowRankSlot
from fleetune.methods.base import LowRank, Method
from fleetune.seeds import torch_seed

_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)


def decays(name: str, sites: SiteMap) -> bool:
    """Whether transformers' Trainer would put weight decay on a parameter."""
    if _NO_DECAY.search(name):
        return False
    leaf = name.rpartition(".")[0]
    return all(site.kind != "layer_norm" for site in sites if site.name == leaf)


class Owned:
    """The trainable state of one trial.

    tensors: each parameter by name, a leaf that requires grad; low-rank factors are `SITE.lora_A` and `SITE.lora_B`.
    flats, grads: the buffers that they are views of: with decay, without. places: where each parameter starts in the two,
    laid end to end. lowest_layer: the first encoder layer that depends on it, 0 where the embeddings do; None where only
    the head does.
    """

    def __init__(
        self, values: Mapping[str, Tensor], low_rank: tuple[LowRank, ...], sites: SiteMap
    ) -> None:
        self.low_rank = low_rank
        self.lowest_layer = _lowest_layer(values, sites)
        groups: tuple[list[str], list[str]] = ([], [])
        for name in values:
            groups[0 if decays(name, sites) else 1].append(name)
        self.flats = [_flat([values[n] for n in names]) for names in groups]
        self.grads = [torch.zeros_like(flat) for flat in self.flats]
        self.tensors: dict[str, Tensor] = {}
        self.places: dict[str, int] = {}
        before = 0
        for names, flat, grad in zip(groups, self.flats, self.grads, strict=True):
            at = 0
            for name in names:
                shape, size = values[name].shape, values[name].numel()
                view = flat[at : at + size].view(shape).requires_grad_()
                # A gradient that is there is added to in place, so what backward gives lands in the flat buffer.
                view.grad = grad[at : at + size].view(shape)
                self.tensors[name], self.places[name] = view, before + at
                at += size
            before += len(flat)

    def slots(self) -> dict[str, LowRankSlot]:
        """The low-rank factors by site."""
        return {
            f.site: LowRankSlot(
                self.tensors[f"{f.site}.lora_A"],
                self.tensors[f"{f.site}.lora_B"],
                f.scale,
                f.dropout,
            )
            for f in self.low_rank
        }

    def snapshot(self) -> list[Tensor]:
        """A copy of the values, to be given to `restore`."""
        return [flat.detach().clone() for flat in self.flats]

    def restore(self, values: list[Tensor]) -> None:
        """Put back what `snapshot` gave."""
        for flat, value in zip(self.flats, values, strict=True):
            flat.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Every parameter by name, copied."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def zero_grad(self) -> None:
        for grad in self.grads:
            grad.zero_()


def initial_values(
    method: Method, seed: int, sites: SiteMap, pretrained: Mapping[str, Tensor], model: Any
) -> tuple[dict[str, Tensor], tuple[LowRank, ...]]:
    """The starting values of what a trial owns, and its low-rank factors.

    pretrained: every parameter of the classification model, as loaded. model: that model, for its own initialisation
    of parameters that the checkpoint lacks; it is not changed. Dtype and device are those of `pretrained`.
    """
    ownership = method.ownership(sites)
    fresh = _fresh_values(seed, sites, model)
    values = {
        name: fresh.get(name, pretrained[name]).detach().to(pretrained[name], copy=True)
        for name in ownership.parameters
    }
    for name in ownership.zero_biases:
        weight = pretrained[f"{name.rpartition('.')[0]}.weight"]
        values[name] = weight.new_zeros(weight.shape[0])
    for factors in ownership.low_rank:
        weight = pretrained[f"{factors.site}.weight"]
        generator = torch.Generator().manual_seed(torch_seed(seed, "init", factors.site))
        down = torch.empty(factors.r, weight.shape[1])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        values[f"{factors.site}.lora_A"] = down.to(weight)
        values[f"{factors.site}.lora_B"] = weight.new_zeros(weight.shape[0], factors.r)
    return values, ownership.low_rank


def stand_in(parent: nn.Module) -> nn.Module:
    """A copy of a module that holds copies of the leaves right below it, and nothing else."""
    found = copy.copy(parent)
    found._parameters, found._buffers = {}, {}
    leaves = {
        own: copy.deepcopy(child)
        for own, child in parent.named_children()
        if next(child.parameters(recurse=False), None) is not None
    }
    found._modules = {**leaves}
    return found


def parents(sites: SiteMap) -> list[str]:
    """The modules right above the leaves that have something fresh."""
    return list(dict.fromkeys(_parent(s.name) for s in sites if s.fresh))


def _fresh_values(seed: int, sites: SiteMap, model: Any) -> dict[str, Tensor]:
    """Draw what the checkpoint lacks as transformers does, from the trial's seed and not from the global generator."""
    drawn: dict[str, Tensor] = {}

    def draw(module: nn.Module, name: str) -> None:
        with drawing(torch_seed(seed, "init", name)), torch.no_grad():
            model._init_weights(module)

    for parent in parents(sites):
        held = stand_in(model.get_submodule(parent))
        for parameter in held.parameters():
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]
        fresh = [s for s in sites if s.fresh and _parent(s.name) == parent]
        leaves = [held.get_submodule(site.name.rpartition(".")[2]) for site in fresh]
        for site, leaf in zip(fresh, leaves, strict=True):
            draw(leaf, site.name)
        # Some families set the scale of a leaf where they come to what holds it (ModernBERT its head and classifier).
        draw(held, parent)
        for site, leaf in zip(fresh, leaves, strict=True):
            drawn.update({site.parameter(own): getattr(leaf, own) for own in site.fresh})
    return drawn


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _lowest_layer(names: Iterable[str], sites: SiteMap) -> int | None:
    """The first encoder layer that holds one of these parameters, 0 for one outside of the layers; None for none."""
    leaves = {name.rpartition(".")[0] for name in names}
    return min((s.layer or 0 for s in sites.part("encoder") if s.name in leaves), default=None)


def _flat(parts: list[Tensor]) -> Tensor:
    if not parts:
        return torch.zeros(0)
    return torch.cat([part.reshape(-1) for part in parts])
