"""Where a round's time goes, by kind of operation.

Source: torch.profiler's own time of each operation (without what it calls), on all threads: where passes run side by side, a
round has the time of each of their threads. What no operation of torch accounts for (Python, numpy's random bits, waiting,
the profiler itself) is the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

# First match wins; by the end of an operation's name, without its namespace.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("matrix products", ("mm", "addmm", "addmm_", "linear", "matmul", "mkldnn_linear", "_grouped_mm")),
    ("batched products (attention)", ("bmm", "baddbmm", "bmm_out")),
    ("attention, fused", ("_scaled_dot_product", "_flash_attention", "_efficient_attention")),
    ("softmax", ("softmax", "_softmax", "_softmax_backward_data")),
    ("layer norm", ("layer_norm", "native_layer_norm", "native_layer_norm_backward")),
    ("gelu", ("gelu", "gelu_", "gelu_backward")),
    ("copies and casts", ("copy_", "clone", "contiguous", "cat", "_to_copy", "to", "stack")),
    ("gathers and scatters", ("index_select", "index_copy_", "index_add_", "index", "gather", "embedding")),
    ("sums", ("sum", "mean", "norm", "linalg_vector_norm", "_foreach_norm")),
    ("fills", ("zero_", "fill_", "zeros", "ones", "ones_like", "new_zeros", "empty")),
    ("elementwise", ("mul", "mul_", "add", "add_", "sub", "div", "div_", "ge", "lt", "where", "masked_fill_", "addcmul_",
                     "addcdiv_", "lerp_", "sqrt")),
)  # fmt: skip


def kind_of(name: str) -> str:
    """The kind that an operation of torch counts to."""
    own = name.rpartition("::")[2]
    for kind, names in KINDS:
        if own in names or any(n in own for n in names if n.startswith("_") and len(n) > 10):
            return kind
    return "other operations"


def breakdown(step: Callable[[], Any], times: int, device: str, top: int = 12) -> str:
    """Run a step so many times under the profiler; a table of kinds, and one of single operations."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    began = time.perf_counter()
    every = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, experimental_config=every) as profiler:
        for _ in range(times):
            step()
    spent = time.perf_counter() - began
    threads = 1 if gpu else len({event.thread for event in profiler.events() or ()})
    wall = spent * max(threads, 1)
    field = "self_device_time_total" if gpu else "self_cpu_time_total"
    # (seconds, calls, name); the profiler counts microseconds.
    rows = [
        (getattr(event, field) / 1e6, event.count, event.key) for event in profiler.key_averages()
    ]
    kinds: dict[str, tuple[float, int]] = {}
    for seconds, calls, name in rows:
        held = kinds.get(kind_of(name), (0.0, 0))
        kinds[kind_of(name)] = held[0] + seconds, held[1] + calls
    rest = "idle, or waiting for the processor" if gpu else "outside of torch's operations"
    kinds[rest] = (max(wall - sum(s for s, _, _ in rows), 0.0), 0)
    lines = [f"{'kind':36}  {'ms a round':>10}  {'share':>6}  {'calls':>7}"]
    ordered = [(s, n, name) for name, (s, n) in kinds.items()]
    for seconds, calls, name in [*sorted(ordered, reverse=True), (0.0, 0, ""), *sorted(rows, reverse=True)[:top]]:  # fmt: skip
        lines.append(
            f"{name:36}  {1e3 * seconds / times:10.1f}  {seconds / wall:6.1%}  {calls // times:7d}"
            if name
            else ""
        )
    return "\n".join(lines)
