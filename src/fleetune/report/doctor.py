"""What this machine has, what fleetune needs of it, and what to mend."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from typing import Any

import huggingface_hub
import torch

from fleetune import __version__
from fleetune.backbone.hub import is_offline
from fleetune.backbone.load import find_backbone
from fleetune.data.tokens import default_cache_dir
from fleetune.errors import FleetuneError, without_passwords
from fleetune.study.estimate import matrix_rate
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
        _disk(),
        _cache(),
        _backbone(),
        _hub(),
        _extras(),
    ]


def _found(
    name: str, found: str, ok: bool = True, remedy: str = "", needed: bool = False
) -> dict[str, Any]:
    return {"name": name, "found": found, "ok": ok, "remedy": remedy, "needed": needed}


def _versions() -> dict[str, Any]:
    told = [f"fleetune {__version__}", f"python {sys.version.split()[0]}"]
    found = {package: _version(package) for package in PACKAGES}
    told += [f"{package} {version or 'is missing'}" for package, version in found.items()]
    whole = all(version is not None for version in found.values())
    return _found(
        "versions", ", ".join(told), whole, "install fleetune again, with all it needs: pip install --upgrade fleetune", True
    )  # fmt: skip


def _machine() -> dict[str, Any]:
    h = hardware("cpu")
    told = f"{h['processor']}, {h['cores']} cores ({h['threads']} threads), {h['memory_gib']} GiB"
    return _found("machine", told)


def _speed() -> dict[str, Any]:
    """Matrix rates, measured here and now in a moment."""
    told = ", ".join(
        f"{name} {matrix_rate(name, 'cpu') / 1e9:.0f} GFLOP/s" for name in ("float32", "bfloat16")
    )
    return _found("matrix rate", f"{told}; --dtype auto takes {resolve_dtype('auto')}")


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"this torch is built for CUDA {built}, and finds no device"
            if built
            else "this torch is built without CUDA"
        )
        return _found("gpu", f"none ({why}); training runs on the processor")
    free, total = torch.cuda.mem_get_info(0)
    rate = matrix_rate("bfloat16", "cuda")
    told = (
        f"{torch.cuda.get_device_name(0)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA {torch.version.cuda}, "
        f"bfloat16 {rate / 1e12:.0f} TFLOP/s"
    )
    return _found("gpu", f"{told}; use it with --device cuda")


def _disk() -> dict[str, Any]:
    """Of the folder where the command runs, since runs are written below it."""
    free = shutil.disk_usage(".").free
    return _found(
        "disk", f"{free / 2**30:.0f} GiB free here", free > _LITTLE_DISK,
        "free some space, or give --output-dir on another disk",
    )  # fmt: skip


# In quotes, which some shells need around brackets.
_NOT_INSTALLED = "not installed (pip install 'fleetune[{}]')"
# A package that stands for each extra.
_OPTIONAL = {
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "uvicorn": "serve",
    "onnxruntime": "onnx",
}


def _extras() -> dict[str, Any]:
    """Optional packages; nobody needs them until they are named."""
    told = [
        f"{name} {_version(name) or _NOT_INSTALLED.format(extra)}"
        for name, extra in _OPTIONAL.items()
    ]
    return _found("optional", ", ".join(told))


def _version(package: str) -> str | None:
    """None where the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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
    endpoint = without_passwords(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    asked = "offline" if is_offline() else "asked when a hub id is used"
    token = "a token is set" if huggingface_hub.get_token() else "no token"
    return _found("hub", f"{endpoint}, {asked}, {token}")
