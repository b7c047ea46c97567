"""Where a trial stands, on disk: one safetensors file a trial, with its own checksum, replaced whole.

Tensors are the trial's parameters, AdamW's moments and the best weights so far; numbers (steps, results) travel in the
file's header. Data order and dropout need nothing, since they are named by seed and step.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fleetune.durable import write_bytes


def write(path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Replace a trial's checkpoint."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    body = json.dumps(numbers, allow_nan=False)
    header = {"numbers": body, "sha256": _digest(contiguous, body)}
    write_bytes(path, safetensors.torch.save(contiguous, metadata=header))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A trial's checkpoint; None where there is none, or where it is damaged and has been set aside."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if header["sha256"] != _digest(tensors, header["numbers"]):
            raise ValueError("checksum")
        return tensors, json.loads(header["numbers"])
    except (safetensors.SafetensorError, ValueError, KeyError):
        path.rename(path.with_name(f"{path.name}.damaged"))
        return None


def _digest(tensors: dict[str, Tensor], body: str) -> str:
    found = hashlib.sha256(body.encode())
    for name in sorted(tensors):
        found.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)};".encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()
