"""Passes that run side by side, each on one thread.

Trials are independent, so two passes can run at once. On a CPU that uses the cores better than the threads within each
operation: those wait for one another at every product, and small operations use one core anyway. It also makes a pass the
same computation on any number of cores.

Not covered: how a round is cut into passes (train.py); devices other than a CPU, which run one pass at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """So many threads for passes; the one that asks does the work itself where there are fewer passes than lanes."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._threads: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results in the order of the items; an exception of one is raised when those before it are done."""
        if self.count == 1 or len(items) < self.count:
            return [function(item) for item in items]
        if self._threads is None:
            self._threads = single_threads(self.count, "fleetune-lane")
        return list(self._threads.map(function, items))


def single_threads(count: int, name: str) -> ThreadPoolExecutor:
    """So many threads, each with one thread within an operation: torch keeps that number for each calling thread apart."""
    return ThreadPoolExecutor(count, name, initializer=torch.set_num_threads, initargs=(1,))
