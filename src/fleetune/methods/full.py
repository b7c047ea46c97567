"""Full fine-tuning: every parameter is the trial's own. The ceiling of every comparison.

It shares nothing, so such a trial is a cohort of one; the loop and the leaves are the same as for every other method.
"""

from __future__ import annotations

from typing import ClassVar

from fleetune.backbone.sites import SiteMap
from fleetune.methods.base import Abilities, Method, Ownership


class Full(Method):
    """Train everything."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "train everything, on a private copy: the ceiling"
    source: ClassVar[str] = "Devlin et al. 2019, arXiv:1810.04805"
    abilities: ClassVar[Abilities] = Abilities(shares_backbone=False)
    default_learning_rate: ClassVar[float] = 3e-5

    def ownership(self, sites: SiteMap) -> Ownership:
        return Ownership(tuple(sites.parameters()))
