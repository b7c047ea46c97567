"""The named leaves of a backbone where a method may attach.

A site map is made from a model's module tree alone: shapes, never values. So it can be made on torch's meta device,
and parameters can be counted for a model whose weights are not there.

What is encoder and what is head: the head is everything that transformers puts on top of the base model, and every
parameter of the base model that the checkpoint lacks (a BERT pooler that was never trained, say): such a parameter is
drawn from the trial's seed, so it must be trained and saved with the trial.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fleetune.backbone.families import role_of

Kind = Literal["linear", "layer_norm", "embedding", "other"]
Part = Literal["encoder", "head"]


@dataclass(frozen=True, slots=True)
class Site:
    """One leaf: a linear layer, a layer norm, an embedding, or another module with parameters of its own."""

    name: str
    """Path in the classification model, e.g. `bert.encoder.layer.0.attention.self.query`."""
    kind: Kind
    part: Part
    role: str
    """query, key, value, attention_output, ...: see `families.ROLES`; "head" for the head."""
    layer: int | None
    """Number of the encoder layer, from 0; None outside of the layers."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each parameter by its own name (`weight`, `bias`)."""
    fresh: frozenset[str] = frozenset()
    """Its parameters that the checkpoint lacks."""

    @property
    def has_bias(self) -> bool:
        return "bias" in self.shapes

    @property
    def d_in(self) -> int:
        """Input width of a linear layer."""
        return self.shapes["weight"][1]

    @property
    def d_out(self) -> int:
        """Output width of a linear layer."""
        return self.shapes["weight"][0]

    def parameter(self, own_name: str) -> str:
        """The full name of one of its parameters."""
        return f"{self.name}.{own_name}"


@dataclass(frozen=True, slots=True)
class SiteMap:
    """All sites of a classification model, in the order of its modules."""

    model_type: str
    sites: tuple[Site, ...]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    def part(self, part: Part) -> tuple[Site, ...]:
        """The sites of the encoder, or of the head."""
        return tuple(site for site in self.sites if site.part == part)

    def linear(self) -> tuple[Site, ...]:
        """The linear layers of the encoder."""
        return tuple(site for site in self.part("encoder") if site.kind == "linear")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that this encoder has, in the order of its modules."""
        return tuple(dict.fromkeys(site.role for site in self.part("encoder")))

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by its full name."""
        return {
            site.parameter(own): shape for site in self.sites for own, shape in site.shapes.items()
        }


def site_map(model: Any, fresh: frozenset[str] = frozenset()) -> SiteMap:
    """The sites of a transformers sequence-classification model, whatever device it is on.

    fresh: names of the parameters that the checkpoint lacked.
    """
    base = f"{model.base_model_prefix}."
    found: list[Site] = []
    for name, module in model.named_modules():
        own = {own: tuple(p.shape) for own, p in module.named_parameters(recurse=False)}
        if not own:
            continue
        missing = frozenset(own_name for own_name in own if f"{name}.{own_name}" in fresh)
        in_head = not name.startswith(base) or bool(missing)
        layer = re.search(r"\.(?:layers?|albert_layer_groups)\.(\d+)\.", name)
        found.append(
            Site(
                name=name,
                kind=_kind(module),
                part="head" if in_head else "encoder",
                role="head" if in_head else role_of(name),
                layer=int(layer.group(1)) if layer else None,
                shapes=own,
                fresh=missing,
            )
        )
    return SiteMap(model.config.model_type, tuple(found))


def empty_model(config: Any, num_labels: int = 2) -> Any:
    """The classification model of a config on the meta device: shapes without weights, in milliseconds."""
    from transformers import AutoModelForSequenceClassification

    names = {i: f"LABEL_{i}" for i in range(num_labels)}
    # Both maps, since `num_labels` alone is told to contradict those that the config has.
    maps = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    config = type(config).from_dict({**config.to_dict(), **maps})
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def _kind(module: nn.Module) -> Kind:
    if type(module) is nn.Linear:
        return "linear"
    if type(module) is nn.LayerNorm:
        return "layer_norm"
    return "embedding" if type(module) is nn.Embedding else "other"
