"""Passes that run side by side, each on one thread.

Trials are independent, so two passes can run at once. On a CPU that uses the cores better than the threads within each
operation: those wait for one another at every product, and small operations use one core anyway. It also makes a lane's pass
the same computation on any number of cores; fewer passes than lanes run one after another with all threads instead.

Not covered: how a round is cut into passes (passes.py); devices other than a CPU, which run one pass at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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
        """The results in the order of the items; the first exception of one is raised when none of them runs any more."""
        if self.count == 1 or len(items) < self.count:
            return [function(item) for item in items]
        if self._threads is None:
            self._threads = single_threads(self.count, "fleetune-lane")
        asked = [self._threads.submit(function, item) for item in items]
        # Whoever catches an error, that memory did not suffice above all, must find the memory of the others free.
        _, waiting = wait(asked, return_when=FIRST_EXCEPTION)
        for one in waiting:
            one.cancel()
        wait(waiting)
        return [one.result() for one in asked]


def single_threads(count: int, name: str) -> ThreadPoolExecutor:
    """So many threads, begun, each with one thread within an operation; all other threads keep the number that they have."""
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, name, initializer=_by_itself)
    # torch keeps that number for each thread, but the last one that any thread set is what new threads begin with.
    everyone = threading.Barrier(count)
    wait([pool.submit(everyone.wait) for _ in range(count)])
    torch.set_num_threads(own)
    return pool


def _by_itself() -> None:
    torch.set_num_threads(1)
    # At a thread's first operation torch would give it the number that was set last, by whomever; this is that operation.
    torch.get_num_threads()
