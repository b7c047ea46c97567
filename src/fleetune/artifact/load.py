"""Read a saved model, trusting nothing: names, shapes, dtypes, values, checksums and labels are checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fleetune.artifact import layout
from fleetune.artifact.layout import ModelRecord
from fleetune.backbone.sites import SiteMap
from fleetune.durable import sha256
from fleetune.errors import DataError, RefusedError, SettingsError
from fleetune.methods.base import LowRank, Method
from fleetune.methods.table import make_method

# Larger than any adapter; safetensors itself caps the header at 100 MB.
_MAX_RECORD_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A saved trial as it lies on disk, checked against itself."""

    folder: Path
    record: ModelRecord
    method: Method
    tensors: Mapping[str, Tensor]


def load_saved(folder: Path) -> SavedModel:
    """Read a trial's folder. SettingsError: it is none; RefusedError: a file is not what was saved; DataError: damaged."""
    record, sums = read_record(folder)
    if layout.CONFIG not in sums or layout.WEIGHTS not in sums:
        raise SettingsError(
            str(folder),
            [
                f"no trial: {layout.RECORD} lists no {layout.WEIGHTS}; give a folder such as RUN/trials/ID"
            ],
        )
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise DataError(str(folder), [f"{name} is missing; copy the whole folder"])
        if path.name in (layout.WEIGHTS, layout.CONFIG) and sha256(path) != expected:
            raise RefusedError(
                f"{path}: changed since it was saved (its sha256 is not the one in {layout.RECORD}); "
                "restore it from a copy"
            )
    return SavedModel(
        folder, record, make_method(record.method, record.hyperparameters), read_weights(folder)
    )


def read_record(folder: Path) -> tuple[ModelRecord, dict[str, str]]:
    """What `fleetune.json` says, and the checksums of the other files."""
    path = folder / layout.RECORD
    if not path.is_file():
        raise SettingsError(
            str(folder),
            [f"no saved model: it has no {layout.RECORD}; give a folder such as RUN/trials/ID"],
        )
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise ValueError("too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        sums = {str(k): str(v) for k, v in found.pop("checksums", {}).items()}
        if found["format"] != layout.FORMAT:
            raise RefusedError(
                f"{path}: written in format {found['format']}, this fleetune reads {layout.FORMAT}; update fleetune"
            )
        return ModelRecord(**{f.name: found[f.name] for f in fields(ModelRecord)}), sums
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(str(path), [f"damaged: {error}; restore it from a copy"]) from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved model under their own names."""
    path = folder / layout.WEIGHTS
    try:
        return {layout.own_name(n): t for n, t in safetensors.torch.load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(str(path), [f"unreadable: {error}; restore it from a copy"]) from None


def check_against(saved: SavedModel, sites: SiteMap) -> tuple[LowRank, ...]:
    """Whether the tensors are exactly those that the method owns on this backbone; returns the low-rank factors."""
    owned = saved.method.ownership(sites)
    shapes = sites.parameters()
    expected = {name: shapes[name] for name in owned.parameters}
    expected |= {
        name: (shapes[f"{name.rpartition('.')[0]}.weight"][0],) for name in owned.zero_biases
    }
    for f in owned.low_rank:
        site = sites[f.site]
        expected[f"{f.site}.lora_A"] = (f.r, site.d_in)
        expected[f"{f.site}.lora_B"] = (site.d_out, f.r)
    problems = [f"{name}: missing" for name in expected if name not in saved.tensors]
    for name, tensor in saved.tensors.items():
        if name not in expected:
            problems.append(
                f"{name}: not a tensor that {saved.record.method} owns on this backbone"
            )
        elif tuple(tensor.shape) != tuple(expected[name]):
            problems.append(
                f"{name}: must have shape {expected[name]}, but has {tuple(tensor.shape)}"
            )
        elif not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            problems.append(f"{name}: must hold finite floating-point numbers")
    if problems:
        raise DataError(str(saved.folder / layout.WEIGHTS), problems)
    return owned.low_rank


def check_backbone(record: ModelRecord, checksum: str, folder: Path) -> None:
    """RefusedError where the backbone at hand is not the one that the model was trained on."""
    if checksum != record.backbone_checksum:
        raise RefusedError(
            f"{folder}: trained on {record.backbone_source} with weights {record.backbone_checksum[:12]}..., "
            f"but the weights found now are {checksum[:12]}...; use the same revision"
        )


def read_json(path: Path) -> Any:
    """A small JSON file of a run. DataError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(str(path), [f"unreadable: {error}"]) from None
