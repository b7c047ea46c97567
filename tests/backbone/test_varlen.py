"""What a GPU's kernels are held against: attention by a loop, and dropout drawn where it is used.

Whether the kernels give the same is a question for a GPU (tests/gpu).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fleetune.backbone.laid import Asked, Drawing, Laid, arrays, eighths, laid, site_words
from fleetune.backbone.noise import NoiseKey
from fleetune.backbone.philox import word
from fleetune.backbone.rows import add_sums, dropped, multipliers
from fleetune.backbone.varlen import attend
from tests.backbone.test_attention import HEADS, WIDTH, packed, stream_of

LENGTHS, COUNTS = [40, 3, 7, 35, 1, 12], [2, 1, 3]
RATES = [0.1, 0.5, 0.25]


def laid_out(
    lengths: list[int] = LENGTHS, counts: list[int] = COUNTS, seeds: tuple[int, ...] = (3, 4, 5), spare: int = 0
) -> Laid:  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    trials = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    found = arrays(offsets, trials, [NoiseKey(seed, 7) for seed in seeds], spare)
    return laid({n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in found.items()}, 40, {})


def sliced() -> Laid:
    """As `laid_out`, the last trial's rows as two micro-batches."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    keys = [NoiseKey(seed, 7) for seed in (3, 4, 5, 6)]
    found = arrays(offsets, np.asarray([0, 2, 3, 6]), keys, 0, np.asarray([0, 2, 3, 5, 6]))
    return laid({n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in found.items()}, 40, {})


def drawing_of(where: Laid, rates: list[float] = RATES, site: str = "site") -> Drawing:
    return Drawing(where.keys, where.levels_of(rates), site_words(site, 0))


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(1)
    q, k, v = (torch.from_numpy(rng.normal(size=(1, HEADS, sum(LENGTHS), WIDTH))) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("first_only", [False, True])
def test_without_dropout_it_is_the_attention_by_tiles(first_only: bool, window: int | None) -> None:
    q, k, v = drawn()
    asked = Asked(laid_out(), WIDTH**-0.5, window, first_only, None)
    mine = attend(*(x.squeeze(0).transpose(0, 1) for x in (q, k, v)), asked)
    stream = stream_of(LENGTHS, COUNTS, None, first_only)
    tiles, _ = packed(stream, q, k, v, 0.0, sliding_window=window)
    assert_close(mine[None], tiles, rtol=1e-11, atol=1e-12)


def test_probabilities_are_dropped_at_each_trials_rate() -> None:
    """With values of one, a row of the result is the sum of its probabilities times their multipliers."""
    where = laid_out([64] * 60, [20, 20, 20])
    query = torch.zeros(64 * 60, 4, 8, dtype=torch.float64)
    ones = torch.ones_like(query)
    asked = Asked(where, 1.0, None, False, drawing_of(where))
    sums = attend(query, query, ones, asked)[..., 0].split([64 * 20] * 3)
    for rate, own in zip(RATES, sums, strict=True):
        # 5 standard errors; each of 64 * 80 rows of 64 probabilities of 1/64.
        spread = 5 * (rate / (1 - rate) / own.numel() / 64) ** 0.5
        assert float(own.mean()) == pytest.approx(1.0, abs=spread)
        assert float(own.std()) == pytest.approx((rate / (1 - rate) / 64) ** 0.5, rel=0.05)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_trial_drops_the_same_in_other_company(first_only: bool) -> None:
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in drawn())
    where = laid_out()
    whole = attend(q, k, v, Asked(where, 0.5, None, first_only, drawing_of(where)))
    at = sum(LENGTHS[:2])
    for trial, count in ((1, 1), (2, 3)):
        n = sum(LENGTHS[sum(COUNTS[:trial]) :][:count])
        own = laid_out(LENGTHS[sum(COUNTS[:trial]) :][:count], [count], (3 + trial,))
        asked = Asked(own, 0.5, None, first_only, drawing_of(own, [RATES[trial]]))
        alone = attend(*(x[at : at + n] for x in (q, k, v)), asked)
        assert torch.equal(alone, whole[at : at + n])
        at += n


@pytest.mark.parametrize("first_only", [False, True])
def test_micro_batches_of_a_trial_drop_as_trials_would(first_only: bool) -> None:
    """In attention and in activations; the sums of their rows are the trial's all the same."""
    mine, apart = sliced(), laid_out(counts=[2, 1, 2, 1], seeds=(3, 4, 5, 6))
    rates = [0.1, 0.5, 0.25, 0.4]
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in drawn())
    one, other = (
        attend(q, k, v, Asked(where, 0.5, None, first_only, drawing_of(where, rates)))
        for where in (mine, apart)
    )
    assert torch.equal(one, other)
    x = torch.ones(sum(LENGTHS), 24)
    one, other = (multipliers(x, w.tokens, drawing_of(w, rates)) for w in (mine, apart))
    assert torch.equal(one, other)
    assert mine.tokens.ends.tolist() == [43, 50, 98]
    found = torch.zeros(3, x.shape[1])
    add_sums(x, mine.tokens, found, torch.tensor([0, 2], dtype=torch.int32))
    assert_close(found[:, 0], torch.tensor([43.0, 0.0, 48.0]))


# -- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 24, 6])
def test_numbers_are_the_halves_of_philoxs_words(width: int) -> None:
    """Column c of row r takes half c % 2 of word c % 8 // 2 of counter r * ceil(width / 8) + c // 8."""
    where = laid_out()
    drawing = Drawing(where.keys, where.levels_of(RATES), (0, 0))
    x = torch.ones(sum(LENGTHS), width, dtype=torch.float64)
    found = multipliers(x, where.tokens, drawing)
    column = torch.arange(width)
    blocks = int(eighths(np.asarray([width]))[0])
    for row in (0, 5, 45, sum(LENGTHS) - 1):
        trial, place = int(where.tokens.trial[row]), int(where.tokens.place[row])
        number = 4 * (place * blocks + column // 8) + column % 8 // 2
        bits = (word(where.keys[trial], number) >> (16 * (column % 2))) & 0xFFFF
        threshold, scale = (int(drawing.levels.thresholds[trial]), drawing.levels.scales[trial])
        assert torch.equal(found[row], (bits >= threshold) * scale.double())


def test_sites_draw_apart_and_rows_of_a_trial_count_from_its_first() -> None:
    where = laid_out()
    x = torch.ones(sum(LENGTHS), 8)
    one, other = (multipliers(x, where.tokens, drawing_of(where, site=s)) for s in ("a", "b"))
    assert 0.2 < float(((one == 0) != (other == 0)).double().mean()) < 0.5
    alone = laid_out([35, 1, 12], [3], (5,))
    own = multipliers(torch.ones(48, 8), alone.tokens, drawing_of(alone, [0.25], "a"))
    assert torch.equal(own, one[-48:])


def test_gradients_are_dropped_as_the_activations_were() -> None:
    where = laid_out(spare=3)
    rng = np.random.default_rng(0)
    x, direction = (torch.from_numpy(rng.normal(size=(sum(LENGTHS) + 3, 16))) for _ in range(2))
    x.requires_grad_()
    y = dropped(x, where.tokens, drawing_of(where))
    mask = multipliers(x, where.tokens, drawing_of(where)).detach()
    assert torch.equal(y.detach(), x.detach() * mask)
    assert torch.equal(torch.autograd.grad(y, x, direction)[0], direction * mask)
