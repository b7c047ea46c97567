"""Packed attention against a plain loop over the sequences, in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from fleetune.backbone.attention import packed_attention
from fleetune.backbone.noise import Noise, NoiseKey
from fleetune.backbone.stream import BUCKET_SHARE, TILE, Current, Stream

HEADS, WIDTH = 2, 3
SITE = "encoder.layer.3.attention"


def stream_of(
    lengths: list[int],
    trials: list[int],
    noise: Noise | None,
    first_only: bool = False,
    batches: list[int] | None = None,
    multiple: int = 1,
) -> Stream:
    """batches: sequences of each micro-batch; one a trial if None."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owners = np.concatenate([[0], np.cumsum(trials)]).astype(np.int64)
    assert owners[-1] == len(lengths)
    cuts = np.concatenate([[0], np.cumsum(trials if batches is None else batches)])
    return Stream(
        offsets, owners, "packed", torch.device("cpu"), noise, first_only, batches=cuts, multiple=multiple
    )  # fmt: skip


def noise_of(rates: list[float | None]) -> Noise:
    return Noise([NoiseKey(seed=100 + k, step=7 + k, rate=rate) for k, rate in enumerate(rates)])


def packed(
    stream: Stream, q: Tensor, k: Tensor, v: Tensor, dropout: float, **rest: Any
) -> tuple[Tensor, Any]:
    current = Current()
    current.stream = stream
    module: Any = SimpleNamespace(
        fleetune_current=current,
        fleetune_site=SITE,
        fleetune_reads_first=stream.first_tokens_only,
    )
    return packed_attention(module, q, k, v, None, dropout=dropout, **rest)


def loop(
    stream: Stream,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    *,
    scaling: float = WIDTH**-0.5,
    sliding_window: int | None = None,
    call: int = 0,
) -> Tensor:
    """Sequence by sequence, head by head; bits of dropout straight from their source, one of its sequences after the other."""
    out = []
    starts = stream.batch_offsets.tolist()
    used = [0] * len(starts)
    for sequence, n in enumerate(stream.lengths.tolist()):
        start = int(stream.sequence_offsets[sequence])
        batch = max(m for m in range(len(starts) - 1) if starts[m] <= sequence)
        multipliers = torch.ones(HEADS, n, n, dtype=q.dtype)
        if stream.noise is not None:
            own = stream.noise.keys[batch].rate
            levels = round((dropout if own is None else own) * 65_536)
            queries = 1 if stream.first_tokens_only else n
            before, used[batch] = used[batch], used[batch] + HEADS * queries * n
            bits = stream.noise.bits(batch, used[batch], SITE, call)[before:]
            kept = torch.from_numpy(bits.astype(np.int64)) + 32_768 >= levels
            drawn = kept.view(HEADS, queries, n).to(q.dtype) * (65_536 / (65_536 - levels))
            multipliers = drawn.expand(HEADS, n, n)
        heads = []
        for h in range(HEADS):
            qh, kh, vh = (x[0, h, start : start + n] for x in (q, k, v))
            scores = scaling * qh @ kh.T
            if sliding_window is not None:
                for i in range(n):
                    for j in range(n):
                        if abs(i - j) > sliding_window - 1:
                            scores[i, j] = -torch.inf
            heads.append((scores.softmax(-1) * multipliers[h]) @ vh)
        one = torch.stack(heads, dim=1)
        if stream.first_tokens_only:
            one = torch.cat([one[:1], torch.zeros_like(one[1:])])
        out.append(one)
    return torch.cat(out)[None]


def check(
    lengths: list[int],
    trials: list[int] | None = None,
    *,
    rates: list[float | None] | None = None,
    dropout: float = 0.0,
    first_only: bool = False,
    batches: list[int] | None = None,
    multiple: int = 1,
    **rest: Any,
) -> None:
    """Output and the gradients of query, key and value."""
    noise = None if rates is None else noise_of(rates)
    trials = trials or [len(lengths)]
    rng = np.random.default_rng(sum(lengths))
    shape = (1, HEADS, sum(lengths), WIDTH)
    q, k, v = (torch.from_numpy(2 * rng.normal(size=shape)).requires_grad_() for _ in range(3))
    stream = stream_of(lengths, trials, noise, first_only, batches, multiple)
    found, weights = packed(stream, q, k, v, dropout, **rest)
    assert weights is None
    plain = stream_of(lengths, trials, noise, first_only, batches)
    expected = loop(plain, q, k, v, dropout, **rest)
    assert_close(found, expected, rtol=1e-11, atol=1e-11)
    direction = torch.from_numpy(rng.normal(size=tuple(expected.shape)))
    mine = torch.autograd.grad(found, (q, k, v), direction)
    other = torch.autograd.grad(expected, (q, k, v), direction)
    for name, a, b in zip("qkv", mine, other, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("window", [None, 40])
def test_long_tiles_may_be_longer_than_their_sequences(
    window: int | None, first_only: bool
) -> None:
    lengths = [70, 5, 33, 64, 90, 40, 12]
    given: dict[str, Any] = dict(multiple=TILE, first_only=first_only, sliding_window=window)
    check(lengths, [3, 4], rates=[0.3, None], dropout=0.1, **given)
    tiles = [(b.n_tiles, b.length) for b in stream_of(lengths, [3, 4], None, multiple=TILE).buckets]
    assert tiles == [(2, 96), (3, 64), (2, 32)]


@pytest.mark.parametrize("first_only", [False, True])
def test_each_micro_batch_of_a_trial_has_dropout_of_its_own(first_only: bool) -> None:
    lengths = [40, 5, 3, 33, 7, 12, 9]
    check(lengths, [4, 3], batches=[1, 3, 2, 1], rates=[0.3, 0.1, 0.2, 0.4], first_only=first_only)


# Long sequences share a bucket while they are at least BUCKET_SHARE of its longest; short ones of a trial share tiles.
EDGES = {
    "one sequence": [9],
    "one token": [1],
    "one token each": [1, 1, 1],
    "all equal": [6, 6, 6, 6],
    "one bucket with padding": [20, 18, 19, 17],
    "a bucket each": [3, 20, 1, 8],
    "shortest first": [1, 2, 3, 20, 19],
    "at the bucket's edge": [60, 51, 50],
    "at the tile's edge": [TILE, TILE + 1, TILE - 1, 1],
    "tiles full to the last place": [TILE // 2, TILE // 2, TILE // 4, 3 * TILE // 4],
    "long ones with padding": [70, 68, 61, 66],
    "long and short": [3, 45, 1, 80, 8, 44],
}
# The largest: a second a case.
LARGEST = ("long ones with padding", "long and short")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in LARGEST else name for name in EDGES]


@pytest.mark.parametrize("window", [None, 1, 2, 5, 19, 20, 50])
@pytest.mark.parametrize("name", NAMES)
def test_edges(name: str, window: int | None) -> None:
    check(EDGES[name], sliding_window=window)


@pytest.mark.parametrize("rates", [None, [None]])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_first_tokens_alone(
    name: str, window: int | None, rates: list[float | None] | None
) -> None:
    """Only the queries of first tokens: as if the others' output and gradient were zero."""
    check(EDGES[name], rates=rates, dropout=0.3, sliding_window=window, first_only=True)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_edges_with_dropout(name: str, window: int | None) -> None:
    check(EDGES[name], rates=[None], dropout=0.3, sliding_window=window)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=5), min_size=1, max_size=4),
    window=st.one_of(st.none(), st.integers(1, 52)),
    dropout=st.sampled_from([0.0, 0.1, 0.5]),
    noisy=st.booleans(),
    first_only=st.booleans(),
    data=st.data(),
)
def test_random_lengths(
    lengths: list[list[int]],
    window: int | None,
    dropout: float,
    noisy: bool,
    first_only: bool,
    data: Any,
) -> None:
    """Up to four trials, each with its sequences' lengths and a dropout rate of its own or none."""
    rates = None
    if noisy:
        own = st.sampled_from([None, 0.0, 0.25, 0.9])
        rates = data.draw(st.lists(own, min_size=len(lengths), max_size=len(lengths)))
    flat = [n for trial in lengths for n in trial]
    trials = [len(trial) for trial in lengths]
    check(flat, trials, rates=rates, dropout=dropout, sliding_window=window, first_only=first_only)


def test_scale_is_the_models_own() -> None:
    check([5, 9, 8], scaling=0.125)
    check([5, 9, 8], scaling=0.125, rates=[0.4])


def test_each_call_in_a_pass_draws_anew() -> None:
    """A shared layer (albert) runs more than once in a pass."""
    stream = stream_of([4, 6], [1, 1], noise_of([0.5, 0.5]))
    rng = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(rng.normal(size=(1, HEADS, 10, WIDTH))) for _ in range(3))
    first, second = (packed(stream, q, k, v, 0.0)[0] for _ in range(2))
    assert not torch.allclose(first, second)
    for call, found in enumerate((first, second)):
        assert_close(found, loop(stream, q, k, v, 0.0, call=call), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [[9, 10, 9, 3], [50, 48, 47, 3]], ids=["tiles", "bucket"])
def test_a_trial_that_is_not_a_number_stays_alone(lengths: list[int]) -> None:
    """One trial full of nan leaves the others, in the same bucket and beyond, as they were."""
    rng = np.random.default_rng(0)
    shape = (1, HEADS, sum(lengths), WIDTH)
    clean = [torch.from_numpy(rng.normal(size=shape)) for _ in range(3)]
    start, end = lengths[0], lengths[0] + lengths[1]
    broken = [x.clone() for x in clean]
    for x in broken:
        x[:, :, start:end] = torch.nan
    for dropout, noise in ((0.0, None), (0.2, noise_of([None, None, None]))):
        results = []
        for tensors in (clean, broken):
            q, k, v = (x.clone().requires_grad_() for x in tensors)
            stream = stream_of(lengths, [1, 1, 2], noise)
            out, _ = packed(stream, q, k, v, dropout, sliding_window=4)
            results.append(
                [out[0], *(g[0].transpose(0, 1) for g in torch.autograd.grad(out.sum(), (q, k, v)))]
            )
        others = [i for i in range(sum(lengths)) if not start <= i < end]
        for expected, found in zip(*results, strict=True):
            assert torch.equal(found[others], expected[others])
            assert found[start:end].isnan().all()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=20), min_size=1, max_size=4)
)
def test_tiles_hold_each_sequence_once_with_little_padding(lengths: list[list[int]]) -> None:
    flat = [n for trial in lengths for n in trial]
    stream = stream_of(flat, [len(trial) for trial in lengths], None)
    held = np.concatenate([bucket.sequences for bucket in stream.buckets])
    assert sorted(held.tolist()) == list(range(len(flat)))
    trial_of = np.repeat(np.arange(len(lengths)), [len(trial) for trial in lengths])
    for bucket in stream.buckets:
        own = stream.lengths[bucket.sequences]
        assert np.array_equal(bucket.lengths, own)
        assert set(bucket.tiles.tolist()) == set(range(bucket.n_tiles))
        if bucket.length > TILE:
            assert bucket.n_tiles == len(own)
            assert bucket.length == own.max() and own.min() >= BUCKET_SHARE * bucket.length
            continue
        assert bucket.length == TILE
        filled = np.bincount(bucket.tiles, weights=own)
        owner = {}
        for tile, sequence in zip(bucket.tiles.tolist(), bucket.sequences.tolist(), strict=True):
            assert owner.setdefault(tile, trial_of[sequence]) == trial_of[sequence]
        assert filled.max() <= TILE
        for trial in range(len(lengths)):
            mine = [filled[tile] for tile, who in owner.items() if who == trial]
            # First fit leaves at most one tile of a trial half empty.
            assert sum(n <= TILE / 2 for n in mine) <= 1
