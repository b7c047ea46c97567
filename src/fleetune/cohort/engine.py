"""An opened backbone with what trials need from it: a start, logits in training, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.noise import Noise
from fleetune.backbone.send import make_current, send
from fleetune.backbone.shortage import is_out_of_memory
from fleetune.backbone.sites import SiteMap, site_map
from fleetune.cohort.company import takes_company
from fleetune.cohort.evaluation import Batch, evaluation_passes
from fleetune.cohort.graphs import Graphs
from fleetune.cohort.kernels import keep_few_kernels
from fleetune.cohort.known import Entry, Known, places
from fleetune.cohort.lanes import Lanes
from fleetune.cohort.layers import Active
from fleetune.cohort.open import OpenBackbone
from fleetune.cohort.own import Stacks, active_of
from fleetune.cohort.owned import Owned, initial_values, parents, stand_in
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.data.packing import Packed, pack
from fleetune.methods.base import Method

# Passes of evaluation that a lane is asked for before the first is read: a GPU works on one while the next is laid out. What is
# laid out waits in the machine's memory, some two megabytes a pass.
_AHEAD = 32


class Engine:
    """One frozen classifier that serves any number of trials.

    model: a transformers sequence-classification model in float32 or float64, taken over and changed. fresh: its
    parameters that the checkpoint lacked. dtype: compute dtype of the encoder. remembers: whether to keep, for as long as
    this object lives, what never changes of a table of tokens; not where tables come and go (`known.py`).
    """

    def __init__(
        self,
        model: Any,
        fresh: frozenset[str] = frozenset(),
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        remembers: bool = True,
    ) -> None:
        keep_few_kernels()
        self.sites: SiteMap = site_map(model, fresh)
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        # The values a trial starts from are the checkpoint's, before any rounding to the compute dtype.
        self.pretrained = {
            n: p.detach().to(self._wide, copy=True) for n, p in model.named_parameters()
        }
        self._draws = _Drawer(model, self.sites)
        make_current(torch.device(device))
        self.backbone = OpenBackbone(model, dtype, torch.device(device))
        self.lanes = Lanes(self.backbone.device)
        self.known = Known(self.backbone, self.lanes)
        self._remembers = remembers
        self._weights = frozenset(f"{site.name}.weight" for site in self.sites.part("encoder"))
        self._stacks = Stacks(self.backbone, self.sites) if self.backbone.quick else None
        self.graphs = None if self._stacks is None else Graphs(self.backbone, self._stacks)
        """On a GPU: whole passes."""

    def share(self, other: Engine) -> None:
        """Use the memory of another engine's values wherever this one has the same, bit for bit."""
        theirs = dict(other.backbone.model.named_parameters())
        for name, mine in self.backbone.model.named_parameters():
            if name in theirs and _same(mine, theirs[name]):
                mine.data = theirs[name].data
        for name, mine in self.pretrained.items():
            if name in other.pretrained and _same(mine, other.pretrained[name]):
                self.pretrained[name] = other.pretrained[name]

    def owned(self, method: Method, seed: int) -> Owned:
        """The starting state of a trial."""
        values, low_rank = initial_values(method, seed, self.sites, self.pretrained, self._draws)
        device = self.backbone.device
        return Owned(
            {name: value.to(device) for name, value in values.items()}, low_rank, self.sites
        )

    def start(self, given: TrialInput) -> Owned:
        """The starting state of the trial of an input."""
        return self.owned(given.method, given.spec.seed)

    def entry(self, owned: Owned, rows: Rows, *, dropout: float | None) -> Entry:
        """Where a trial's rows may enter the encoder: above everything that neither it nor dropout changes.

        dropout: the rate that replaces the backbone's own; 0 in evaluation.
        """
        lowest = self.highest_entry(owned, dropout=dropout)
        return lowest if lowest != 0 and self.known.holds(rows.table, lowest) else 0

    def highest_entry(self, owned: Owned, *, dropout: float | None) -> Entry:
        """The same as `entry`, if there is memory for what never changes."""
        lowest = owned.lowest_layer
        if dropout != 0.0 or lowest == 0 or not self._remembers:
            return 0
        can = self.backbone.can_skip if lowest is None else self.backbone.can_enter
        return lowest if can else 0

    def tokens(self, owned: Owned, rows: Rows) -> int:
        """What some rows weigh in evaluation: one each where the encoder is left out."""
        return places(rows.table.lengths[rows.rows], self.entry(owned, rows, dropout=0.0))

    def gives_way(self) -> bool:
        """Free what is held for speed alone, since memory does not suffice; False where there is nothing of the kind."""
        return self.graphs is not None and self.graphs.forget_all()

    def active(self, owned: Sequence[Owned]) -> Active:
        """What some trials own, for a pass of theirs."""
        return active_of(owned) if self._stacks is None else self._stacks.active(owned)

    def logits_of(
        self,
        active: Active,
        rows: Sequence[Rows],
        noise: Noise | None,
        entry: Entry,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits [B, C] of rows that all enter at the same place, a micro-batch each; counts: how many each trial has, or one."""
        packed = pack([(one.table, one.rows) for one in rows], counts)
        if entry == 0:
            return self.backbone.forward(packed, active, noise)
        found = [self.known.of(one.table, entry, one.rows) for one in rows]
        values = send(torch.cat(found), self.backbone.device)
        if entry is not None:
            return self.backbone.from_layer(entry, values, packed, active, noise)
        return self.backbone.from_pooled(values, packed, active, noise)

    def logits(self, owned: Sequence[Owned], packed: Packed, noise: Noise | None) -> Tensor:
        """Logits [B, C] of a packed stream whose k-th trial owns `owned[k]`."""
        return self.backbone.forward(packed, self.active(owned), noise)

    def predict(
        self, owned: Sequence[Owned], rows: Sequence[Rows], batch_sizes: Sequence[int]
    ) -> list[NDArray[Any]]:
        """Each trial's logits [n, C] on its own rows, in their order, without dropout; batch_sizes: most rows of a pass, [K]."""
        companies: dict[tuple[Entry, int | None], list[int]] = {}
        for k, (own, one) in enumerate(zip(owned, rows, strict=True)):
            shares = takes_company(own, self._weights, self.backbone.family)
            companies.setdefault(
                (self.entry(own, one, dropout=0.0), None if shares else k), []
            ).append(k)
        found: dict[int, NDArray[Any]] = {}
        for (entry, _), members in companies.items():
            found |= self._predict(members, owned, rows, batch_sizes, entry)
        return [found[k] for k in range(len(rows))]

    def predict_in_room(
        self, owned: Sequence[Owned], rows: Sequence[Rows], batch_sizes: Sequence[int]
    ) -> list[NDArray[Any]]:
        """The same; where memory does not suffice, once more without what is held for speed, then in ever smaller batches.

        Its error where not even single rows fit.
        """
        sizes = list(batch_sizes)
        while True:
            try:
                return self.predict(owned, rows, sizes)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                has_room = self.gives_way()
                if max(sizes) == 1 and not has_room:
                    raise
            if not has_room:
                sizes = [max(size // 2, 1) for size in sizes]

    def _predict(
        self,
        members: Sequence[int],
        owned: Sequence[Owned],
        rows: Sequence[Rows],
        batch_sizes: Sequence[int],
        entry: Entry,
    ) -> dict[int, NDArray[Any]]:
        lengths = [rows[k].table.lengths[rows[k].rows] for k in members]
        tokens = sum(places(own, entry) for own in lengths)
        most = [batch_sizes[k] for k in members]
        passes = evaluation_passes(lengths, most, tokens, self.lanes.count)
        make_current(self.backbone.device)

        def run(one: list[Batch]) -> Tensor:
            mine = [owned[members[i]] for i, _ in one]
            parts = [_some(rows[members[i]], batch) for i, batch in one]
            with torch.inference_mode():
                return self.logits_of(self.active(mine), parts, None, entry)

        found: list[list[tuple[NDArray[np.int64], NDArray[Any]]]] = [[] for _ in members]
        asked = _AHEAD * self.lanes.count
        for some in (passes[at : at + asked] for at in range(0, len(passes), asked)):
            for one, logits in zip(some, self.lanes.map(run, some), strict=True):
                cuts = np.cumsum([len(batch) for _, batch in one])[:-1]
                for (i, batch), own in zip(one, np.split(logits.cpu().numpy(), cuts), strict=True):
                    found[i].append((batch, own))
        return {k: _in_order(own) for k, own in zip(members, found, strict=True)}


class _Drawer:
    """What `initial_values` needs of a model before its leaves are swapped: fresh leaves and their initialisation."""

    def __init__(self, model: Any, sites: SiteMap) -> None:
        self._parents = {name: stand_in(model.get_submodule(name)) for name in parents(sites)}
        self._init_weights = model._init_weights

    def get_submodule(self, name: str) -> Any:
        return self._parents[name]


def _same(a: Tensor, b: Tensor) -> bool:
    alike = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
    return alike and torch.equal(a, b)


def _some(rows: Rows, which: NDArray[np.int64]) -> Rows:
    return replace(rows, rows=rows.rows[which])


def _in_order(batches: Sequence[tuple[NDArray[np.int64], NDArray[Any]]]) -> NDArray[Any]:
    """What was found of all rows, from batches of some, each with their places."""
    order, values = (np.concatenate(each) for each in zip(*batches, strict=True))
    out = np.empty_like(values)
    out[order] = values
    return out
