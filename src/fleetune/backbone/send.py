"""What the processor has worked out, sent to the device without waiting for it; and which code the device runs."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def by_kernels(x: Tensor) -> bool:
    """Whether this tensor is worked on by the kernels for a GPU (kernels/), and not by their references."""
    return x.is_cuda and has_triton()


@cache
def has_triton() -> bool:
    """Whether the compiler of the kernels is there: torch for CUDA brings it along on Linux, and not on Windows."""
    return find_spec("triton") is not None


def make_current(device: torch.device) -> None:
    """Make a GPU the one of this thread: kernels and graphs go to the current one, wherever their tensors are."""
    if device.type == "cuda" and ":" in str(device):  # "cuda" alone is the current one
        torch.cuda.set_device(device)


def send(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The values on the device; on a CPU the same memory."""
    found = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type == "cpu":
        return found
    # What a graph would copy again and again must not be made here (cohort/graphs.py).
    assert not torch.cuda.is_current_stream_capturing(), "a pass that is captured sends nothing"
    # From ordinary memory a copy waits until the device has done all before it.
    return found.pin_memory().to(device, non_blocking=True)
