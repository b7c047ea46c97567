"""What a method is: settings, and what a trial of it owns at which sites.

A method never touches a tensor. It looks at the site map and says which parameters a trial owns as its own copy, and
where it adds low-rank factors; the cohort engine does the rest. So parameters can be counted without weights, and a new
method is one file and one row of the table.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from fleetune.backbone.sites import Site, SiteMap
from fleetune.records import ParameterCount


@dataclass(frozen=True, slots=True)
class LowRank:
    """Low-rank factors at one linear site: `scale * B A dropout(x)` is added to its output."""

    site: str
    r: int
    scale: float
    dropout: float


@dataclass(frozen=True, slots=True)
class Ownership:
    """What one trial owns: copies of pre-trained parameters by full name, and low-rank factors."""

    parameters: tuple[str, ...]
    low_rank: tuple[LowRank, ...] = ()
    zero_biases: tuple[str, ...] = ()
    """Biases that the backbone lacks and the trial adds, starting from zero, by full name."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What shared code may ask a method, instead of its class."""

    shares_backbone: bool
    """Whether trials of it may train together with others through one backbone."""
    peft_format: bool = False
    """Whether stock `PeftModel.from_pretrained` can load what it saves."""


@dataclass(frozen=True, slots=True)
class PeftTuner:
    """What peft calls a method, and its settings there."""

    kind: str
    """One of `peft.PeftType`."""
    settings: Mapping[str, Any]
    """Fields of that tuner's config, but those that every tuner has."""


class Method(BaseModel):
    """A way to fine-tune. Fields are its hyperparameters, under the names that peft gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `fleetune methods`."""
    source: ClassVar[str]
    """The paper."""
    abilities: ClassVar[Abilities]
    default_learning_rate: ClassVar[float]
    """Used where the user sets none; a starting point, not a recommendation from a search."""

    @abstractmethod
    def ownership(self, sites: SiteMap) -> Ownership:
        """What a trial owns on this backbone. SettingsError where the method cannot be used on it."""

    def peft_tuner(self, sites: SiteMap) -> PeftTuner | None:
        """What peft has for it on this backbone; None where `abilities.peft_format` is False."""
        return None

    def head_parameters(self, sites: SiteMap) -> tuple[str, ...]:
        """Every parameter of the head: all methods train it in full."""
        return tuple(site.parameter(own) for site in sites.part("head") for own in site.shapes)


def count_parameters(method: Method, sites: SiteMap) -> ParameterCount:
    """Trainable parameters of one trial, encoder and head apart."""
    owned = method.ownership(sites)
    shapes = sites.parameters()
    head = {
        name for site in sites.part("head") for name in (site.parameter(o) for o in site.shapes)
    }
    encoder = sum(_size(shapes[name]) for name in owned.parameters if name not in head)
    for factors in owned.low_rank:
        site = sites[factors.site]
        encoder += factors.r * (site.d_in + site.d_out)
    for bias in owned.zero_biases:
        encoder += sites[bias.rpartition(".")[0]].shapes["weight"][0]
    return ParameterCount(encoder, sum(_size(shapes[n]) for n in owned.parameters if n in head))


def biases_of(sites: Sequence[Site]) -> tuple[str, ...]:
    """The full names of the biases of some sites."""
    return tuple(site.parameter("bias") for site in sites if site.has_bias)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
