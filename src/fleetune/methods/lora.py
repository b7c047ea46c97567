"""LoRA: low-rank updates of chosen linear layers, and the head (Hu et al. 2021, arXiv:2106.09685).

`y = W x + b + scale * B A dropout(x)` with `scale = lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`
(Kalajdzievski 2023, arXiv:2312.03732). Defaults are those of `peft.LoraConfig`, so that a setting left out means the
same in both.

Departures: (1) A starts from kaiming_uniform(a=sqrt(5)) as in peft; the paper says Gaussian. (2) The whole head is
trained; peft trains the modules named `classifier` and `score`, which leaves, for instance, ModernBERT's head.dense
frozen. (3) `all-linear` never includes the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from fleetune.backbone.sites import Site, SiteMap
from fleetune.errors import SettingsError, did_you_mean
from fleetune.methods.base import Abilities, LowRank, Method, Ownership, PeftTuner


class Lora(Method):
    """Train low-rank updates."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "train low-rank updates of linear layers and the head"
    source: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    abilities: ClassVar[Abilities] = Abilities(shares_backbone=True, peft_format=True)
    default_learning_rate: ClassVar[float] = 5e-4

    r: int = Field(
        default=8, ge=1, le=65_536, description="Rank. Adds r * (d_in + d_out) parameters a site."
    )
    lora_alpha: float = Field(
        default=8,
        gt=0,
        description="The update is scaled by lora_alpha / r (sqrt(r) with use_rslora).",
    )
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on the input of the low-rank update."
    )
    target_modules: Literal["default", "all-linear"] | tuple[str, ...] = Field(
        default="default",
        description="Which linear layers: default (query and value, as peft has it for bert and roberta), all-linear "
        "(all of the encoder, never the head), or a list of module names such as query,key,value.",
    )
    layers_to_transform: tuple[int, ...] | None = Field(
        default=None,
        description="Numbers of the encoder layers that get factors, from 0: 4,5 for the last two of six; unset: all. With "
        "the training setting dropout=0 the layers below are then computed once and kept.",
    )
    use_rslora: bool = Field(
        default=False,
        description="Scale by lora_alpha / sqrt(r), which keeps the update's size as r grows.",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str) and value not in ("default", "all-linear"):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return (value,) if isinstance(value, int) else value

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def ownership(self, sites: SiteMap) -> Ownership:
        factors = tuple(
            LowRank(site.name, self.r, self.scale, self.lora_dropout)
            for site in self.targets(sites)
        )
        return Ownership(self.head_parameters(sites), low_rank=factors)

    def peft_tuner(self, sites: SiteMap) -> PeftTuner:
        """peft's LoraConfig."""
        told = ("r", "lora_alpha", "lora_dropout", "use_rslora")
        settings = {name: getattr(self, name) for name in told}
        names = _peft_names(self.targets(sites), sites)
        return PeftTuner("LORA", {**settings, "target_modules": names, "bias": "none"})

    def targets(self, sites: SiteMap) -> tuple[Site, ...]:
        """The linear sites of the encoder that get factors."""
        linear = self._layers(sites)
        if self.target_modules == "all-linear":
            return linear
        if self.target_modules == "default":
            # peft's table for bert, roberta, electra, ...: query and value; a fused projection counts as both.
            return tuple(s for s in linear if s.role in ("query", "value", "query_key_value"))
        if not self.target_modules:
            raise SettingsError("lora", ["target_modules: an empty list leaves nothing to train"])
        problems: list[str] = []
        endings = {site.name.rpartition(".")[2] for site in linear}
        for target in self.target_modules:
            if not any(_matches(site.name, target) for site in linear):
                problems.append(
                    f'target_modules: no linear layer of the encoder is named "{target}"'
                    f"{did_you_mean(target, endings)}"
                )
        if problems:
            raise SettingsError("lora", problems)
        return tuple(s for s in linear if any(_matches(s.name, t) for t in self.target_modules))

    def _layers(self, sites: SiteMap) -> tuple[Site, ...]:
        """The linear sites of the chosen layers; of the whole encoder where none are chosen."""
        if self.layers_to_transform is None:
            return sites.linear()
        known = sorted({s.layer for s in sites.linear() if s.layer is not None})
        if not self.layers_to_transform:
            raise SettingsError(
                "lora", ["layers_to_transform: an empty list leaves nothing to train"]
            )
        problems = [
            f"layers_to_transform: this {sites.model_type} backbone has the layers {known[0]} to {known[-1]}, but got {layer}"
            for layer in self.layers_to_transform
            if layer not in known
        ]
        if problems:
            raise SettingsError("lora", problems)
        return tuple(s for s in sites.linear() if s.layer in self.layers_to_transform)


def _matches(name: str, target: str) -> bool:
    """peft's rule for a list of names: the whole path, or its end after a dot."""
    return name == target or name.endswith(f".{target}")


def _peft_names(targets: Sequence[Site], sites: SiteMap) -> list[str]:
    """Short names where they mean exactly the same layers to PEFT, whole paths otherwise."""
    names = {site.name for site in targets}
    short = sorted({name.rpartition(".")[2] for name in names})
    meant = {s.name for s in sites if s.kind == "linear" and s.name.rpartition(".")[2] in short}
    return short if meant == names else sorted(names)
