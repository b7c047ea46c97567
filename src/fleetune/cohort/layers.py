"""The leaves of an opened backbone: each multiplies its frozen weights once and gives every trial what it owns.

Notation: K trials, N rows (tokens before pooling, sequences after), D input width, E output width, R rank.
What a trial may own at a leaf: its own bias, low-rank factors, or its own copy of any parameter. Trials' rows are
contiguous, so all of it acts on slices.

Source of the low-rank update: Hu et al. 2021 (arXiv:2106.09685), section 4; as in peft,
`y = W x + b + scale * B A dropout(x)`.
Not covered: leaves that are not called with rows of tokens or sequences (relative position tables): a trial may own
their parameters only when it is alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fleetune.backbone.laid import Drawing
from fleetune.backbone.noise import Blocks
from fleetune.backbone.rows import dropped, multiplied
from fleetune.backbone.stream import Current, Stream
from fleetune.cohort.grouped import grouped_bias, grouped_linear
from fleetune.cohort.linear import LowRankSlot, cohort_linear
from fleetune.cohort.tables import Stacked, Tables


@dataclass(frozen=True)
class Active:
    """What the trials of a pass own, by leaf.

    owned: for each parameter name that some trial owns, the tensor of each trial, None where it owns none, [K].
    low_rank: the same for the low-rank factors, by the name of the linear leaf. tables: all of it that belongs to the
    encoder, stacked, and then nothing of it is in the other two.
    """

    owned: dict[str, list[Tensor | None]]
    low_rank: dict[str, list[LowRankSlot | None]]
    tables: Tables | None = None


class Leaf(nn.Module):
    """A leaf of the backbone with its place in it."""

    def __init__(self, name: str, current: Current) -> None:
        super().__init__()
        self.name = name
        self.current = current

    def owned(self, own_name: str) -> list[Tensor | None] | None:
        """What each trial owns of one parameter of this leaf; None when none owns any."""
        active: Active = self.current.active
        return active.owned.get(f"{self.name}.{own_name}")


class CohortLinear(Leaf):
    """A linear layer: one product for all trials, then each trial's bias and low-rank update on its rows."""

    def __init__(self, name: str, current: Current, leaf: nn.Linear) -> None:
        super().__init__(name, current)
        self.in_features, self.out_features = leaf.in_features, leaf.out_features
        self.weight = leaf.weight
        self.bias = leaf.bias

    def forward(self, x: Tensor) -> Tensor:
        stream = self.current.require()
        active: Active = self.current.active
        low_rank = active.low_rank.get(self.name)
        weights, biases = self.owned("weight"), self.owned("bias")
        rows = x.reshape(-1, x.shape[-1])
        if active.tables is not None and (stacked := active.tables.at(self.name)) is not None:
            assert stream.laid is not None
            whose, asks = stream.laid_rows(len(rows)), active.tables.asks
            drawing = self.drawing(stacked, stream)
            y = grouped_linear(rows, self.weight, self.bias, stacked, whose, drawing, asks)
            return y.view(*x.shape[:-1], self.out_features)
        if weights is None and biases is None and low_rank is None:
            y = functional.linear(rows, self.weight, self.bias)
            return y.view(*x.shape[:-1], self.out_features)
        bounds = stream.bounds(rows.shape[0])
        if stream.laid is not None and weights is not None and biases is not None:
            y = _each_its_own(rows, bounds, weights, biases)
            if y is not None:
                return y.view(*x.shape[:-1], self.out_features)
        masks = self._dropout(low_rank, stream, x, bounds)
        if weights is None:
            y = cohort_linear(rows, self.weight, self.bias, bounds, biases, low_rank, masks)
            return y.view(*x.shape[:-1], self.out_features)

        def alone(part: Tensor, k: int) -> Tensor:
            own = None if biases is None else [biases[k]]
            if (weight := weights[k]) is not None:
                bias = _or(None if own is None else own[0], self.bias)
                cast = None if bias is None else bias.to(part.dtype)
                return functional.linear(part, weight.to(part.dtype), cast)
            slot, mask = None if low_rank is None else [low_rank[k]], [masks[k]]
            return cohort_linear(part, self.weight, self.bias, [0, part.shape[0]], own, slot, mask)

        return by_slices(rows, bounds, alone).view(*x.shape[:-1], self.out_features)

    def drawing(self, stacked: Stacked, stream: Stream) -> Drawing | None:
        """The dropout of the low-rank updates' input where it is laid out; None where nobody drops any."""
        if stream.noise is None or stream.laid is None or not stacked.dropout:
            return None
        name = f"{self.name}.lora"
        rates = stream.by_batch(stacked.dropout)
        return stream.laid.drawing(rates, name, stream.next_call(name))

    def _dropout(
        self,
        low_rank: list[LowRankSlot | None] | None,
        stream: Stream,
        x: Tensor,
        bounds: list[int],
    ) -> list[Tensor | None]:
        """The multiplier of each trial's input to its low-rank factors; None where nothing is dropped."""
        masks: list[Tensor | None] = [None] * stream.n_trials
        noise = stream.noise
        if low_rank is None or noise is None or not any(s and s.dropout for s in low_rank):
            return masks
        rows, lead = x.reshape(-1, x.shape[-1]), tuple(x.shape[:-1])
        name = f"{self.name}.lora"
        call = stream.next_call(name)
        if (laid := stream.laid) is not None:
            rates = [0.0 if slot is None else slot.dropout for slot in low_rank]
            drawing = laid.drawing(stream.by_batch(rates), name, call)
            whole = multiplied(torch.ones_like(rows), stream.laid_rows(len(rows)), drawing)
            return [whole[low:high] for low, high in pairwise(bounds)]
        cuts = stream.batch_bounds(len(rows))
        for k, slot in enumerate(low_rank):
            if slot is None or slot.dropout == 0.0:
                continue
            mask = masks[k] = torch.empty_like(rows[bounds[k] : bounds[k + 1]])
            for m in stream.batches_of[k]:
                own = mask[cuts[m] - bounds[k] : cuts[m + 1] - bounds[k]]
                existing, before = stream.existing(lead, m), stream.before(lead, m)
                noise.rows(m, slot.dropout, own, existing, before, name, call)
        return masks


class CohortLayerNorm(Leaf):
    """A layer norm whose bias, and weight where a trial owns it, are each trial's own."""

    def __init__(self, name: str, current: Current, leaf: nn.LayerNorm) -> None:
        super().__init__(name, current)
        self.weight = leaf.weight
        self.bias: nn.Parameter | None = leaf.bias  # ModernBERT's norms have none
        self.normalized_shape, self.eps = leaf.normalized_shape, leaf.eps

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.owned("weight"), self.owned("bias")
        tables: Tables | None = self.current.active.tables
        rows = x.reshape(-1, x.shape[-1])
        if tables is not None and (stacked := tables.at(self.name)) is not None:
            whose = self.current.require().laid_rows(len(rows))
            y = self._norm(rows, self.weight, None)
            return grouped_bias(y, stacked, whose, tables.asks).view(x.shape)
        if weights is None and biases is None:
            return self._norm(x, self.weight, self.bias)
        bounds = self.current.require().bounds(rows.shape[0])
        if weights is None:
            assert biases is not None
            y = self._norm(rows, self.weight, None)
            # A norm without bias: trials that were given none add zero.
            shared = y.new_zeros(y.shape[-1]) if self.bias is None else self.bias
            y = _add_biases(y, bounds, [_or(b, shared) for b in biases])
        else:
            owned_weights, owned_biases = weights, biases or [None] * len(weights)
            y = by_slices(
                rows,
                bounds,
                lambda part, k: self._norm(
                    part, _or(owned_weights[k], self.weight), _or(owned_biases[k], self.bias)
                ),
            )
        return y.view(x.shape)

    def _norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        own = any(p is not None and p.requires_grad for p in (weight, bias))
        if own and x.is_cpu and x.dtype == torch.bfloat16:
            # The kernel would add up their gradients in bfloat16, and such a sum stops growing after some hundred rows.
            return self._norm(x.float(), weight, bias).to(x.dtype)
        # Statistics are float32 inside the kernel; on a CPU it takes float32 weights with a bfloat16 input, elsewhere not.
        if not x.is_cpu:
            weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
        return functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class CohortDropout(Leaf):
    """Dropout with each trial's own masks; nothing in evaluation."""

    def __init__(self, name: str, current: Current, leaf: nn.Dropout) -> None:
        super().__init__(name, current)
        self.p = leaf.p

    def forward(self, x: Tensor) -> Tensor:
        stream = self.current.require()
        noise = stream.noise
        if noise is None or not any(rates := noise.rates(self.p)):
            return x
        call = stream.next_call(self.name)
        if x.dim() == 4 and x.shape[0] == stream.n_sequences and x.shape[-1] == stream.longest:
            # Attention probabilities of a family with its own attention code, [B, heads, L, L].
            every = np.arange(stream.n_sequences)
            blocks = Blocks(every, every, np.zeros_like(every), stream.lengths)
            ones = torch.ones_like(x)
            noise.attention(self.p, [blocks], stream.batch_offsets, [ones], self.name, call)
            return x * ones
        rows = x.reshape(-1, x.shape[-1])
        if (laid := stream.laid) is not None:
            drawing = laid.drawing(rates, self.name, call)
            return dropped(rows, stream.laid_rows(len(rows)), drawing).view(x.shape)
        whose = stream.batch_rows(tuple(x.shape[:-1]))
        kept = noise.every(rates, torch.empty_like(rows), whose, self.name, call)
        return x * kept.view(x.shape)


class CohortOther(Leaf):
    """Any other module with parameters: shared as it is, or run slice by slice with what each trial owns.

    Slow and plain. With a leaf of its own kind wrapped in it, it is also the reference for the leaves above. A model that
    reads a parameter without calling the leaf (deberta-v2's table of relative positions) gets the trial's own where the
    trial is alone, and the frozen one in company.
    """

    def __init__(self, name: str, current: Current, leaf: nn.Module) -> None:
        super().__init__(name, current)
        self.leaf = leaf
        self.own_names = [own for own, _ in leaf.named_parameters(recurse=False)]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # The model's code may ask its leaf for what the leaf alone knows (an embedding's padding_idx, a weight's dtype).
            found = getattr(super().__getattr__("leaf"), name)
        if name in self.__dict__.get("own_names", ()) and self.current.active is not None:
            own = self.owned(name)
            if own is not None and len(own) == 1 and own[0] is not None:
                return own[0].to(found.dtype)
        return found

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        owned = {own: tensors for own in self.own_names if (tensors := self.owned(own)) is not None}
        if not owned:
            return self.leaf(x, *rest, **named)
        stream = self.current.require()
        if stream.n_trials == 1:
            return self._with(owned, 0, x, *rest, **named)
        is_ids = not x.is_floating_point()
        rows = x.reshape(-1) if is_ids else x.reshape(-1, x.shape[-1])
        bounds = stream.bounds(rows.shape[0])
        y = by_slices(rows, bounds, lambda part, k: self._with(owned, k, part, *rest, **named))
        return y.view(*(x.shape if is_ids else x.shape[:-1]), y.shape[-1])

    def _with(
        self, owned: dict[str, list[Tensor | None]], k: int, x: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        mine = {own: t[k] for own, t in owned.items() if t[k] is not None}
        shared = self.leaf.weight if hasattr(self.leaf, "weight") else None
        dtype = shared.dtype if isinstance(shared, Tensor) else torch.float32
        # A table keeps its own dtype, and what is read from it is cast: else its gradient would be added up in the other.
        is_table = isinstance(self.leaf, nn.Embedding)
        cast = {own: t if is_table else t.to(dtype) for own, t in mine.items() if t is not None}
        # A twin with parameters of its own to put the trial's into: another lane may be using the leaf.
        twin = copy.copy(self.leaf)
        twin._parameters = dict(self.leaf._parameters)
        y = functional_call(twin, cast, (x, *rest), named)
        return y.to(dtype) if is_table else y


def by_slices(rows: Tensor, bounds: Sequence[int], run: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Run each trial's rows on their own and lay the results end to end."""
    parts = [run(rows[bounds[k] : bounds[k + 1]], k) for k in range(len(bounds) - 1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _each_its_own(
    rows: Tensor,
    bounds: Sequence[int],
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
) -> Tensor | None:
    """Rows [N, D] through each trial's own weight and bias, in one product; None where some have none, or other numbers of
    rows."""
    counts = set(np.diff(bounds).tolist())
    own = [w.to(rows.dtype) for w in weights if w is not None]
    shifts = [b.to(rows.dtype) for b in biases if b is not None]
    if len(counts) > 1 or len(own) < len(weights) or len(shifts) < len(biases):
        return None
    parts = rows.view(len(own), -1, rows.shape[1])
    return torch.baddbmm(torch.stack(shifts)[:, None], parts, torch.stack(own).transpose(1, 2))


def _or(owned: Tensor | None, shared: Tensor | None) -> Any:
    return shared if owned is None else owned


class _AddBiases(torch.autograd.Function):
    """Add to each trial's rows a bias of its own, in place; the gradient of a bias is the sum over its rows."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bounds: list[int], *biases: Tensor) -> Tensor:
        ctx.bounds, ctx.dtypes = bounds, [b.dtype for b in biases]
        ctx.mark_dirty(y)
        _add_in_place(y, bounds, biases)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), bounds = grads, ctx.bounds
        sums = [
            grad[bounds[k] : bounds[k + 1]].sum(0, dtype=ctx.dtypes[k])
            if ctx.needs_input_grad[2 + k]
            else None
            for k in range(len(bounds) - 1)
        ]
        return grad, None, *sums


def _add_in_place(y: Tensor, bounds: list[int], biases: Sequence[Tensor]) -> None:
    for k, bias in enumerate(biases):
        # Rounded first, as autocast does: adding float32 to bfloat16 takes several times as long on a CPU (bench/kernels.py).
        y[bounds[k] : bounds[k + 1]].add_(bias.to(y.dtype))


def _add_biases(y: Tensor, bounds: list[int], biases: list[Tensor]) -> Tensor:
    if not y.requires_grad and not any(b.requires_grad for b in biases):
        _add_in_place(y, bounds, biases)
        return y
    return _AddBiases.apply(y, bounds, *biases)  # type: ignore[no-any-return]
