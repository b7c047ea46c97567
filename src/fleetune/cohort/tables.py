"""What the trials of a pass own in the encoder, stacked leaf by leaf, for a GPU.

A trial owns hundreds of small tensors, and on a GPU each call costs more than the work on one of them. So a pass gathers
all that its trials own into one buffer in the compute dtype, in which every leaf has its biases as [K, E] and its
low-rank factors as [K, R, D] and [K, R, E], ranks filled up with zeros; a few operations, however many trials and leaves
there are. What backward finds is added up in a buffer of the same places in the trials' dtype, and goes back to the trials'
own gradients in as few.

Notation: K trials, D input width and E output width of a leaf, R the largest rank at it, filled up to a multiple of 8.
Not covered: trials that own a copy of a weight, or a bias at a leaf that is neither linear nor a layer norm (`fits`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.laid import LaidRows
from fleetune.backbone.rows import add_sums
from fleetune.backbone.send import send
from fleetune.backbone.sites import Site, SiteMap
from fleetune.cohort.owned import Owned
from fleetune.methods.base import LowRank

# What the grouped products ask of a row: 16 bytes, eight numbers of bfloat16.
ALIGNED = 8


@dataclass(frozen=True, slots=True)
class Owners:
    """Which trials own something."""

    numbers: Tensor
    """Ascending, [O], int32."""
    owns: Tensor
    """1 of each trial that does, 0 of the others, [K], int32."""


@dataclass(frozen=True, slots=True)
class Table:
    """One row or matrix a trial."""

    values: Tensor
    """In the encoder's dtype."""
    into: Tensor
    """What gradients of the owners are added to, of the same shape, in the trials' dtype."""
    owners: Owners

    def add_sums(self, grad: Tensor, rows: LaidRows) -> None:
        """Add to each owner's row the sum of its rows of a gradient [N, W]; of biases, [K, W]."""
        add_sums(grad, rows, self.into, self.owners.numbers)


@dataclass(frozen=True, slots=True)
class Stacked:
    """What all trials own at one leaf."""

    bias: Table | None
    """[K, E]; the backbone's own where a trial has none. None where nobody has one."""
    down: Table | None
    """A, [K, R, D]; zero where a trial has none."""
    up: Table | None
    """B times the trial's scale, [K, R, E]."""
    dropout: tuple[float, ...] = ()
    """Of the input of each trial's low-rank update, [K]; empty where nobody drops any."""


@dataclass(frozen=True, slots=True)
class _Place:
    """One leaf's part of the buffer, or that of neighbours."""

    at: int
    shape: tuple[int, ...]
    owners: Owners
    columns: slice | None = None
    """Of a leaf in its neighbours' part."""

    def of(self, buffer: Tensor) -> Tensor:
        whole = buffer[self.at : self.at + int(np.prod(self.shape))].view(self.shape)
        return whole if self.columns is None else whole[:, self.columns]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything stands; the same for as long as the same trials share passes.

    Buffers are gathered from all trials' flat tensors, the backbone's biases and a zero, laid end to end.
    """

    index: Tensor
    """For each place of the buffer where it comes from, int32."""
    factor: Tensor
    """What it is multiplied with: a trial's scale in B, else 1; float32."""
    back: Tensor
    """For each number of the trials' flat tensors its place in the buffer, the last for what is not there, int32."""
    back_factor: Tensor
    shared: Tensor
    """The backbone's biases and a zero, in the dtype of what trials own."""
    biases: dict[str, _Place]
    side_by_side: dict[tuple[str, ...], _Place]
    """The biases of leaves that one product serves, [K, all of their E]."""
    factors: dict[str, tuple[_Place, _Place]]
    dropout: dict[str, tuple[float, ...]]


def stacked(sites: SiteMap) -> dict[str, Site]:
    """The leaves whose trials' own stands in tables: those of the encoder that compute in its dtype, by name."""
    return {site.name: site for site in sites.part("encoder") if site.role != "pooler"}


def fits(owned: Sequence[Owned], sites: SiteMap) -> bool:
    """Whether all that some trials own at these leaves can be stacked."""
    kinds = {name: site.kind for name, site in stacked(sites).items()}
    factors = {f"{f.site}.lora_{side}" for one in owned for f in one.low_rank for side in "AB"}
    for name in {name for one in owned for name in one.tensors} - factors:
        leaf, _, own = name.rpartition(".")
        if leaf in kinds and (own != "bias" or kinds[leaf] not in ("linear", "layer_norm")):
            return False
    return True


def lay_out(
    owned: Sequence[Owned], sites: SiteMap, bias_of: Callable[[str], Tensor | None], device: torch.device,
    joined: Sequence[tuple[str, ...]] = (),
) -> Layout:  # fmt: skip
    """Lay out what `fits`. bias_of: the backbone's own bias of a leaf; joined: leaves that one product serves."""
    return _Builder(owned, sites, bias_of, device).layout(joined)


class _Builder:
    def __init__(
        self,
        owned: Sequence[Owned],
        sites: SiteMap,
        bias_of: Callable[[str], Tensor | None],
        device: torch.device,
    ) -> None:
        self.owned = owned
        self.device = device
        self.bias_of = bias_of
        self.bases = np.cumsum([0, *(sum(len(flat) for flat in one.flats) for one in owned)])
        encoder = stacked(sites)
        names = {name for one in owned for name in one.tensors if name.endswith(".bias")}
        self.biased = [s for name, s in encoder.items() if f"{name}.bias" in names]
        self.low_rank: list[dict[str, LowRank]] = [
            {f.site: f for f in one.low_rank} for one in owned
        ]
        self.ranked = [s for s in encoder.values() if any(s.name in own for own in self.low_rank)]
        self.wide = owned[0].flats[0].dtype
        self.shared: list[Tensor] = []
        self.n_shared = 0
        self.index: list[NDArray[np.int32]] = []
        self.factor: list[NDArray[np.float32]] = []
        self.size = 0

    def layout(self, joined: Sequence[tuple[str, ...]]) -> Layout:
        device = self.device
        biases: dict[str, _Place] = {}
        side_by_side: dict[tuple[str, ...], _Place] = {}
        names = {site.name for site in self.biased}
        for leaves in joined:
            if names.intersection(leaves):
                biases |= self._side_by_side(leaves, side_by_side)
        for name in (site.name for site in self.biased):
            if name not in biases:
                biases[name] = self._put(self._bias(name), self._owners(f"{name}.bias"))
        factors = {
            s.name: (self._factor(s.name, s.d_in, "A"), self._factor(s.name, s.d_out, "B"))
            for s in self.ranked
        }
        dropout = {
            s.name: tuple(own[s.name].dropout if s.name in own else 0.0 for own in self.low_rank)
            for s in self.ranked
        }
        assert self.size < 2**31, "places are 32-bit numbers"
        nothing = np.zeros(0, np.int32)
        index = send(np.concatenate([nothing, *self.index]), device)
        factor = send(np.concatenate([nothing.astype(np.float32), *self.factor]), device)
        count = int(self.bases[-1])
        index.masked_fill_(index < 0, count + self.n_shared)
        # The way back, worked out on the device: there are tens of millions of numbers. What is no trial's goes behind all.
        at = index.clamp(max=count).long()
        place = torch.arange(self.size, dtype=index.dtype, device=device)
        back = index.new_full((count + 1,), self.size).scatter_(0, at, place)
        back_factor = factor.new_ones(count + 1).scatter_(0, at, factor)
        return Layout(
            index,
            factor,
            back[:count],
            back_factor[:count],
            shared=torch.cat([*self.shared, torch.zeros(1, dtype=self.wide, device=device)]),
            biases=biases,
            side_by_side=side_by_side,
            factors=factors,
            dropout=dropout,
        )

    def _side_by_side(
        self, leaves: tuple[str, ...], places: dict[tuple[str, ...], _Place]
    ) -> dict[str, _Place]:
        """Places of the biases of leaves in one, which is added to `places`."""
        parts = [self._bias(leaf) for leaf in leaves]
        whole = self._put(np.concatenate(parts, 1), self._owners(*(f"{leaf}.bias" for leaf in leaves)))  # fmt: skip
        places[leaves] = whole
        ends = np.cumsum([0, *(part.shape[1] for part in parts)]).tolist()
        return {
            leaf: replace(whole, columns=slice(*own))
            for leaf, own in zip(leaves, pairwise(ends), strict=True)
        }

    def _owners(self, *names: str) -> Owners:
        owns = np.asarray([any(n in one.tensors for n in names) for one in self.owned], np.int32)
        numbers = np.flatnonzero(owns).astype(np.int32)
        return Owners(send(numbers, self.device), send(owns, self.device))

    def _bias(self, leaf: str) -> NDArray[np.int64]:
        """Where each trial's bias comes from, [K, E]."""
        name, shared = f"{leaf}.bias", self.bias_of(leaf)
        own = [self._numbers(k, name) for k in range(len(self.owned))]
        if shared is None:
            (width,) = next(one.tensors[name].shape for one in self.owned if name in one.tensors)
            rest = np.full(width, -1)
        else:
            rest = int(self.bases[-1]) + self.n_shared + np.arange(len(shared))
            self.shared.append(shared.detach().to(self.wide))
            self.n_shared += len(shared)
        return np.stack([rest if numbers is None else numbers for numbers in own])

    def _factor(self, leaf: str, width: int, side: str) -> _Place:
        ranks = [own[leaf].r if leaf in own else 0 for own in self.low_rank]
        index = np.full((len(ranks), -(-max(ranks) // ALIGNED) * ALIGNED, width), -1)
        factor = np.ones(index.shape, np.float32)
        for k, rank in enumerate(ranks):
            if rank:
                numbers = self._numbers(k, f"{leaf}.lora_{side}")
                assert numbers is not None
                index[k, :rank] = numbers if side == "A" else numbers.T
                factor[k] = 1.0 if side == "A" else self.low_rank[k][leaf].scale
        return self._put(index, self._owners(f"{leaf}.lora_{side}"), factor)

    def _numbers(self, k: int, name: str) -> NDArray[np.int64] | None:
        """Where each number of a trial's tensor stands among all."""
        one = self.owned[k]
        if name not in one.tensors:
            return None
        shape = one.tensors[name].shape
        return self.bases[k] + one.places[name] + np.arange(shape.numel()).reshape(shape)

    def _put(
        self, index: NDArray[np.int64], owners: Owners, factor: NDArray[np.float32] | None = None
    ) -> _Place:
        place = _Place(self.size, index.shape, owners)
        self.index.append(index.reshape(-1).astype(np.int32))
        self.factor.append(
            np.ones(index.size, np.float32) if factor is None else factor.reshape(-1)
        )
        self.size += index.size
        return place


class Tables:
    """The tables of one pass. dtype: that of the encoder."""

    def __init__(self, layout: Layout, owned: Sequence[Owned], dtype: torch.dtype) -> None:
        # Gradients of all are added in one call, whose order nobody knows.
        assert len({id(one) for one in owned}) == len(owned), "a trial stands in a pass once"
        self.layout = layout
        self._owned = owned
        with torch.no_grad():
            whole = torch.cat([*(f for one in owned for f in one.flats if len(f)), layout.shared])
            gathered = whole.index_select(0, layout.index)
            self._values = gathered.mul_(layout.factor).to(dtype)
        self._gradients: Tensor | None = None
        # Leaves of the lowest layer have no other input that a gradient would be asked of.
        self.asks = layout.shared.new_zeros((), requires_grad=torch.is_grad_enabled())

    def at(self, leaf: str) -> Stacked | None:
        """What the trials own at a leaf; None where none owns any."""
        bias, factors = self.layout.biases.get(leaf), self.layout.factors.get(leaf)
        if bias is None and factors is None:
            return None
        down, up = factors or (None, None)
        dropout = self.layout.dropout.get(leaf, ())
        return Stacked(
            self._table(bias), self._table(down), self._table(up), dropout if any(dropout) else ()
        )

    def side_by_side(self, leaves: tuple[str, ...]) -> Table | None:
        """The biases at leaves that one product serves, [K, all of their E]; None where nobody owns any."""
        return self._table(self.layout.side_by_side.get(leaves))

    def _table(self, place: _Place | None) -> Table | None:
        if place is None:
            return None
        if self._gradients is None:
            # One more for what is not in the tables.
            self._gradients = self.layout.shared.new_zeros(len(self._values) + 1)
        return Table(place.of(self._values), place.of(self._gradients), place.owners)

    def add_gradients(self) -> None:
        """Add what backward has found to the gradients of the trials."""
        if self._gradients is None:
            return
        found = self._gradients.index_select(0, self.layout.back).mul_(self.layout.back_factor)
        into = [grad for one in self._owned for grad in one.grads]
        parts = found.split([len(grad) for grad in into])
        pairs = [(grad, part) for grad, part in zip(into, parts, strict=True) if len(grad)]
        torch._foreach_add_([grad for grad, _ in pairs], [part for _, part in pairs])
