"""Dropout masks: rate, scale, independence, and what they may not depend on.

The draws are fixed by their names, so nothing here is random: a bound of five standard errors that
holds once holds always, and an error in the rule would miss it by far.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from fleetune.backbone.noise import Blocks, Noise, NoiseKey, multiply_into
from fleetune.backbone.stream import Stream

LEVELS = 1 << 16
N = 200_000
LIKE = torch.empty(0, dtype=torch.float64)


def mask(key: NoiseKey, rate: float, *name: str | int, count: int = N) -> Tensor:
    return Noise([key]).rows(0, rate, LIKE.new_empty(count, 1), None, 0, *name).view(-1)


# -- rate and scale -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_dropped_share_is_the_rate(rate: float) -> None:
    found = mask(NoiseKey(0, 0), rate, "site", 0)
    dropped = float((found == 0).double().mean())
    assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / N) ** 0.5)


@pytest.mark.parametrize("rate", [1e-6, 0.001, 0.01, 0.1, 1 / 3, 0.5, 0.9, 0.99999])
def test_expectation_is_exactly_one(rate: float) -> None:
    """Over all 2^16 numbers that may be drawn, whatever the rate is rounded to."""
    every = np.arange(-LEVELS // 2, LEVELS // 2).astype(np.int16)
    found = multiply_into(LIKE.new_empty(LEVELS), every, rate)
    assert float(found.mean()) == pytest.approx(1.0, abs=1e-12)
    assert float((found == 0).double().mean()) == pytest.approx(rate, abs=0.5 / LEVELS)
    assert len(found.unique()) <= 2


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.15, 0.2, 1 / 3, 0.5, 0.9])
def test_expectation_in_bfloat16_is_off_by_its_rounding_and_no_more(rate: float) -> None:
    """Eight bits: half of the last one is 2^-8 of a number between 1 and 2. The multiplier is that of torch's own dropout."""
    every = np.arange(-LEVELS // 2, LEVELS // 2).astype(np.int16)
    found = multiply_into(torch.empty(LEVELS, dtype=torch.bfloat16), every, rate)
    assert float(found.double().mean()) == pytest.approx(1.0, abs=2**-8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torchs = torch.nn.functional.dropout(torch.ones(999, dtype=torch.bfloat16), rate)
    assert float(found.max()) == float(torchs.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_multiplier_has_the_dtype_of_what_it_multiplies(dtype: torch.dtype) -> None:
    found = multiply_into(torch.empty(3, dtype=dtype), np.zeros(3, dtype=np.int16), 0.25)
    # 4 / 3 is rounded to the dtype, as torch's own dropout rounds it.
    assert found.dtype == dtype
    assert float(found[0]) == pytest.approx(4 / 3, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_multipliers_are_written_where_the_tensor_lies(dtype: torch.dtype) -> None:
    """Into a part of a larger tensor, and into one whose memory is not in order."""
    drawn = np.random.default_rng(0).integers(-LEVELS // 2, LEVELS // 2, 60).astype(np.int16)
    value = torch.tensor(4 / 3, dtype=dtype)
    expected = ((torch.from_numpy(drawn) >= -16_384).to(dtype) * value).view(6, 10)
    whole = torch.full((8, 10), 7.0, dtype=dtype)
    multiply_into(whole[1:7], drawn, 0.25)
    assert torch.equal(whole[1:7], expected)
    assert bool((whole[[0, 7]] == 7).all())
    turned = torch.empty(10, 6, dtype=dtype).T
    assert torch.equal(multiply_into(turned, drawn, 0.25), expected)


def test_bits_are_uniform() -> None:
    """Chi-square over 256 cells of equal size: its mean is 255, its standard deviation 22.6."""
    bits = Noise([NoiseKey(0, 0)]).bits(0, N, "site", 0).astype(np.int64) + LEVELS // 2
    assert bits.min() >= 0 and bits.max() < LEVELS
    for digits in (bits >> 8, bits & 255):
        counts = np.bincount(digits, minlength=256)
        chi_square = float(((counts - N / 256) ** 2 / (N / 256)).sum())
        assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 64, 768])
def test_neighbouring_activations_are_independent(lag: int) -> None:
    found = mask(NoiseKey(0, 0), 0.5, "site", 0) - 1
    assert abs(float((found[lag:] * found[:-lag]).mean())) < 5 / N**0.5


# -- independence ---------------------------------------------------------------------------------

BASE = (NoiseKey(3, 5), ("encoder.layer.1", 0))
OTHERS = {
    "seed": (NoiseKey(4, 5), ("encoder.layer.1", 0)),
    "step": (NoiseKey(3, 6), ("encoder.layer.1", 0)),
    "site": (NoiseKey(3, 5), ("encoder.layer.2", 0)),
    "call": (NoiseKey(3, 5), ("encoder.layer.1", 1)),
    "sequence": (NoiseKey(3, 5), ("encoder.layer.1", 0, 0)),
    "next sequence": (NoiseKey(3, 5), ("encoder.layer.1", 0, 1)),
    # Names that would run together if they were only joined.
    "seed and step as one number": (NoiseKey(35, 5), ("encoder.layer.1", 0)),
    "site and call as one word": (NoiseKey(3, 5), ("encoder.layer.10",)),
    "call in the site": (NoiseKey(3, 5), ("encoder.layer.1/0",)),
}


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations(["base", *OTHERS], 2)), ids="-".join
)
def test_masks_of_different_names_are_independent(first: str, second: str) -> None:
    """The correlation of independent masks has a standard error of 1 / sqrt(N)."""
    named = {"base": BASE, **OTHERS}
    a, b = (mask(named[n][0], 0.5, *named[n][1]) - 1 for n in (first, second))
    assert abs(float((a * b).mean())) < 5 / N**0.5


def test_the_same_name_gives_the_same_bits() -> None:
    """From another object, for another place in the cohort, after other draws, for another rate."""
    key, name = BASE
    expected = Noise([key]).bits(0, 1001, *name)
    company = Noise([NoiseKey(9, 9), NoiseKey(8, 8, 0.7), NoiseKey(3, 5, 0.2)])
    company.bits(0, 77, "other", 0)
    assert np.array_equal(company.bits(2, 1001, *name), expected)
    assert np.array_equal(company.bits(2, 1001, *name), expected), "and again"


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1000])
def test_fewer_bits_are_the_first_of_more(count: int) -> None:
    """64-bit words hold four numbers each; how many are asked for changes none of them."""
    noise = Noise([NoiseKey(0, 0)])
    few = noise.bits(0, count, "site", 0)
    assert len(few) == count
    assert np.array_equal(few, noise.bits(0, 2000, "site", 0)[:count])


def test_what_was_drawn_is_not_overwritten() -> None:
    noise = Noise([NoiseKey(0, 0)])
    first = noise.bits(0, 100, "site", 0)
    kept = first.copy()
    noise.bits(0, 100, "site", 1)
    assert np.array_equal(first, kept)


def test_a_higher_rate_drops_what_a_lower_one_drops() -> None:
    """Rates share the bits, so two trials that differ in the rate alone differ in little else."""
    low, high = (mask(NoiseKey(0, 0), rate, "site", 0) == 0 for rate in (0.1, 0.3))
    assert bool((high | ~low).all()) and bool((high & ~low).any())


# -- rates of trials ------------------------------------------------------------------------------


def test_a_trials_rate_replaces_the_backbones() -> None:
    noise = Noise([NoiseKey(0, 0), NoiseKey(1, 0, 0.0), NoiseKey(2, 0, 0.4)])
    assert noise.rates(0.1) == [0.1, 0.0, 0.4]
    assert noise.rates(0.0) == [0.0, 0.0, 0.4]


def test_attention_of_each_trial_has_its_own_rate() -> None:
    noise = Noise([NoiseKey(0, 0), NoiseKey(1, 0, 0.0), NoiseKey(2, 0, 0.75)])
    out = torch.ones(3, 8, 64, 64, dtype=torch.float64)
    lengths, trials = np.array([64, 64, 64]), np.array([0, 1, 2, 3])
    every = np.arange(3)
    noise.attention(0.25, [Blocks(every, every, 0 * every, lengths)], trials, [out], "site", 0)
    for k, rate in enumerate([0.25, 0.0, 0.75]):
        n = out[k].numel()
        dropped = float((out[k] == 0).double().mean())
        assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / n) ** 0.5)


# -- padding and grouping -------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    extra=st.integers(0, 9),
    before=st.lists(st.integers(1, 20), max_size=3),
)
def test_padded_rows_get_no_bits(lengths: list[int], extra: int, before: list[int]) -> None:
    """A trial's tokens have the masks of the packed layout, however much the company pads them."""
    key, width, rate = NoiseKey(5, 2), 3, 0.5
    alone = Noise([key]).rows(0, rate, LIKE.new_empty(sum(lengths), width), None, 0, "site", 0)
    # The trial in company: others come before it, and one of them is longer than all.
    mates = [*before, max(lengths) + extra]
    every = [*mates, *lengths]
    offsets = np.concatenate([[0], np.cumsum(every)])
    trials = np.array([0, len(mates), len(every)])
    noise = Noise([NoiseKey(0, 0), key])
    stream = Stream(offsets, trials, "padded", torch.device("cpu"), noise)
    low, high = stream.bounds(stream.n_token_rows)[1:3]
    existing = stream.existing((stream.n_sequences, stream.longest), 1)
    assert existing is not None and len(existing) == sum(lengths)
    found = noise.rows(1, rate, LIKE.new_empty(high - low, width), existing, 0, "site", 0)
    assert torch.equal(found[torch.from_numpy(existing)], alone)
    padding = np.setdiff1d(np.arange(high - low), existing)
    assert bool((found[torch.from_numpy(padding)] == 1).all())


def test_every_row_counts_where_none_is_padding() -> None:
    """After pooling rows are sequences: `existing` is None, even in the padded layout."""
    stream = Stream(np.array([0, 3, 8]), np.array([0, 1, 2]), "padded", torch.device("cpu"))
    assert stream.existing((2,), 0) is None
    assert stream.existing((2, 1), 0) is None
    assert stream.existing((2, 5), 1) is not None


@pytest.mark.parametrize("rows", [10, 12], ids=["as many as tokens", "of its own number"])
def test_a_table_of_positions_has_neither_padding_nor_rows_before_it(rows: int) -> None:
    """It is whole in each part of a micro-batch, and may have as many rows as the padded tokens."""
    key = NoiseKey(0, 0, tokens_before=7, rows_before=3, squares_before=20)
    offsets, trials = np.array([0, 3, 8]), np.array([0, 2])
    stream = Stream(offsets, trials, "padded", torch.device("cpu"), Noise([key]))
    found = stream.batch_rows((rows,))
    assert (found.bounds, found.existing, found.before) == ([0, rows], [None], [0])
    tokens, sequences = stream.batch_rows((2, 5)), stream.batch_rows((2, 1))
    assert tokens.before == [7] and tokens.existing[0] is not None
    assert sequences.before == [3] and sequences.existing == [None]


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    extra=st.integers(0, 5),
    mates=st.lists(st.integers(1, 9), max_size=4),
    data=st.data(),
)
def test_attention_blocks_depend_on_nothing_but_their_names(
    lengths: list[int], extra: int, mates: list[int], data: st.DataObject
) -> None:
    """Not on padding, nor on which sequences share a bucket, nor on the company or its order."""
    key, heads, rate = NoiseKey(5, 2), 2, 0.5
    sizes = [heads * n * n for n in lengths]
    bits = np.split(Noise([key]).bits(0, sum(sizes), "site", 0), np.cumsum(sizes)[:-1])
    expected = [
        multiply_into(LIKE.new_empty(heads, n, n), b, rate)
        for n, b in zip(lengths, bits, strict=True)
    ]

    first = data.draw(st.booleans())
    every = np.array([*lengths, *mates] if first else [*mates, *lengths])
    keys = [key, NoiseKey(0, 0)] if first else [NoiseKey(0, 0), key]
    start = 0 if first else len(mates)
    trials = np.array([0, len(lengths) if first else len(mates), len(every)])
    order = np.array(data.draw(st.permutations(range(len(every)))))
    cut = data.draw(st.integers(0, len(every)))
    groups = [group for group in (order[:cut], order[cut:]) if len(group)]
    buckets, outs = [], []
    for group in groups:
        side, tiles = int(every[group].max()) + extra, np.arange(len(group))
        buckets.append(Blocks(group, tiles, 0 * tiles, every[group]))
        outs.append(torch.ones(len(group), heads, side, side, dtype=torch.float64))
    Noise(keys).attention(rate, buckets, trials, outs, "site", 0)
    seen = 0
    for group, found in zip(groups, outs, strict=True):
        for place, sequence in enumerate(group.tolist()):
            n = int(every[sequence])
            beyond = found[place].clone()
            beyond[:, :n, :n] = 1
            assert bool((beyond == 1).all()), "padding keeps its ones"
            if start <= sequence < start + len(lengths):
                assert_close(found[place, :, :n, :n], expected[sequence - start], rtol=0, atol=0)
                seen += 1
    assert seen == len(lengths)


@pytest.mark.parametrize("first_only", [False, True])
def test_attention_of_a_part_draws_what_the_whole_draws(first_only: bool) -> None:
    """Of a micro-batch whose first rows are in another pass."""
    lengths, heads, cut = np.array([3, 1, 4, 2]), 2, 2

    def drawn(own: np.ndarray, key: NoiseKey) -> list[torch.Tensor]:
        numbers = np.arange(len(own))
        shapes = [(1, heads, 1 if first_only else n, n) for n in own.tolist()]
        outs = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
        one = np.zeros(1, dtype=np.int64)
        buckets = [Blocks(numbers[i : i + 1], one, one, own[i : i + 1]) for i in numbers]
        trials = np.array([0, len(own)])
        Noise([key]).attention(0.5, buckets, trials, outs, "site", 0, first_only=first_only)
        return outs

    whole = drawn(lengths, NoiseKey(5, 2))
    later = drawn(lengths[cut:], NoiseKey(5, 2, None, 2, 4, 10))
    for found, expected in zip(later, whole[cut:], strict=True):
        assert_close(found, expected, rtol=0, atol=0)
    assert any(bool((mask == 0).any()) for mask in later)
