"""What this machine has, what fleetune needs of it, and what to mend."""

from __future__ import annotations

import os
import shutil
import sys
import time
from importlib import metadata
from typing import Any

import torch

from fleetune import __version__
from fleetune.backbone.load import find_backbone
from fleetune.data.tokens import default_cache_dir
from fleetune.errors import FleetuneError
from fleetune.study.machine import PACKAGES, hardware
from fleetune.study.prepare import resolve_dtype

_LITTLE_DISK = 2 * 2**30


def examine() -> list[dict[str, Any]]:
    """One record a thing: name, what was found, whether it is well, whether it is needed, what to do."""
    return [
        _versions(),
        _machine(),
        _speed(),
        _gpu(),
        _cache(),
        _backbone(),
        _hub(),
    ]


def _found(
    name: str, found: str, ok: bool = True, remedy: str = "", needed: bool = False
) -> dict[str, Any]:
    return {"name": name, "found": found, "ok": ok, "remedy": remedy, "needed": needed}


def _versions() -> dict[str, Any]:
    told = [f"fleetune {__version__}", f"python {sys.version.split()[0]}"]
    return _found("versions", ", ".join(told + [f"{p} {metadata.version(p)}" for p in PACKAGES]))


def _machine() -> dict[str, Any]:
    h = hardware("cpu")
    told = f"{h['processor']}, {h['cores']} cores ({h['threads']} threads), {h['memory_gib']} GiB"
    return _found("machine", told)


def _speed() -> dict[str, Any]:
    """Matrix rates, measured here and now for about a second."""
    rates = {
        name: _rate(dtype)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    told = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items())
    return _found("matrix rate", f"{told}; --dtype auto takes {resolve_dtype('auto')}")


def _rate(dtype: torch.dtype) -> float:
    a, b = torch.ones(1024, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    torch.mm(a, b)
    start, runs = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < 0.4:
        torch.mm(a, b)
        runs += 1
    return 2 * 1024 * 768 * 768 * runs / took / 1e9


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return _found("gpu", "none; training runs on the processor")
    return _found("gpu", torch.cuda.get_device_name(0))


def _cache() -> dict[str, Any]:
    folder = default_cache_dir()
    parent = folder
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    writable = os.access(parent, os.W_OK)
    told = f"{folder}, {free / 2**30:.0f} GiB free"
    if not writable:
        return _found(
            "cache",
            f"{told}, not writable",
            False,
            "set FLEETUNE_CACHE to a folder you can write to",
        )
    return _found(
        "cache", told, free > _LITTLE_DISK, "free some disk space, or set FLEETUNE_CACHE elsewhere"
    )


def _backbone() -> dict[str, Any]:
    try:
        found = find_backbone("minilm")
    except FleetuneError as error:
        return _found("backbone minilm", "missing", False, str(error))
    return _found("backbone minilm", f"weights {found.checksum[:12]}, as published")


def _hub() -> dict[str, Any]:
    """Says what is set and asks nobody: no network call without need."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no token"
    return _found(
        "hub", f"{endpoint}, {'offline' if offline else 'asked when a hub id is used'}, {token}"
    )
