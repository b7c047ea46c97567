"""What the trials of a pass own, as the leaves look it up: tensor by tensor, or stacked on a GPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import Tensor

from fleetune.backbone.sites import SiteMap
from fleetune.cohort.layers import Active
from fleetune.cohort.linear import LowRankSlot
from fleetune.cohort.open import OpenBackbone
from fleetune.cohort.owned import Owned
from fleetune.cohort.tables import Layout, Tables, fits, lay_out, stacked

# The companies of a round's passes, of evaluation's, and those before a trial has left. Companies in turn that are one more than
# are kept would all be laid out anew each time.
_KEPT = 12


def active_of(owned: Sequence[Owned]) -> Active:
    """What some trials own, tensor by tensor."""
    tensors: dict[str, list[Tensor | None]] = {}
    low_rank: dict[str, list[LowRankSlot | None]] = {}
    for k, one in enumerate(owned):
        factors = {f"{f.site}.lora_{side}" for f in one.low_rank for side in "AB"}
        for name, tensor in one.tensors.items():
            if name not in factors:
                tensors.setdefault(name, [None] * len(owned))[k] = tensor
        for site, slot in one.slots().items():
            low_rank.setdefault(site, [None] * len(owned))[k] = slot
    return Active(tensors, low_rank)


class Stacks:
    """What trials own in the encoder, stacked where it can be."""

    def __init__(self, backbone: OpenBackbone, sites: SiteMap) -> None:
        self._backbone = backbone
        self._sites = sites
        self._stacked = stacked(sites)
        # The trials are kept too, so that no others get their identities.
        self._kept: OrderedDict[tuple[int, ...], tuple[tuple[Owned, ...], Layout | None]] = (
            OrderedDict()
        )
        self._fits: WeakKeyDictionary[Owned, bool] = WeakKeyDictionary()

    def takes(self, owned: Sequence[Owned]) -> bool:
        """Whether what these trials own can be stacked; nothing is laid out for the answer."""
        return all(self._fit(one) for one in owned)

    def _fit(self, owned: Owned) -> bool:
        if owned not in self._fits:
            self._fits[owned] = fits([owned], self._sites)
        return self._fits[owned]

    def layout(self, owned: Sequence[Owned]) -> Layout | None:
        """Where what these trials own stands; None where it cannot be stacked."""
        key = tuple(id(one) for one in owned)
        if key not in self._kept:
            found = None
            if self.takes(owned):
                backbone = self._backbone
                found = lay_out(
                    owned, self._sites, backbone.bias_of, backbone.device, backbone.joined
                )
            self._kept[key] = (tuple(owned), found)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def forget(self, owned: Owned) -> None:
        """Keep nothing of a trial that has left."""
        for key in [key for key in self._kept if id(owned) in key]:
            del self._kept[key]

    def active(self, owned: Sequence[Owned]) -> Active:
        """What these trials own, stacked where it can be."""
        layout, whole = self.layout(owned), active_of(owned)
        if layout is None:
            return whole
        rest = {n: t for n, t in whole.owned.items() if n.rpartition(".")[0] not in self._stacked}
        low_rank = {n: slots for n, slots in whole.low_rank.items() if n not in self._stacked}
        return Active(rest, low_rank, Tables(layout, owned, self._backbone.dtype))
