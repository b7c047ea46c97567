"""What memory a machine has left, from made-up kernels' files, and the most that this process has held."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fleetune.cohort import room
from fleetune.cohort.room import HighWater, Returned, available

GIB = 1 << 30
CPU = torch.device("cpu")


def machine(root: Path, free: int, groups: str, files: dict[str, str]) -> Path:
    """A root with a /proc and control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {free // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {
    "a/memory.max": f"{4 * GIB}",
    "a/memory.current": f"{3 * GIB}",
    "a/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
    "a/b/memory.max": "max",
    "a/b/memory.current": f"{GIB}",
    "a/b/memory.stat": "inactive_file 0\n",
}
V1 = {
    "memory/a/memory.limit_in_bytes": f"{2 * GIB}",
    "memory/a/memory.usage_in_bytes": f"{2 * GIB}",
    "memory/a/memory.stat": f"total_inactive_file {GIB // 4}\n",
    "memory/memory.limit_in_bytes": "9223372036854771712",
    "memory/memory.usage_in_bytes": "0",
    "memory/memory.stat": "",
}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8 * GIB),
        ("0::/\n", {}, 8 * GIB),
        # The limit of the group above holds too; files that were only read can be dropped.
        ("0::/a/b\n", V2, GIB + GIB // 2),
        ("4:memory:/a\n3:cpuset:/\n0::/\n", V1, GIB // 4),
        ("4:cpu,memory:/elsewhere\n", V1, 8 * GIB),
    ],
)
def test_available_is_the_least_of_machine_and_groups(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    root = machine(tmp_path, 8 * GIB, groups, files)
    assert available(CPU, root) == expected


def test_available_here_is_less_than_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available(CPU) < total


def test_a_system_that_does_not_tell_is_taken_to_have_half_free(tmp_path: Path) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available(CPU, tmp_path) == total // 2


def test_the_most_that_was_held_counts_what_was_given_back() -> None:
    size = 256 << 20
    before = HighWater(CPU).bytes
    assert before is not None
    mark = HighWater(CPU)
    held = torch.ones(size, dtype=torch.uint8)
    del held
    after = mark.bytes
    assert after is not None and after - before >= 0.9 * size
    again = HighWater(CPU).bytes
    assert again is not None and after - again >= 0.9 * size


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_between_blocks_that_live_is_given_back() -> None:
    """Blocks too small for maps of their own: every second one is freed, so that the heap cannot shrink by itself."""
    code = """
import re, torch
from pathlib import Path
from fleetune.cohort.room import Returned
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
blocks = [torch.ones(15_000) for _ in range(5_000)]
full = resident()
del blocks[::2]
kept = resident()
Returned().now()
print(full, kept, resident())
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    full, kept, left = map(int, found.stdout.split())
    assert full - kept < 50, "the heap has kept it"
    assert kept - left > 100, "half of 300 MB"


SHORT, AMPLE = 500, 9_000


@pytest.mark.parametrize(
    ("held", "free", "given_back"),
    [
        # 1,480 is beyond 1.3 x 1,000 + 128.
        ([1000, 1100, 1420, 1480], SHORT, [3]),
        # The next first round is larger, and the least of them stays what counts; then it is smaller: 900 allows 1,298.
        ([1000, 1480, 1300, 1430], SHORT, [1, 3]),
        ([1000, 1480, 900, 1290, 1300], SHORT, [1, 4]),
        # More is needed from now on: after eight first rounds that is what counts, and 2,000 allows 2,728.
        ([1000, *[2000] * 8, 2700, 2730], SHORT, [*range(1, 9), 10]),
        # Where memory is no worry, sixteen rounds lie between, and what has not grown stays.
        ([1000, *[2000] * 40], AMPLE, [16, 33]),
        ([1000, *[1400] * 40], AMPLE, []),
    ],
)
def test_growth_between_rounds_is_seen_against_a_first_one(
    held: list[int], free: int, given_back: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not against what is left just after giving back: a round always takes its part again."""
    trims: list[int] = []
    left = iter(held)
    monkeypatch.setattr(room, "_trim", lambda: trims.append)
    monkeypatch.setattr(room, "_resident", lambda: next(left) << 20)
    monkeypatch.setattr(room, "available", lambda _: free << 20)
    returned = Returned()
    found: list[int] = []
    for i in range(len(held)):
        before = len(trims)
        returned.if_grown()
        found += [i] * (len(trims) - before)
    assert found == given_back
