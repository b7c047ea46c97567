"""GLUE from the Hugging Face hub: the data set nyu-mll/glue, through `datasets`.

Revision: the hash of the data set was not known when this was written, so the branch "main" is
asked for, and the commit that it stood for is recorded in `Dataset.source`. HF_HUB_OFFLINE=1 is
respected: then only the local cache is read. Not covered: GLUE's test split, whose labels are not
public.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# (pyproject.toml turns these off for packages that ship no types, but `strict` there overrides it)

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetune.data.base import Dataset, Split, Task
from fleetune.errors import DataError, EnvironmentProblem, disk_error, without_passwords

REPOSITORY = "nyu-mll/glue"
REVISION = "main"

_COMMIT = re.compile(r"[0-9a-f]{40}")


def read_hub(task: Task, config: str, hub_splits: Mapping[str, str]) -> Dataset:
    """Read one GLUE task; hub_splits: name of each reported set, and its split on the hub."""
    found = _download(task, config)
    wanted = {"train": "train", **hub_splits}
    missing = [name for name in wanted.values() if name not in found]
    if missing:
        there = ", ".join(found)
        raise DataError(
            REPOSITORY, [f"{config}: there is no split {name}, only {there}" for name in missing]
        )
    source = f"hub {REPOSITORY}@{_commit(found['train']) or REVISION}"
    splits = {name: _split(task, found[part], part) for name, part in wanted.items()}
    return Dataset(task, splits.pop("train"), splits, source)


def _download(task: Task, config: str) -> Any:
    import datasets
    from datasets import config as places
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it tells of each further try, with the whole address
    try:
        return datasets.load_dataset(REPOSITORY, config, revision=REVISION)
    # Whatever goes wrong in there is the network, the hub or its cache, and comes as a dozen
    # classes of four packages.
    except Exception as error:
        if (said := disk_error(error)) is not None:
            raise EnvironmentProblem(
                f"{said.filename}: {said.strerror}; data sets of the hub are kept in {places.HF_DATASETS_CACHE}: make "
                "room there, or set HF_HOME to a folder that can be written"
            ) from error
        lines = str(error).strip().splitlines()
        reason = (
            f"{type(error).__name__}: {without_passwords(lines[0])}"
            if lines
            else type(error).__name__
        )
        raise EnvironmentProblem(
            f"GLUE's {task.name} could not be read from the hub ({REPOSITORY}): {reason}\n"
            "  - connect to the network, or set HF_ENDPOINT, and leave HF_HUB_OFFLINE unset\n"
            "  - or give a folder with GLUE's TSV files: --data-dir DIR\n"
            "  - or use what needs no network: --task demo-sentiment"
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)


def _commit(rows: Any) -> str | None:
    """The commit that was read: in the files' addresses, or in the cache's folder name."""
    info = getattr(rows, "info", None)
    addresses = list(getattr(info, "download_checksums", None) or {})
    cached = [Path(file["filename"]).parent.name for file in getattr(rows, "cache_files", [])]
    for place in addresses + cached:
        commit = _COMMIT.search(place)
        if commit is not None:
            return commit.group()
    return None


def _split(task: Task, rows: Any, part: str) -> Split:
    _check_features(task, rows, part)
    columns: dict[str, list[Any]] = rows[:]
    labels = columns["label"]
    problems = [
        f"{part}, row {i}, column {name}: null"
        for name in (*task.columns, "label")
        for i, value in enumerate(columns[name])
        if value is None
    ]
    if not task.regression:
        problems += [
            f"{part}, row {i}, column label: {label} is no class"
            for i, label in enumerate(labels)
            if label is not None and not 0 <= label < len(task.label_names)
        ]
    if problems:
        raise DataError(REPOSITORY, problems)
    numbers = columns.get("idx") or range(len(labels))
    texts = [tuple(columns[name]) for name in task.columns]
    return Split(
        ids=tuple(str(number) for number in numbers),
        first=texts[0],
        second=texts[1] if len(texts) == 2 else None,
        labels=_decimals(labels) if task.regression else np.array(labels, dtype=np.int64),
    )


def _decimals(targets: list[float]) -> np.ndarray:
    # The hub keeps float32: 3.8 comes as 3.79999995; the shortest decimal is what the TSV says.
    return np.array([float(str(np.float32(target))) for target in targets], dtype=np.float64)


def _check_features(task: Task, rows: Any, part: str) -> None:
    missing = [name for name in (*task.columns, "label") if name not in rows.features]
    if missing:
        there = ", ".join(rows.features)
        problems = [f"{part}, column {name}: missing; the columns are: {there}" for name in missing]
        raise DataError(REPOSITORY, problems)
    names = tuple(getattr(rows.features["label"], "names", ()))
    if names != task.label_names:
        problem = f"the classes are {names}, but must be {task.label_names}"
        raise DataError(REPOSITORY, [f"{part}, column label: {problem}"])
