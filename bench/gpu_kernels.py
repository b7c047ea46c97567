"""What each kernel of a BERT layer takes on a GPU, at a pass of RTE's or SST-2's size: the figures behind their blocks.

A pass of roberta-base's width: 512 sequences of 70 tokens on the average of 8 trials (rte), or 2,048 of 13 of 32 (sst2), half of
the trials owning a low-rank update of rank 16, the other half a bias. Medians by `triton.testing.do_bench`, in microseconds. The
bytes column says what the activations read and written take at the rate of a copy in the same run, no less being possible.

    python -m bench.gpu_kernels
    python -m bench.gpu_kernels --set fleetune.backbone.kernels.attention._KEYS=32    # with another constant of a kernel
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.levers import split, value
from fleetune.backbone import blocks, varlen
from fleetune.backbone.laid import Asked, Drawing, Laid, arrays, laid, site_words
from fleetune.backbone.noise import NoiseKey
from fleetune.backbone.rows import add_sums
from fleetune.cohort.grouped import add_update, add_update_backward
from fleetune.cohort.tables import Owners, Stacked, Table

HEADS, WIDTH, INNER, RANK = 12, 64, 3072, 16
D = HEADS * WIDTH
# Tokens of a sequence on the average, and at most; sequences, trials, and micro-batches of each.
PASSES = {"rte": (70, 256, 512, 8, 4), "sst2": (13, 66, 2048, 32, 4)}


def a_pass(task: str) -> Laid:
    """A pass with lengths drawn from a lognormal distribution, filled up to a multiple of 1,024 rows."""
    mean, longest, count, trials, batches = PASSES[task]
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(mean) - 0.18, 0.6, count).clip(6, longest).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    cuts = np.arange(0, count + 1, count // trials // batches)
    keys = [NoiseKey(number, 0) for number in range(len(cuts) - 1)]
    found = arrays(offsets, cuts[::batches], keys, int(-offsets[-1] % 1024), cuts)
    on = {n: torch.from_numpy(np.ascontiguousarray(v)).cuda() for n, v in found.items()}
    return laid(on, longest, {})


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").bfloat16()


def microseconds(run: Callable[[], Any]) -> float:
    from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

    return 1e3 * do_bench(run, warmup=10, rep=40, return_mode="median")  # type: ignore[no-any-return]


def kernels(where: Laid) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Each kernel by name: how often it moves activations of width D, and a call of it."""
    rows, count, trials = where.tokens, len(where.tokens.trial), len(where.tokens.ends)
    tenth = Drawing(where.keys, where.levels_of([0.1] * len(where.keys)), site_words("bench", 0))
    asked = Asked(where, WIDTH**-0.5, None, False, tenth)
    qkv, into, bias = drawn(count, 3 * D), drawn(count, 3 * D), drawn(trials, 3 * D)
    grad, x, y, inner = drawn(count, D), drawn(count, D), drawn(count, D), drawn(count, INNER)
    owns = torch.arange(trials, device="cuda", dtype=torch.int32) % 2
    halves = [Owners((owns == n).nonzero()[:, 0].int(), (owns == n).int()) for n in (0, 1)]

    def table(*shape: int, half: int = 1) -> Table:
        return Table(
            drawn(trials, *shape), torch.zeros(trials, *shape, device="cuda"), halves[half]
        )

    def by_head(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = tensor.view(count, 3, HEADS, WIDTH).unbind(1)
        return q, k, v

    owned = Stacked(None, table(RANK, D), table(RANK, D))
    out, sums = varlen.forward(*by_head(qkv), asked, bias)
    given = grad.view(out.shape)
    narrow = add_update(y, x, owned, rows, tenth)
    one, wide = drawn(trials, D), drawn(trials, INNER)
    weight = torch.rand(D, device="cuda")
    normed = blocks.residual_norm(x, y, one, weight, one, 1e-5, rows, tenth)
    biases = [table(n, half=0) for n in (3 * D, INNER)]
    weights = [drawn(3 * D, D), drawn(INNER, D)]
    return {
        "copy": (2, x.clone),
        "attention": (4, lambda: varlen.forward(*by_head(qkv), asked, bias)),
        "its gradient": (
            8,
            lambda: varlen.backward(
                *by_head(qkv), out, sums, given, asked, by_head(into), bias
            ),
        ),
        "residual norm": (4, lambda: blocks.residual_norm(x, y, one, weight, one, 1e-5, rows, tenth)),
        "its gradient, norm": (
            4,
            lambda: blocks.residual_norm_backward(grad, *normed[1:], weight, rows, tenth),
        ),
        "gelu": (8, lambda: blocks.gelu(inner, wide, rows)),
        "its gradient, gelu": (12, lambda: blocks.gelu_backward(torch.empty_like(inner), inner, wide, rows)),
        "low-rank update": (1.5, lambda: add_update(qkv[:, :D], x, owned, rows, tenth)),
        "its gradient, update": (
            2.5,
            lambda: add_update_backward(qkv[:, :D], y, x, narrow, owned, rows, tenth),
        ),
        "sums of 3 D": (1.5, lambda: add_sums(qkv, rows, biases[0].into, biases[0].owners.numbers)),
        "sums of the inner width": (
            2,
            lambda: add_sums(inner, rows, biases[1].into, biases[1].owners.numbers),
        ),
        "product, 3 D": (4, lambda: linear(x, weights[0])),
        "product, inner": (5, lambda: linear(x, weights[1])),
        "product added to its sum": (6, lambda: y.addmm_(inner, weights[1])),
    }  # fmt: skip


def main(given: list[str] | None = None) -> int:
    """Print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="MODULE.NAME=VALUE")
    asked = parser.parse_args(given)
    if not torch.cuda.is_available():
        sys.stderr.write("torch sees no GPU here, whose kernels this times; run it on one.\n")
        return 2
    for setting in asked.set:
        key, text = split(setting)
        module, _, attribute = key.rpartition(".")
        setattr(importlib.import_module(module), attribute, value(text))
    print(torch.cuda.get_device_name(), *asked.set)
    for task in PASSES:
        where = a_pass(task)
        print(f"\n{task}: {len(where.tokens.trial)} rows\n{'kernel':26s} {'us':>8s} {'bytes':>8s}")
        unit = 0.0
        for name, (moved, run) in kernels(where).items():
            took = microseconds(run)
            unit = unit or took / moved
            print(f"{name:26s} {took:8.1f} {moved * unit:8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
