"""Attention over packed sequences by torch's own kernel, as on a GPU: what is asked of it, with a loop in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.testing import assert_close

from fleetune.backbone import attention
from fleetune.cohort.engine import Engine
from fleetune.data.packing import Packed
from tests.backbone.test_attention import HEADS, WIDTH, noise_of, packed, stream_of
from tests.tiny import tiny_model

LENGTHS, TRIALS = [40, 3, 7, 35, 1, 12], [2, 4]


def loop(
    query: Tensor, key: Tensor, value: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int
) -> Tensor:  # fmt: skip
    """torch.nn.attention.varlen.varlen_attn, sequence by sequence."""
    assert ends_q.dtype == ends_k.dtype == torch.int32
    asked, seen = ends_q.tolist(), ends_k.tolist()
    assert most_q == max(np.diff(asked)) and most_k == max(np.diff(seen))
    out = torch.empty_like(query)
    for i in range(len(asked) - 1):
        q, k, v = (
            query[asked[i] : asked[i + 1]],
            key[seen[i] : seen[i + 1]],
            value[seen[i] : seen[i + 1]],
        )
        weights = torch.einsum("qhd,khd->hqk", q, k) * query.shape[-1] ** -0.5
        out[asked[i] : asked[i + 1]] = torch.einsum("hqk,khd->qhd", weights.softmax(-1), v)
    return out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """As on a GPU; the scales that the models ask for."""
    found: list[float] = []

    def suits(query: Tensor, scale: float) -> bool:
        found.append(scale)
        return scale == query.shape[-1] ** -0.5 and not query.requires_grad

    monkeypatch.setattr(attention, "flash_suits", suits)
    monkeypatch.setattr(varlen, "varlen_attn", loop)
    return found


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(1)
    q, k, v = (torch.from_numpy(rng.normal(size=(1, HEADS, sum(LENGTHS), WIDTH))) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("first_only", [False, True])
def test_it_is_the_attention_by_tiles(first_only: bool, asked: list[float]) -> None:
    mine, _ = packed(stream_of(LENGTHS, TRIALS, None, first_only), *drawn(), 0.0)
    assert asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "flash_suits", lambda *_: False)
        tiles, _ = packed(stream_of(LENGTHS, TRIALS, None, first_only), *drawn(), 0.0)
    assert_close(mine, tiles, rtol=1e-11, atol=1e-12)


def test_dropout_and_windows_are_for_the_tiles(
    asked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> Tensor:
        raise AssertionError("asked for what it cannot do")

    monkeypatch.setattr(varlen, "varlen_attn", refused)
    packed(stream_of(LENGTHS, TRIALS, noise_of([None, None])), *drawn(), 0.1)
    packed(stream_of(LENGTHS, TRIALS, None), *drawn(), 0.0, sliding_window=4)
    packed(stream_of(LENGTHS, TRIALS, None), *drawn(), 0.0, scaling=0.3)


def test_a_cpu_has_none() -> None:
    assert not attention.flash_suits(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), 8**-0.5)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "modernbert", "xlm-roberta"])
def test_a_whole_encoder_sees_the_same(family: str, asked: list[float]) -> None:
    """Whatever of it a family's layers ask for: windows and tables of positions stay with the tiles."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 9)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, 60, offsets[-1])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    stream = Packed(ids, places, None, offsets, np.asarray([0, 4, 9]))
    engine = Engine(tiny_model(family).double(), dtype=torch.float64)
    owned = [engine.owned(method, 0) for method in _heads()]
    with torch.inference_mode():
        mine = engine.logits(owned, stream, None)
        assert asked or family == "mpnet"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "flash_suits", lambda *_: False)
            tiles = engine.logits(owned, stream, None)
    assert_close(mine, tiles, rtol=1e-9, atol=1e-10)


def _heads() -> list[object]:
    from fleetune.methods.table import make_method

    return [make_method("head", {}), make_method("head", {})]
