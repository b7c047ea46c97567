"""Which trials may share a pass.

They may where every row takes the values of its own trial. A method that changes the encoder's own weights stands against
that, since a pass has one copy of them; so does a family of whose encoder a leaf also runs on a table that belongs to no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from fleetune.backbone.families import Family
from fleetune.cohort.owned import Owned
from fleetune.methods.base import Method


def why_alone(method: Method | type[Method], family: Family) -> str | None:
    """A sentence: why each trial of a method trains alone. None: they share a backbone."""
    if not method.abilities.shares_backbone:
        return f"{method.name} changes the backbone, so each of its trials trains alone, on a private copy"
    if not family.shares:
        return (
            f"a leaf of {family.model_type} also runs on a table that belongs to no trial, so each of its trials trains "
            "alone"
        )
    return None


def all_share(methods: Iterable[Method], family: Family) -> bool:
    """Whether trials of these methods may share a pass, and several micro-batches of one too."""
    return all(why_alone(method, family) is None for method in methods)


def takes_company(owned: Owned, weights: Set[str], family: Family) -> bool:
    """The same, told by what a trial owns: whether it may share a pass. weights: the names of the encoder's weights."""
    return family.shares and weights.isdisjoint(owned.tensors)
