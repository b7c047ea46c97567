"""torch's global generator, lent to other libraries that draw from it and from nothing else."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

_torch: Any = torch
# The generator belongs to the whole process: two threads that seed it at once would draw each other's numbers.
_alone = threading.Lock()


@contextmanager
def drawing(seed: int) -> Generator[None]:
    """Let a block draw from torch's generator for the CPU as `seed` begins it, and put it back as it was.

    Not covered: a thread of the user's own that draws meanwhile.
    """
    with _alone, _torch.random.fork_rng(devices=[]):
        # torch.manual_seed would begin the generators of every GPU anew too, and nobody puts those back.
        torch.default_generator.manual_seed(seed)
        yield
