"""What training changed inside: how far BitFit moved which bias, and the singular values of LoRA's updates.

Read from the saved adapters with numpy. BitFit's start values come from the backbone's own file, if it is at hand with
the run's checksum; nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.errors import EnvironmentProblem, FleetuneError, unreadable
from fleetune.methods.lora import Lora
from fleetune.stats.rank import effective_rank
from fleetune.study.folder import trial_folder

Tensors = dict[str, NDArray[Any]]
_LAYER = re.compile(r"\.(\d+)\.")
# So many trials of one setting are read; more change the picture little and take long.
_MOST_TRIALS = 10


def movement(
    folder: Path, facts: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Mean absolute change of the encoder's biases by layer and place: one record a task and setting of BitFit.

    tasks: `page_facts.task_facts` of each task. Source: Ben Zaken et al. 2022, figure 2: |b0 - bF| / width. Raises
    EnvironmentProblem where the backbone is not at hand.
    """
    found: list[dict[str, Any]] = []
    start: Tensors | None = None
    for said, trials in _groups(facts, tasks, "bitfit"):
        start = _backbone(facts) if start is None else start
        cells = _changes(folder, trials, start)
        if not cells:
            continue
        told = [
            {"layer": layer, "role": role, "change": float(np.mean(values))}
            for (layer, role), values in sorted(cells.items())
        ]
        roles = list(dict.fromkeys(role for _, role in cells))
        layers = sorted({layer for layer, _ in cells})
        found.append({**said, "layers": layers, "roles": roles, "cells": told})
    return found


def _changes(
    folder: Path, trials: Sequence[dict[str, Any]], start: Tensors
) -> dict[tuple[int, str], list[float]]:
    """By layer and place, what each trial changed there."""
    cells: dict[tuple[int, str], list[float]] = {}
    for trial in trials:
        for name, value in _adapter(folder, trial).items():
            before = _start(start, name)
            if before is None or before.shape != value.shape:
                continue
            change = float(np.abs(value.astype(np.float64) - before).mean())
            cells.setdefault(_place(name), []).append(change)
    return cells


def singular_values(
    folder: Path, facts: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The singular values of scale * B A over sites and trials, and their effective rank: one record a task and setting of
    LoRA, by rank.

    tasks: `page_facts.task_facts` of each task. Effective rank: the entropy rank of `stats.rank`, between 1 and r.
    """
    found: list[dict[str, Any]] = []
    for said, trials in _groups(facts, tasks, "lora"):
        rows = np.array([row for t in trials for row in _spectra(folder, t)])
        if rows.size == 0:
            continue
        found.append(
            {
                **said,
                "r": int(trials[0]["hyperparameters"]["r"]),
                "median": np.median(rows, 0).tolist(),
                "low": np.quantile(rows, 0.1, axis=0).tolist(),
                "high": np.quantile(rows, 0.9, axis=0).tolist(),
                "effective_rank": float(np.mean([effective_rank(row).entropy for row in rows])),
                "updates": len(rows),
            }
        )
    return sorted(found, key=lambda record: record["r"])


def _groups(
    facts: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], method: str
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each setting of a method: which it is and how many of its trainings are read, and those."""
    by_id = {t["id"]: t for t in facts["trials"]}
    for task in tasks:
        for group in task["groups"]:
            if group["estimate"]["method"] != method:
                continue
            idents = group["estimate"]["trials"]
            read = [by_id[ident] for ident in idents[:_MOST_TRIALS]]
            said = {"task": task["task"], "name": group["name"]}
            yield {**said, "trials": len(read), "of": len(idents)}, read


def _spectra(folder: Path, trial: dict[str, Any]) -> Iterator[NDArray[Any]]:
    """The r singular values of each update, largest first; from two small matrices instead of the whole product."""
    scale = Lora(**trial["hyperparameters"]).scale
    tensors = _adapter(folder, trial)
    for name, down in tensors.items():
        if not name.endswith(".lora_A"):
            continue
        up = tensors[f"{name.removesuffix('A')}B"].astype(np.float64)
        # B A = Q_B (R_B R_A^T) Q_A^T with orthonormal Q: the same singular values as the small R_B R_A^T.
        small = np.linalg.qr(up)[1] @ np.linalg.qr(down.astype(np.float64).T)[1].T
        yield abs(scale) * np.linalg.svd(small, compute_uv=False)


def _adapter(folder: Path, trial: dict[str, Any]) -> Tensors:
    path = trial_folder(folder, trial["id"]) / layout.WEIGHTS
    try:
        return {layout.own_name(n): t for n, t in safetensors.numpy.load_file(path).items()}
    except (safetensors.SafetensorError, KeyError) as error:
        raise unreadable(path, error) from None


def _backbone(facts: Mapping[str, Any]) -> Tensors:
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
