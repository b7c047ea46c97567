"""The machine's matrix rate, and the limit that follows from it.

Notation: N tokens in one product, D and E the widths of a frozen matrix, L the tokens of one sequence.

Rate: products x W^T as in the forward pass and g W as in the backward, for each different frozen matrix of the backbone, at
N = 512 to 8,192 rows, in bfloat16 and float32. Each is repeated for a while, and the fastest repetition counts; the highest rate
of them all is the machine's. So it is a rate that some product of this backbone really reached here, and no side can do
all of its products faster.

Limit: 4 * T * sum(D * E) operations over the encoder's linear layers, T being the real tokens of the batches (2 for the forward
product, 2 for the gradient of its input; frozen weights have no gradient), at that rate. Attention's own products
(12 * D * sum(L^2) a layer) and all else come on top, so the limit cannot be reached; a side that leaves out products
whose results nobody reads could come nearer than it should.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

ROWS = (512, 2048, 4096, 8192)
ROWS_CUDA = (4096, 16384, 65536)
# Each product is repeated for so long, in bursts; the fastest burst counts.
SECONDS = 0.12
BURST = 0.02


def matrix_shapes(backbone: Any) -> list[tuple[int, int]]:
    """(D, E) of every frozen matrix that all tokens go through, from a backbone's config."""
    from fleetune.backbone.sites import empty_model, site_map

    # Those outside of the layers (a pooler) act on sequences and not on tokens.
    linear = site_map(empty_model(backbone.config)).linear()
    return [(site.d_in, site.d_out) for site in linear if site.layer is not None]


def frozen_operations(tokens: int, shapes: list[tuple[int, int]]) -> float:
    """Operations of the frozen products of a training step, forward and backward."""
    return 4.0 * tokens * sum(d * e for d, e in shapes)


def attention_operations(lengths: Any, width: int, layers: int) -> float:
    """Operations of attention's own products, forward (2 of 2 L^2 D) and backward (4)."""
    return 12.0 * width * layers * float((lengths.astype("float64") ** 2).sum())


def measure(shapes: list[tuple[int, int]], device: str, seconds: float = SECONDS) -> dict[str, Any]:
    """The rates in operations a second: the best of each dtype, and every single product's.

    Returns {"bfloat16": rate, "float32": rate, "products": [{"dtype", "rows", "d", "e", "product", "rate"}]}.
    """
    import torch

    gpu = device.startswith("cuda")
    found: dict[str, Any] = {"products": []}
    for name in ("bfloat16", "float32"):
        dtype = getattr(torch, name)
        best = 0.0
        for d, e in sorted(set(shapes)):
            weight = torch.randn(e, d, device=device).to(dtype)
            for rows in ROWS_CUDA if gpu else ROWS:
                x, g = (torch.randn(rows, n, device=device).to(dtype) for n in (d, e))
                for product, run in (("x W^T", lambda: x @ weight.T), ("g W", lambda: g @ weight)):  # noqa: B023
                    spent = _fastest(run, device, seconds)
                    rate = 2.0 * rows * d * e / spent
                    told = {"dtype": name, "rows": rows, "d": d, "e": e, "product": product, "rate": rate}  # fmt: skip
                    found["products"].append(told)
                    best = max(best, rate)
        found[name] = best
    return found


def _fastest(run: Callable[[], Any], device: str, seconds: float) -> float:
    """Seconds of one call, the mean of the fastest burst."""
    _timed(run, device, 1)  # warms up
    best = _timed(run, device, 1)
    times, began = max(1, int(BURST / max(best, 1e-7))), time.perf_counter()
    while time.perf_counter() - began < seconds:
        best = min(best, _timed(run, device, times) / times)
    return best


def _timed(run: Callable[[], Any], device: str, times: int) -> float:
    """Seconds of so many calls; on a GPU between two events."""
    import torch

    if device.startswith("cuda"):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.perf_counter()
    for _ in range(times):
        run()
    return time.perf_counter() - began
