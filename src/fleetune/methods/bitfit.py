"""BitFit: train the biases of the encoder, and the head (Ben Zaken et al. 2022, arXiv:2106.10199).

Departures: (1) `terms` name leaves by what they do and never overlap; in the authors' code the term "output" also
matches the attention's output, so the paper's m1 and m3 cannot be told apart there; (2) a pooler's bias is trained with
the default terms, as in the authors' code for "all", and only when named with a subset, where their code always adds it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from fleetune.backbone.sites import SiteMap
from fleetune.errors import SettingsError, did_you_mean
from fleetune.methods.base import Abilities, Method, Ownership, biases_of

PAPER_SUBSET = ("query", "intermediate")


class BitFit(Method):
    """Train biases only."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "train the encoder's biases and the head"
    source: ClassVar[str] = "Ben Zaken et al. 2022, arXiv:2106.10199"
    abilities: ClassVar[Abilities] = Abilities(shares_backbone=True)
    default_learning_rate: ClassVar[float] = 1e-3

    terms: Literal["all", "paper-subset"] | tuple[str, ...] = Field(
        default="all",
        description="Which biases: all; paper-subset (query and intermediate, half of the parameters, section 4 of the "
        "paper); or a list of roles such as query,key,output_norm (`fleetune methods bitfit` lists them).",
    )
    add_missing: bool = Field(
        default=False,
        description="Give linear layers and layer norms that have no bias one that starts at zero (ModernBERT). The "
        "result is then no longer a plain model of its family, so `export --format hf` refuses it.",
    )

    @field_validator("terms", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str) and value not in ("all", "paper-subset"):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    def ownership(self, sites: SiteMap) -> Ownership:
        roles = self._roles(sites)
        chosen = [site for site in sites.part("encoder") if site.role in roles]
        biases = biases_of(chosen)
        lacking = [s for s in chosen if not s.has_bias and s.kind in ("linear", "layer_norm")]
        if self.add_missing:
            added = tuple(site.parameter("bias") for site in lacking)
        elif not biases:
            raise SettingsError(
                "bitfit",
                [
                    f"a {sites.model_type} backbone has no biases at {', '.join(roles)}, so there is nothing to train; "
                    "use another method (lora), or add_missing=true to give it biases that start at zero"
                ],
            )
        else:
            added = ()
        return Ownership(biases + self.head_parameters(sites), zero_biases=added)

    def _roles(self, sites: SiteMap) -> tuple[str, ...]:
        if self.terms == "all":
            return sites.roles
        wanted = PAPER_SUBSET if self.terms == "paper-subset" else self.terms
        if not wanted:
            raise SettingsError("bitfit", ["terms: an empty list leaves nothing to train"])
        problems = [
            f'terms: "{term}" is no role of a {sites.model_type} backbone{did_you_mean(term, sites.roles)}'
            for term in wanted
            if term not in sites.roles
        ]
        if problems:
            raise SettingsError("bitfit", problems)
        return tuple(wanted)
