"""What memory the machine has left, the most that this process has held, and giving back what it no longer uses.

Not covered: what a cohort needs (memory.py).
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch


def available(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that this process may still take: of the device, or of the machine and of every control group around it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    return min([_machine(root), *_groups(root)])


def _machine(root: Path) -> int:
    try:
        return _kib(root / "proc/meminfo", "MemAvailable")
    except (OSError, ValueError):
        # No Linux, or one before 3.14: nobody says what is free, so half of what there is.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _kib(path: Path, name: str) -> int:
    """A line `name: 123 kB` of a file of the kernel's, in bytes."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} names no {name}")


def _groups(root: Path) -> Iterator[int]:
    """What each control group above this process leaves: version 2, and the memory controller of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount /= "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = mount / path.lstrip("/")
        for folder in (inside, *inside.parents):
            left = _left(folder, *names)
            if left is not None:
                yield left
            if folder == mount:
                break


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """Limit less use, where files that were only read count as free; None where there is no limit."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) >= 1 << 60:
            return None
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        now = int((folder / used).read_text())
    except (OSError, ValueError):
        return None
    return max(int(most) - now + int(stat.get(reclaimable, 0)), 0)


class HighWater:
    """The most memory that was held since this object was made: on a GPU by torch's tensors, else by the whole process.

    Of a process it is the resident memory, the libraries and the backbone included. One at a time: a new one starts the count
    again for all.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.counts = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            # Linux: sets the mark back to what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.counts = False

    @property
    def bytes(self) -> int | None:
        """None where the system does not tell."""
        if not self.counts:
            return None
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return _kib(Path("/proc/self/status"), "VmHWM")


class Returned:
    """Gives the system back what the C library keeps of freed memory: at once, or where the process has grown.

    Each pass of a cohort has another length, so what one has freed seldom fits the next: without this a process of fifteen
    trials grew by 100 MB a round to three times its need (docs/lab-notes.md, "what malloc keeps"). glibc only; others do not
    keep as much, or cannot be told.
    """

    GROWTH = 1.3
    LEAST = 128 << 20
    # Rounds leave more or less as their passes' lengths fall; where they come to need more, the small ones are forgotten.
    REMEMBERED = 8
    # Giving back a gigabyte takes a tenth of a second, and taking it anew a whole one: done every few rounds, a tenth of all
    # time on long rows.
    APART = 16

    def __init__(self) -> None:
        self._rounds = 0
        """Rounds since the last time."""
        self._firsts: deque[int] = deque(maxlen=self.REMEMBERED)
        """Resident bytes after the first round since each of the last times."""

    def now(self) -> None:
        """Give it back."""
        _trim()(0)
        self._rounds = 0

    def if_grown(self) -> None:
        """Between two rounds: give it back where the process holds clearly more than a first round left, at the least.

        At most every `APART` rounds, as long as the machine has as much left as this process holds.
        """
        held = _resident()
        self._rounds += 1
        if self._rounds == 1:
            self._firsts.append(held)
        grown = held > self.GROWTH * min(self._firsts) + self.LEAST
        if grown and (self._rounds > self.APART or available(torch.device("cpu")) < held):
            self.now()


def _resident() -> int:
    """Bytes that this process holds now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@cache
def _trim() -> Callable[[int], Any]:
    """glibc's malloc_trim, or a function that does nothing."""
    try:
        found: Callable[[int], Any] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return lambda _: None
    return found
