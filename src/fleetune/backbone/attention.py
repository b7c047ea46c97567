"""Attention over a packed stream: each sequence sees itself and never a neighbour.

Registered with transformers' `AttentionInterface` under the name `fleetune_packed`, so that the models' own attention
modules call it. On the way in `[1, heads, T, d]`; the tokens are regrouped into buckets of near-equal length
`[b, heads, L, d]`, attended, and put back. Sliding windows follow transformers: tokens i and j see each other where
`|i - j| <= sliding_window - 1`.

Reference, for the tests: the model's own padded attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from fleetune.backbone.stream import Bucket, Current, Stream

NAME = "fleetune_packed"


class _Regroup(torch.autograd.Function):
    """Rows in another order, with some repeated: `x[index]`, whose gradient is `g[back]`.

    Correct only where repeated rows are padding, that is where their gradient is zero or unwanted: then the gradient of
    a row is that of its one real place, and a gather replaces the slow scatter-add of plain indexing.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0].index_select(0, back), None, None


class _Ungroup(torch.autograd.Function):
    """The way back: `x[back]`; padding's gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.rows = x.shape[0]
        return x.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        out = grads[0].new_zeros((ctx.rows, *grads[0].shape[1:]))
        return out.index_copy_(0, back, grads[0]), None, None


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

    query, key, value: [1, heads, T, d]. Returns [1, T, heads, d], as transformers' attention functions do.
    """
    current: Current = module.fleetune_current  # type: ignore[assignment]
    site: str = module.fleetune_site  # type: ignore[assignment]
    stream = current.require()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = stream.next_call(site)
    there, back = stream.regrouping
    # One [T, heads, d] regrouping each; the buckets below are views of it.
    q, k, v = (_Regroup.apply(x[0].transpose(0, 1), there, back) for x in (query, key, value))
    noisy = stream.noise is not None and any(stream.noise.rates(dropout))
    outputs: list[Tensor] = []
    place = 0
    for bucket in stream.buckets:
        size = len(bucket.sequences) * bucket.length
        part = slice(place, place + size)
        place += size
        qb, kb, vb = (_bucket_view(x[part], bucket) for x in (q, k, v))
        mask = _mask(bucket, sliding_window, query)
        if noisy:
            out = _attend_with_dropout(qb, kb, vb, mask, scale, dropout, stream, bucket, site, call)
        else:
            out = functional.scaled_dot_product_attention(qb, kb, vb, attn_mask=mask, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(size, *query.shape[1::2]))
    return _Ungroup.apply(torch.cat(outputs), there, back).unsqueeze(0), None


def _bucket_view(x: Tensor, bucket: Bucket) -> Tensor:
    """[b * L, heads, d] as [b, heads, L, d]."""
    return x.view(len(bucket.sequences), bucket.length, *x.shape[1:]).transpose(1, 2)


def _mask(bucket: Bucket, sliding_window: int | None, like: Tensor) -> Tensor | None:
    """What to add to the scores, broadcast over heads: 0 where a query may look, minus infinity elsewhere."""
    visible = None if bucket.valid is None else bucket.valid[:, None, None, :]
    if sliding_window is not None and bucket.length > sliding_window:
        place = torch.arange(bucket.length, device=like.device)
        near = (place[:, None] - place[None, :]).abs() <= sliding_window - 1
        # A padding query may have no token in its window; let it see itself, so that its softmax has a value.
        here = torch.eye(bucket.length, dtype=torch.bool, device=like.device)
        visible = near if visible is None else (near & visible) | here
    if visible is None:
        return None
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~visible, float("-inf")
    )


def _attend_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    rate: float,
    stream: Stream,
    bucket: Bucket,
    site: str,
    call: int,
) -> Tensor:
    scores = torch.matmul(query, key.transpose(-1, -2)).mul_(scale)
    if mask is not None:
        scores = scores.add_(mask)
    probabilities = torch.softmax(scores, dim=-1)
    assert stream.noise is not None
    kept = stream.noise.attention(
        rate,
        bucket.sequences,
        stream.lengths,
        stream.trial_offsets,
        torch.ones_like(scores),
        site,
        call,
    )
    return torch.matmul(probabilities * kept, value)


def _no_mask(*_: Any, **__: Any) -> None:
    """Masks are made bucket by bucket, so transformers is to make none."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
