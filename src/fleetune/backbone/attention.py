"""Attention over a packed stream: each sequence sees itself and never a neighbour.

Registered with transformers' `AttentionInterface` under the name `fleetune_packed`, so that the models' own attention
modules call it. On the way in `[1, heads, T, d]`; the tokens are laid into tiles (`stream.Bucket`), attended bucket by
bucket with a gradient of our own, and put back. On a GPU they are attended as they lie (varlen.py). Sliding windows follow
transformers: tokens i and j see each other where `|i - j| <= sliding_window - 1`.

Notation: T tokens, d width of a head, b tiles of a bucket, L places of a tile, Q queries of a tile (L, or one a sequence
where only first tokens are read), P places of all tiles.

Reference, for the tests: a plain loop over sequences and heads, and the model's own padded attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from fleetune.backbone.laid import Asked
from fleetune.backbone.send import send
from fleetune.backbone.stream import Bucket, Current, Stream
from fleetune.backbone.varlen import attend

NAME = "fleetune_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of every sequence of the stream with itself.

    query, key, value: [1, heads, T, d]; key and value may have fewer heads, each for as many neighbouring ones of the query
    (EuroBERT). Returns [1, T, heads, d], as transformers' attention functions do. In a module
    marked `fleetune_reads_first` only the rows of first tokens are computed where the stream asks for no others, and the
    rest is zero.
    """
    current: Current = module.fleetune_current  # type: ignore[assignment]
    site: str = module.fleetune_site  # type: ignore[assignment]
    stream = current.require()
    # Not x[0], whose gradient would fill a tensor with zeros and copy into it.
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if (shared := q.shape[1] // k.shape[1]) > 1:
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = stream.next_call(site)
    first_only = stream.first_tokens_only and bool(getattr(module, "fleetune_reads_first", False))
    noise = stream.noise
    drawn = noise is not None and any(noise.rates(dropout))
    if stream.laid is not None:
        drawing = None
        if noise is not None and drawn:
            drawing = stream.laid.drawing(noise.rates(dropout), site, call)
        asked = Asked(stream.laid, scale, sliding_window, first_only, drawing)
        return attend(q, k, v, asked).unsqueeze(0), None
    places = _places(stream, query.shape[1], first_only)
    masks = [
        _mask(stream, i, sliding_window, first_only, query) for i in range(len(stream.buckets))
    ]
    drops: list[Tensor | None] = [None] * len(masks)
    if noise is not None and drawn:
        shapes = [
            (b.n_tiles, query.shape[1], n, b.length)
            for b, n in zip(stream.buckets, places.queries, strict=True)
        ]
        made = [query.new_zeros(shape) for shape in shapes]
        offsets, buckets = stream.batch_offsets, stream.buckets
        noise.attention(dropout, buckets, offsets, made, site, call, first_only=first_only)
        drops = [*made]
    return _PackedAttention.apply(q, k, v, places, masks, drops, scale).unsqueeze(0), None  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the rows `[T * heads, d]` of queries, keys and values go in the tiles, `[tile, head, place]`, and back."""

    shapes: list[tuple[int, int]]
    """Of each bucket: b * heads, and L."""
    queries: list[int]
    """Of each bucket: Q."""
    keys_there: Tensor
    """For each place of a key the row that goes there, [P * heads]; padding repeats a row of the same trial."""
    keys_back: Tensor
    """For each row its place among the keys, [T * heads]."""
    queries_there: Tensor
    """The same for queries."""
    queries_back: Tensor
    """For each row that is computed its place among the queries."""
    queries_padding: Tensor
    """The places of queries that are padding."""
    computed: Tensor | None
    """The rows that are computed; None: all, in order."""

    @property
    def lengths(self) -> list[int]:
        """Of each bucket: L."""
        return [length for _, length in self.shapes]


def _places(stream: Stream, heads: int, first_only: bool) -> _Places:
    kept = ("places", heads, first_only)
    if kept not in stream.kept:
        stream.kept[kept] = _find_places(stream, heads, first_only)
    return stream.kept[kept]  # type: ignore[no-any-return]


def _find_places(stream: Stream, heads: int, first_only: bool) -> _Places:
    keys = [_tokens_in_tiles(stream, bucket) for bucket in stream.buckets]
    firsts = [b.firsts() for b in stream.buckets] if first_only else None
    asked = keys
    if firsts is not None:
        taken = zip(keys, firsts, stream.buckets, strict=True)
        # A slot that a tile does not fill asks with its first token again, and counts as padding.
        asked = [
            (
                np.take_along_axis(tokens, at, axis=1),
                np.arange(at.shape[1])[None] < np.bincount(b.tiles, minlength=b.n_tiles)[:, None],
            )
            for (tokens, _), at, b in taken
        ]
    device = stream.device
    keys_there, keys_back, _ = _indices(keys, heads, stream.n_tokens, None)
    computed = stream.sequence_offsets[:-1] if first_only else None
    there, back, padding = _indices(asked, heads, stream.n_tokens, computed)
    head = np.arange(heads)[None]
    rows = None if computed is None else (computed[:, None] * heads + head).reshape(-1)
    return _Places(
        shapes=[(b.n_tiles * heads, b.length) for b in stream.buckets],
        queries=[tokens.shape[1] for tokens, _ in asked],
        keys_there=send(keys_there, device),
        keys_back=send(keys_back, device),
        queries_there=send(there, device),
        queries_back=send(back, device),
        queries_padding=send(padding, device),
        computed=None if rows is None else send(rows, device),
    )


Tokens = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""The token at each place of a bucket's tiles, and whether it is really there; both [b, places]."""


def _tokens_in_tiles(stream: Stream, bucket: Bucket) -> Tokens:
    owner = bucket.owners()
    real = owner >= 0
    tokens = np.zeros(owner.shape, dtype=np.int64)
    offsets = stream.sequence_offsets[bucket.sequences]
    for tile, start, n, first in zip(
        bucket.tiles, bucket.starts, bucket.lengths, offsets, strict=True
    ):
        tokens[tile, start : start + n] = first + np.arange(n)
    return np.where(real, tokens, tokens[:, :1]), real


def _indices(
    buckets: list[Tokens], heads: int, n_tokens: int, computed: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows by place, places by row (of the computed tokens), and the places that are padding."""
    head = np.arange(heads)[None, :, None]
    there: list[NDArray[np.int64]] = []
    padding: list[NDArray[np.int64]] = []
    back = np.empty((n_tokens, heads), dtype=np.int64)
    at = 0
    for tokens, real in buckets:
        rows = tokens[:, None, :] * heads + head
        places = at + np.arange(rows.size).reshape(rows.shape)
        real = np.broadcast_to(real[:, None, :], rows.shape)
        back.reshape(-1)[rows[real]] = places[real]
        there.append(rows.reshape(-1))
        padding.append(places[~real])
        at += rows.size
    wanted = back if computed is None else back[computed]
    return np.concatenate(there), wanted.reshape(-1), np.concatenate(padding)


def _mask(
    stream: Stream, number: int, window: int | None, first_only: bool, like: Tensor
) -> Tensor | None:
    """What to add to a bucket's scores, [b, 1, Q or 1, L]: 0 where a query may look, minus infinity elsewhere."""
    kept = ("mask", number, window, first_only, like.dtype)
    if kept not in stream.kept:
        visible = stream.buckets[number].visible(window, first_only=first_only)
        if visible is not None:
            hidden = send(~visible[:, None], like.device)
            visible = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            visible.masked_fill_(hidden, float("-inf"))
        stream.kept[kept] = visible
    return stream.kept[kept]  # type: ignore[no-any-return]


class _PackedAttention(torch.autograd.Function):
    """softmax(scale * Q K^T + mask) times the dropout multiplier, times V, bucket by bucket.

    query, key, value: [T, heads, d]; the result too. One function for all buckets: autograd's own gradient of a slice
    would fill and add a whole tensor for each bucket.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        places: _Places,
        masks: list[Tensor | None],
        drops: list[Tensor | None],
        scale: float,
    ) -> Tensor:
        d = query.shape[-1]
        q = query.reshape(-1, d).index_select(0, places.queries_there)
        k = key.reshape(-1, d).index_select(0, places.keys_there)
        v = value.reshape(-1, d).index_select(0, places.keys_there)
        probabilities: list[Tensor] = []
        out = torch.empty_like(q)
        asked = (_parts(x, places, places.queries) for x in (q, out))
        seen = (_parts(x, places, places.lengths) for x in (k, v))
        for i, (qi, oi, ki, vi) in enumerate(zip(*asked, *seen, strict=True)):
            scores = _product(qi, ki.transpose(1, 2), scale)
            if (mask := masks[i]) is not None:
                scores.view(mask.shape[0], -1, *scores.shape[1:]).add_(mask)
            p = _softmax(scores)
            drop = drops[i]
            torch.bmm(p if drop is None else p * drop.view(p.shape), vi, out=oi)
            probabilities.append(p)
        ctx.places, ctx.scale, ctx.dropped = places, scale, [drop is not None for drop in drops]
        ctx.save_for_backward(
            q, k, v, *probabilities, *(drop for drop in drops if drop is not None)
        )
        ctx.shape = query.shape
        found = out.index_select(0, places.queries_back)
        return _spread(found, places.computed, query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        places: _Places = ctx.places
        q, k, v, *rest = ctx.saved_tensors
        probabilities, drops = rest[: len(ctx.dropped)], iter(rest[len(ctx.dropped) :])
        to_out = grads[0].reshape(-1, q.shape[-1]).index_select(0, places.queries_there)
        to_out.index_fill_(0, places.queries_padding, 0.0)
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        asked = (_parts(x, places, places.queries) for x in (q, to_out, to_q))
        seen = (_parts(x, places, places.lengths) for x in (k, v, to_k, to_v))
        for p, dropped, qi, go, gq, ki, vi, gk, gv in zip(
            probabilities, ctx.dropped, *asked, *seen, strict=True
        ):
            to_p = torch.bmm(go, vi.transpose(1, 2))
            used = p
            if dropped:
                drop = next(drops).view(p.shape)
                used = p * drop
                to_p.mul_(drop)
            torch.bmm(used.transpose(1, 2), go, out=gv)
            to_scores = torch._softmax_backward_data(to_p, p, -1, p.dtype)
            _product(to_scores, ki, ctx.scale, gq)
            _product(to_scores.transpose(1, 2), qi, ctx.scale, gk)
        back = (
            _spread(to_q.index_select(0, places.queries_back), places.computed, ctx.shape),
            to_k.index_select(0, places.keys_back).view(ctx.shape),
            to_v.index_select(0, places.keys_back).view(ctx.shape),
        )
        return *back, None, None, None, None


def _parts(tensor: Tensor, places: _Places, lengths: list[int]) -> list[Tensor]:
    """Views of [., d], each bucket's part as [b * heads, its places, d]."""
    batches = [batch for batch, _ in places.shapes]
    parts = tensor.split([batch * n for batch, n in zip(batches, lengths, strict=True)])
    return [part.view(batch, n, -1) for part, batch, n in zip(parts, batches, lengths, strict=True)]


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * a b, batch by batch; the scale costs nothing inside the product."""
    if out is None:
        out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _softmax(scores: Tensor) -> Tensor:
    # torch's kernel for bfloat16 rows that do not fill whole vectors of 32 is slower than a float32 result, rounded.
    if scores.dtype == torch.bfloat16 and scores.shape[-1] % 32:
        return torch.softmax(scores, -1, dtype=torch.float32).to(torch.bfloat16)
    return torch.softmax(scores, -1)


def _spread(found: Tensor, rows: Tensor | None, shape: torch.Size) -> Tensor:
    """The computed rows [., d] at their places of [T, heads, d], zero elsewhere."""
    if rows is None:
        return found.view(shape)
    whole = found.new_zeros(shape)
    whole.view(-1, shape[-1]).index_copy_(0, rows, found)
    return whole


def _no_mask(*_: Any, **__: Any) -> None:
    """Masks are made bucket by bucket, so transformers is to make none."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
