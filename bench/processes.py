"""Measuring processes: one side in one process, or k processes of `Trainer` side by side.

Nothing here imports torch: a parent that holds memory or threads would be measured along.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class SideFailed(RuntimeError):
    """A side could not be measured; the message holds the end of what it said."""


def measure(job: dict[str, Any], timeout: float = 3600.0) -> dict[str, Any]:
    """What one side found. Raises SideFailed."""
    if job["side"] == "processes":
        return side_by_side(job, timeout)
    with tempfile.TemporaryDirectory() as folder:
        child = _start(job, Path(folder))
        return _result(child, Path(folder), timeout)


def side_by_side(job: dict[str, Any], timeout: float = 3600.0) -> dict[str, Any]:
    """k processes of `Trainer` (bfloat16, padded to the batch), one trial each, started at once.

    Seconds from the start to the end of the last one; memory is the sum of the processes' own.
    """
    k = job["processes"]
    threads = max(1, (os.cpu_count() or 1) // k)
    with tempfile.TemporaryDirectory() as top:
        folders = [Path(top) / str(i) for i in range(k)]
        children: list[subprocess.Popen[bytes]] = []
        try:
            for i, folder in enumerate(folders):
                folder.mkdir()
                told = {**job, "side": "trainer", "only": i, "wait": True, "threads": threads}
                children.append(_start(told, folder))
            for child, folder in zip(children, folders, strict=True):
                assert child.stdout is not None
                # transformers may print before; what counts is that the line comes.
                while (line := child.stdout.readline()) and line.strip() != b"ready":
                    pass
                if not line:
                    raise SideFailed(_said(folder))
            began = time.perf_counter()
            for child in children:
                assert child.stdin is not None
                child.stdin.write(b"go\n")
                child.stdin.flush()
            found = [_result(c, f, timeout) for c, f in zip(children, folders, strict=True)]
        finally:
            for child in children:
                _end(child)
    # A process ends a moment after its training; its own clock is the better one, the parent's the upper bound.
    seconds = max(f["seconds"] for f in found)
    summed = ("examples", "tokens", "trials", "frozen_operations", "attention_operations")
    memory = [f["pss_mib"] for f in found if f["pss_mib"] is not None]
    return {
        "seconds": seconds,
        "until_all_ended": time.perf_counter() - began,
        "processes": k,
        "threads": threads,
        "dtype": found[0]["dtype"],
        "peak_mib": sum(f["peak_mib"] for f in found),
        "pss_mib": sum(memory) if len(memory) == k else None,
        **{name: sum(f[name] for f in found) for name in summed},
    }


def _start(job: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    (folder / "job.json").write_text(json.dumps(job))
    # Warnings off here, since a peer's warning is not our finding; the hub is never asked for what lies on the disk.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    if job["threads"]:
        environment["OMP_NUM_THREADS"] = str(job["threads"])
    with (folder / "stderr").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.side", str(folder / "job.json"), str(folder / "out.json")],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
        )  # fmt: skip


def _result(child: subprocess.Popen[bytes], folder: Path, timeout: float) -> dict[str, Any]:
    try:
        child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise SideFailed(f"not done after {timeout:.0f} s") from None
    finally:
        _end(child)
    out = folder / "out.json"
    if not out.exists():
        raise SideFailed(f"exit code {child.returncode}: {_said(folder)}")
    return json.loads(out.read_text())


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()


def _said(folder: Path) -> str:
    lines = (folder / "stderr").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
