"""Where a cohort stands, on disk: one safetensors file a trial, each with its own checksum, and a manifest.

A snapshot is of all trials of a cohort at one round. Its files have new names; the manifest that lists them is replaced
last, and only then are the files of the snapshot before deleted: after a cut at any moment one whole snapshot is there.
Tensors are the trial's parameters, AdamW's moments and the best weights so far; numbers (steps, results) travel in the
file's header. Data order and dropout need nothing, since they are named by seed and step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fleetune.durable import remove_leftovers, write_bytes, write_json

MANIFEST = "manifest.json"
State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and numbers as JSON."""


def write_all(
    folder: Path,
    states: Mapping[str, State],
    *,
    note: Mapping[str, Any] | None = None,
    keep: Collection[str] = (),
) -> None:
    """Replace the snapshot by these trials' states.

    note: what else belongs to it, as JSON. keep: trials whose state has not changed since the snapshot before.
    """
    before = _manifest(folder)
    number = before["number"] + 1
    files = {ident: f"{ident}.{number}.safetensors" for ident in states}
    for ident, name in files.items():
        write(folder / name, *states[ident])
    files |= {ident: name for ident, name in before["files"].items() if ident in keep}
    write_json(folder / MANIFEST, {"number": number, "files": files, "note": dict(note or {})})
    _remove_others(folder, set(files.values()))


def read_note(folder: Path) -> dict[str, Any]:
    """The note of the snapshot; empty where there is none."""
    return _manifest(folder)["note"]


def read_all(folder: Path) -> dict[str, State]:
    """The states of the snapshot by trial, without those that are damaged."""
    found = {ident: read(folder / name) for ident, name in _manifest(folder)["files"].items()}
    return {ident: state for ident, state in found.items() if state is not None}


def clear(folder: Path) -> None:
    """Delete the snapshot, when nothing is left to go on with."""
    (folder / MANIFEST).unlink(missing_ok=True)
    _remove_others(folder, set())
    remove_leftovers(folder)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest; an empty one where there is none, or where it is damaged: then all starts from its beginning."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        return {
            "number": int(found["number"]),
            "files": {str(k): str(v) for k, v in found["files"].items()},
            "note": dict(found.get("note", {})),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"number": 0, "files": {}, "note": {}}


def _remove_others(folder: Path, keep: set[str]) -> None:
    for path in folder.glob("*.safetensors"):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def write(path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Replace a trial's checkpoint."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    body = json.dumps(numbers, allow_nan=False)
    header = {"numbers": body, "sha256": _digest(contiguous, body)}
    write_bytes(path, safetensors.torch.save(contiguous, metadata=header))


def read(path: Path) -> State | None:
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
