"""Dropout as a GPU draws it, by its reference on the CPU: known words, rate, and what a mask may not depend on.

Whether the kernel gives the same as the reference is a question for a GPU (tests/gpu).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.backbone.device_noise import DeviceNoise, noise_on
from fleetune.backbone.noise import BatchRows, Noise, NoiseKey
from fleetune.backbone.philox import philox, word
from fleetune.backbone.stream import Stream
from fleetune.seeds import digest

LEVELS = 1 << 16
LENGTHS = [40, 3, 7, 35, 1, 12, 70, 33, 5]
TRIALS = [2, 4, 3]
KEYS = [NoiseKey(3, 5), NoiseKey(4, 0, 0.25), NoiseKey(5, 9)]

# counter, key and words of Random123's own file of known answers, examples/kat_vectors, philox4x32 with 7 rounds
KNOWN = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    "ones": (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
    ),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_words_are_those_of_the_source(name: str) -> None:
    counter, (low, high), expected = KNOWN[name]
    key = np.asarray(low | high << 32, dtype=np.uint64).astype(np.int64)
    c0, c1, c2, c3 = (torch.tensor([c]) for c in counter)
    found = philox((c0, c1, c2, c3), torch.from_numpy(key[None]))
    assert tuple(int(w) for w in found) == expected


def test_places_count_through_the_words_of_the_blocks() -> None:
    key, numbers = torch.tensor([-5]), torch.arange(4 << 32, (4 << 32) + 9)
    zero = torch.zeros(3, dtype=torch.int64)
    blocks = philox((torch.arange(3), zero + 1, zero, zero), key)
    assert torch.equal(word(key, numbers), torch.stack(blocks, dim=1).reshape(-1)[:9])


def stream_of(noise: Noise, lengths: list[int] = LENGTHS, trials: list[int] = TRIALS) -> Stream:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owners = np.concatenate([[0], np.cumsum(trials)]).astype(np.int64)
    return Stream(offsets, owners, "packed", torch.device("cpu"), noise)


def activations(noise: DeviceNoise, counts: list[int], width: int = 6) -> list[Tensor]:
    """Each trial's multipliers."""
    bounds = np.cumsum([0, *counts]).tolist()
    before = [key.tokens_before for key in noise.keys]
    rows = BatchRows(bounds, [None] * len(counts), before)
    out = torch.full((bounds[-1], width), torch.nan, dtype=torch.float64)
    return list(noise.every(noise.rates(0.5), out, rows, "site", 0).split(counts))


def expected_bits(key: NoiseKey, count: int, *name: str | int) -> NDArray[np.int64]:
    words = np.frombuffer(digest(key.seed, "dropout", key.step, *name)[:8], dtype=np.int64).copy()
    return (word(torch.from_numpy(words), torch.arange(count)) >> 16).numpy()


def expected(key: NoiseKey, count: int, rate: float, *name: str | int) -> Tensor:
    levels = round(rate * LEVELS)
    kept = torch.from_numpy(expected_bits(key, count, *name)) >= levels
    return kept.double() * (LEVELS / (LEVELS - levels))


# -- activations ----------------------------------------------------------------------------------


def test_each_trial_takes_its_own_stream_from_the_start() -> None:
    found = activations(DeviceNoise(KEYS), [11, 0, 4])
    for key, mine, count, rate in zip(KEYS, found, [11, 0, 4], [0.5, 0.25, 0.5], strict=True):
        assert torch.equal(mine.reshape(-1), expected(key, 6 * count, rate, "site", 0))


def test_company_changes_nothing() -> None:
    (alone,) = activations(DeviceNoise(KEYS[2:]), [20])
    assert torch.equal(activations(DeviceNoise(KEYS), [3, 8, 20])[2], alone)


def test_a_part_of_a_micro_batch_draws_what_the_whole_draws() -> None:
    (whole,) = activations(DeviceNoise([NoiseKey(3, 5)]), [20])
    (rest,) = activations(DeviceNoise([NoiseKey(3, 5, tokens_before=13)]), [7])
    assert torch.equal(whole[13:], rest)


def test_padding_takes_no_bits_and_is_multiplied_by_one() -> None:
    """Rows 1 and 3 of five are padding."""
    noise, existing = DeviceNoise(KEYS[:1]), np.asarray([0, 2, 4])
    out = torch.full((5, 6), torch.nan, dtype=torch.float64)
    noise.rows(0, 0.5, out, existing, 0, "site", 0)
    (plain,) = activations(noise, [3])
    assert torch.equal(out[[0, 2, 4]], plain)
    assert bool((out[[1, 3]] == 1).all())


def test_a_table_with_as_many_rows_as_tokens_takes_its_own_numbers() -> None:
    """In one pass, in either order."""
    noise = DeviceNoise([NoiseKey(3, 5, tokens_before=7)])
    tokens = BatchRows([0, 5], [np.asarray([0, 2, 4])], [7])
    table = BatchRows([0, 5], [None], [0])
    for rows in (tokens, table, tokens):
        alone = DeviceNoise(noise.keys)
        out, other = torch.empty(5, 6).double(), torch.empty(5, 6).double()
        found = noise.every([0.5], out, rows, "site", 0)
        assert torch.equal(found, alone.every([0.5], other, rows, "site", 0))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_dropped_share_is_the_rate_and_the_rest_makes_up_for_it(rate: float) -> None:
    count = 200_000
    rows = BatchRows([0, count], [None], [0])
    out = torch.empty(count, 1, dtype=torch.float64)
    found = DeviceNoise([NoiseKey(0, 0)]).every([rate], out, rows, "site", 0)
    # Five standard errors of a share; the draws are fixed by their names.
    spread = 5 * (rate * (1 - rate) / count) ** 0.5
    assert float((found == 0).double().mean()) == pytest.approx(rate, abs=spread)
    assert float(found.mean()) == pytest.approx(1.0, abs=spread / (1 - rate))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 64, 768])
def test_neighbouring_numbers_are_independent(lag: int) -> None:
    found = torch.from_numpy(expected_bits(NoiseKey(0, 0), 200_000, "site", 0)) >= LEVELS // 2
    signs = 2.0 * found.double() - 1
    assert abs(float((signs[lag:] * signs[:-lag]).mean())) < 5 / len(signs) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_multipliers_are_rounded_once(dtype: torch.dtype) -> None:
    out = torch.empty(50, 6, dtype=dtype)
    DeviceNoise(KEYS[:1]).every([0.25], out, BatchRows([0, 50], [None], [0]), "site", 0)
    exact = expected(KEYS[0], 300, 0.25, "site", 0)
    assert torch.equal(out.reshape(-1), exact.to(dtype))


# -- attention ------------------------------------------------------------------------------------


def blocks_of(
    noise: DeviceNoise, lengths: list[int], trials: list[int], first_only: bool, heads: int = 2
) -> list[Tensor]:
    """Each sequence's multipliers [heads, Q, n], read back from its tile; the rest of the tiles must stay as it was."""
    stream = stream_of(noise, lengths, trials)
    made = [
        torch.full(
            (b.n_tiles, heads, b.firsts().shape[1] if first_only else b.length, b.length), 7.0
        )
        for b in stream.buckets
    ]
    offsets = stream.trial_offsets
    noise.attention(0.5, stream.buckets, offsets, made, "site", 1, first_only=first_only)
    found: dict[int, Tensor] = {}
    for b, out in zip(stream.buckets, made, strict=True):
        tops = b.slots if first_only else b.starts
        placed = zip(b.sequences, b.tiles, tops, b.starts, b.lengths, strict=True)
        for sequence, tile, top, left, n in placed:
            rows = slice(top, top + (1 if first_only else n))
            found[int(sequence)] = out[tile, :, rows, left : left + n].clone()
            out[tile, :, rows, left : left + n] = 7.0
        assert bool((out == 7.0).all())
    return [found[i] for i in range(len(lengths))]


@pytest.mark.parametrize("first_only", [False, True])
def test_sequences_take_their_trials_numbers_one_after_the_other(first_only: bool) -> None:
    found = blocks_of(DeviceNoise(KEYS), LENGTHS, TRIALS, first_only)
    at = 0
    for key, count in zip(KEYS, TRIALS, strict=True):
        own = found[at : at + count]
        at += count
        drawn = torch.cat([block.reshape(-1) for block in own])
        rate = 0.5 if key.rate is None else key.rate
        assert torch.equal(drawn, expected(key, len(drawn), rate, "site", 1).to(drawn.dtype))


@pytest.mark.parametrize("first_only", [False, True])
def test_attention_of_a_part_and_in_other_company(first_only: bool) -> None:
    whole = blocks_of(DeviceNoise(KEYS[:1]), LENGTHS, [len(LENGTHS)], first_only)
    before = LENGTHS[:4]
    part = NoiseKey(3, 5, tokens_before=sum(before), squares_before=sum(n * n for n in before))
    lengths = [9, 50, *LENGTHS[4:]]
    found = blocks_of(DeviceNoise([KEYS[1], part]), lengths, [2, len(LENGTHS) - 4], first_only)
    for mine, other in zip(found[2:], whole[4:], strict=True):
        assert torch.equal(mine, other)


def test_each_device_has_its_noise() -> None:
    assert type(noise_on(torch.device("cpu"), KEYS)) is Noise
    assert type(noise_on(torch.device("cuda", 0), KEYS)) is DeviceNoise
