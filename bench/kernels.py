"""What single operations of a step cost on this processor, on one thread: the figures behind the choices of the engine.

Each line is the least of several repeats, in nanoseconds a number (or GFLOP/s for products). Seconds are those of the
process, so that other work on the machine disturbs them little.

    python -m bench.kernels
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

BF16 = torch.bfloat16


def least(run: Callable[[], object], repeats: int = 15) -> float:
    """The least seconds of the process that a call takes."""
    run()
    found: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def told(name: str, run: Callable[[], object], numbers: int) -> None:
    print(f"  {name:44s} {least(run) * 1e9 / numbers:7.2f} ns a number", flush=True)


def rows() -> None:
    """Softmax and its gradient by the length of the rows."""
    print("softmax and its gradient, bfloat16, by length of a row")
    for length in (13, 20, 32, 64, 73, 96, 128):
        scores = torch.randn(1_200_000 // length**2, length, length).to(BF16)
        found, n = torch.softmax(scores, -1), scores.numel()
        told(f"softmax, rows of {length}", lambda s=scores: torch.softmax(s, -1), n)
        told(
            f"softmax to float32 and back, rows of {length}",
            lambda s=scores: torch.softmax(s, -1, dtype=torch.float32).to(BF16),
            n,
        )
        told(
            f"gradient, rows of {length}",
            lambda f=found: torch._softmax_backward_data(f, f, -1, BF16),
            n,
        )


def masks() -> None:
    """From random bits to a bfloat16 multiplier, in torch and in numpy."""
    print("dropout masks")
    n = 1_200_000
    source = np.random.SFC64(0)
    drawn = np.asarray(source.random_raw(n // 4)).view(np.int16)
    bits, out = torch.from_numpy(drawn), np.empty(n, np.uint16)
    told("16 random bits", lambda: source.random_raw(n // 4), n)
    told("compare, convert, scale in torch", lambda: (bits >= -20_000).to(BF16).mul_(1.25), n)

    def in_numpy() -> None:
        kept = np.greater_equal(drawn, -20_000)
        np.multiply(kept.view(np.uint8), np.uint16(0x3FA0), out=out, dtype=np.uint16)

    told("the same in numpy, on bit patterns", in_numpy, n)


def biases() -> None:
    """A bias added in place to bfloat16 rows."""
    print("adding a bias to bfloat16 rows")
    hidden, bias = torch.randn(1280, 1536).to(BF16), torch.randn(1536)
    narrow = bias.to(BF16)
    told("a float32 bias", lambda: hidden.add_(bias), hidden.numel())
    told("a bfloat16 bias", lambda: hidden.add_(narrow), hidden.numel())


def attention() -> None:
    """Forward of one layer's attention: torch's own kernel, and products with a softmax between."""
    print("attention of 16 sequences of 80 tokens, 12 heads, bfloat16, forward")
    q = torch.randn(16, 12, 80, 32).to(BF16)
    flat = q.view(-1, 80, 32)
    scores = torch.empty(192, 80, 80, dtype=BF16)
    n = scores.numel()
    told(
        "scaled_dot_product_attention", lambda: functional.scaled_dot_product_attention(q, q, q), n
    )

    def plain() -> None:
        torch.baddbmm(scores, flat, flat.transpose(1, 2), beta=0, alpha=0.18, out=scores)
        torch.bmm(torch.softmax(scores, -1, dtype=torch.float32).to(BF16), flat)

    told("two products and a softmax", plain, n)


def low_rank() -> None:
    """The low-rank updates of a cohort at one leaf: trial by trial, and in grouped products over stacked factors."""
    print("low-rank updates, float32, rank 8, width 384, forward")
    for trials, rows in ((16, 220), (4, 1000)):
        x, y = torch.randn(trials * rows, 384), torch.randn(trials * rows, 384)
        down = [torch.randn(8, 384) for _ in range(trials)]
        up = [torch.randn(384, 8) for _ in range(trials)]
        ends = torch.arange(1, trials + 1, dtype=torch.int32) * rows

        def loop(x=x, y=y, down=down, up=up, rows=rows) -> None:  # type: ignore[no-untyped-def]
            for k, (a, b) in enumerate(zip(down, up, strict=True)):
                part = slice(k * rows, (k + 1) * rows)
                y[part].addmm_(x[part] @ a.T, b.T, alpha=2.0)

        def grouped(x=x, y=y, down=down, up=up, ends=ends) -> None:  # type: ignore[no-untyped-def]
            a, b = (torch.stack(factors).transpose(1, 2) for factors in (down, up))
            narrow = functional.grouped_mm(x, a, offs=ends).mul_(2.0)
            y.add_(functional.grouped_mm(narrow, b, offs=ends))

        told(f"{trials} trials of {rows} rows, one after the other", loop, y.numel())
        told(f"{trials} trials of {rows} rows, grouped_mm", grouped, y.numel())


def products() -> None:
    """The matrix rate at MiniLM's shapes."""
    print("linear layers of MiniLM, bfloat16, by rows")
    for tokens in (220, 880, 2500, 4096):
        for d_in, d_out in ((384, 384), (384, 1536), (1536, 384)):
            x, w = torch.randn(tokens, d_in).to(BF16), torch.randn(d_out, d_in).to(BF16)
            seconds = least(lambda x=x, w=w: functional.linear(x, w))
            rate = 2 * tokens * d_in * d_out / seconds / 1e9
            print(f"  {tokens:5d} rows, {d_in:4d} to {d_out:4d}: {rate:7.0f} GFLOP/s", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    for part in (rows, masks, biases, attention, low_rank, products):
        part()


if __name__ == "__main__":
    main()
