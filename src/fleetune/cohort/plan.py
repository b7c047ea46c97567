"""Which trials train together, and how much one pass may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetune.cohort.trial import TrialInput


@dataclass(frozen=True, slots=True)
class Limits:
    """What one cohort may hold."""

    trials: int
    """Trials at once."""
    tokens: int
    """Tokens in one pass."""


def cohorts(inputs: Sequence[TrialInput], backbone_shares: bool = True) -> list[list[TrialInput]]:
    """The trials that share a backbone in one cohort, each of the others alone; in the order given.

    backbone_shares: False for a family whose trials cannot train together (`families.Family.shares`).
    """
    sharing = [i for i in inputs if backbone_shares and i.method.abilities.shares_backbone]
    alone = [i for i in inputs if not (backbone_shares and i.method.abilities.shares_backbone)]
    return [*([sharing] if sharing else []), *([given] for given in alone)]


def default_limits(device: str) -> Limits:
    """Enough for the machine's matrix rate and no more, since activations cost memory by the token."""
    if device.startswith("cuda"):
        return Limits(trials=64, tokens=65_536)  # assumption, not measured
    # On two cores with MiniLM passes of 100,000 tokens ran at a third of the speed of passes of 4,000: fresh memory for
    # each activation then costs more than the products. docs/lab-notes.md, "tokens in a pass".
    return Limits(trials=32, tokens=4_096)
