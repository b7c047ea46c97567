"""What training changed inside: how far BitFit moved which bias, and the singular values of LoRA's updates.

Read from the saved adapters with numpy. BitFit's start values come from the backbone's own file, if it is at hand with
the run's checksum; nothing is fetched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.errors import EnvironmentProblem, FleetuneError, unreadable
from fleetune.stats.rank import effective_rank

Tensors = dict[str, NDArray[Any]]
_LAYER = re.compile(r"\.(\d+)\.")
# Updates of so many trials of one rank are read; more change the picture little and take long.
_MOST_TRIALS = 10


def movement(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Mean absolute change of the encoder's biases by layer and place, averaged over BitFit's trials.

    Source: Ben Zaken et al. 2022, figure 2: |b0 - bF| / width. None where no trial of BitFit is done.
    Raises EnvironmentProblem where the backbone is not at hand.
    """
    trials = _reported(facts, "bitfit")[:_MOST_TRIALS]
    if not trials:
        return None
    start = _backbone(facts)
    cells: dict[tuple[int, str], list[float]] = {}
    for trial in trials:
        for name, value in _adapter(folder, trial).items():
            before = _start(start, name)
            if before is None or before.shape != value.shape:
                continue
            layer, role = _place(name)
            change = float(np.abs(value.astype(np.float64) - before).mean())
            cells.setdefault((layer, role), []).append(change)
    if not cells:
        return None
    roles = list(dict.fromkeys(role for _, role in cells))
    return {
        "layers": sorted({layer for layer, _ in cells}),
        "roles": roles,
        "cells": [
            {"layer": layer, "role": role, "change": float(np.mean(values))}
            for (layer, role), values in sorted(cells.items())
        ],
        "trials": len(trials),
    }


def singular_values(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a rank: the singular values of scale * B A over sites and trials, and their effective rank.

    Effective rank: the entropy rank of `stats.rank`, between 1 and r.
    """
    trials = _reported(facts, "lora")
    found: list[dict[str, Any]] = []
    for rank in sorted({int(t["hyperparameters"]["r"]) for t in trials}):
        mine = [t for t in trials if t["hyperparameters"]["r"] == rank][:_MOST_TRIALS]
        rows = np.array([row for t in mine for row in _spectra(folder, t)])
        if rows.size == 0:
            continue
        found.append(
            {
                "r": rank,
                "median": np.median(rows, 0).tolist(),
                "low": np.quantile(rows, 0.1, axis=0).tolist(),
                "high": np.quantile(rows, 0.9, axis=0).tolist(),
                "effective_rank": float(np.mean([effective_rank(row).entropy for row in rows])),
                "updates": len(rows),
                "trials": len(mine),
            }
        )
    return found


def _reported(facts: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The trials of a method behind the estimates."""
    named = {ident for e in facts["estimates"] if e["method"] == method for ident in e["trials"]}
    return [t for t in facts["trials"] if t["id"] in named]


def _spectra(folder: Path, trial: dict[str, Any]) -> Iterator[NDArray[Any]]:
    """The r singular values of each update, largest first; from two small matrices instead of the whole product."""
    own = trial["hyperparameters"]
    scale = own["lora_alpha"] / (math.sqrt(own["r"]) if own.get("use_rslora") else own["r"])
    tensors = _adapter(folder, trial)
    for name, down in tensors.items():
        if not name.endswith(".lora_A"):
            continue
        up = tensors[f"{name.removesuffix('A')}B"].astype(np.float64)
        # B A = Q_B (R_B R_A^T) Q_A^T with orthonormal Q: the same singular values as the small R_B R_A^T.
        small = np.linalg.qr(up)[1] @ np.linalg.qr(down.astype(np.float64).T)[1].T
        yield abs(scale) * np.linalg.svd(small, compute_uv=False)


def _adapter(folder: Path, trial: dict[str, Any]) -> Tensors:
    path = folder / "trials" / trial["id"] / layout.WEIGHTS
    try:
        return {layout.own_name(n): t for n, t in safetensors.numpy.load_file(path).items()}
    except (safetensors.SafetensorError, KeyError) as error:
        raise unreadable(path, error) from None


def _backbone(facts: dict[str, Any]) -> Tensors:
    """The backbone's biases by the names in its file."""
    import torch

    from fleetune.backbone.fetch import find_files
    from fleetune.backbone.weights import checksum, weight_files

    told = facts["study"]["environment"]["backbone"]
    try:
        folder = find_files(told["name"], told["revision"], cached_alone=True).folder
    except FleetuneError:
        # Its own words name folders of this machine, which have no place on a page that is sent on.
        raise EnvironmentProblem("the backbone's own weights are not on this machine") from None
    files = weight_files(folder)
    if not files or checksum(files) != told["checksum"]:
        raise EnvironmentProblem("the backbone at hand is not the one of the run")
    found: Tensors = {}
    for file in files:
        with safetensors.safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                if name.endswith(".bias"):
                    found[name] = opened.get_tensor(name).to(torch.float64).numpy()
    return found


def _start(start: Tensors, name: str) -> NDArray[Any] | None:
    """A bias as the backbone has it; a checkpoint of the bare encoder lacks the first part of the name."""
    inside = _LAYER.search(name) or "embeddings" in name
    if not name.endswith(".bias") or not inside:
        return None
    for candidate in (name, name.partition(".")[2]):
        if candidate in start:
            return start[candidate]
    return None


def _place(name: str) -> tuple[int, str]:
    """(layer counted from 1, what stands behind it); embeddings are layer 0."""
    found = _LAYER.search(name)
    rest = name[found.end() :] if found else name.rpartition("embeddings.")[2]
    parts: Sequence[str] = rest.removesuffix(".bias").split(".")
    return (int(found[1]) + 1 if found else 0), ".".join(parts)
