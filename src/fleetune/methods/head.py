"""Head only: the encoder stays as it was pre-trained. The floor of every comparison."""

from __future__ import annotations

from typing import ClassVar

from fleetune.backbone.sites import SiteMap
from fleetune.methods.base import Abilities, Method, Ownership


class Head(Method):
    """Train the classification head only (linear probing, where the head is one layer)."""

    name: ClassVar[str] = "head"
    summary: ClassVar[str] = "train the head only: the floor"
    source: ClassVar[str] = "Alain and Bengio 2016, arXiv:1610.01644 (linear probes)"
    abilities: ClassVar[Abilities] = Abilities(shares_backbone=True)
    default_learning_rate: ClassVar[float] = 1e-3

    def ownership(self, sites: SiteMap) -> Ownership:
        return Ownership(self.head_parameters(sites))
