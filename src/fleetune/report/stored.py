"""What a run keeps beside its journal, read as carefully as a stranger's: study.toml, environment.json, predictions.parquet.

Files that were changed by hand, or made to do harm, end in a DataError that names them. Not covered: the journal
(study/journal.py), and a model's own files (artifact/load.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fleetune.artifact.load import read_json
from fleetune.data.parquet import check_promised
from fleetune.durable import read_file, sha256
from fleetune.errors import DataError, FleetuneError, unreadable
from fleetune.study.folder import ENVIRONMENT, STUDY

_RESTORE = "restore it from a copy"
# The tables of environment.json, and what of each is read (study/machine.py writes them).
_ENVIRONMENT = {
    "packages": (),
    "machine": ("processor", "cores"),
    "data": ("task", "source", "rows"),
    "backbone": ("name", "source", "checksum"),
}


def read_settings(folder: Path) -> dict[str, Any]:
    """study.toml of a run."""
    path = folder / STUDY
    try:
        found = tomllib.loads(read_file(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from None
    tables = found.get("data")
    tables = tables if isinstance(tables, list) else [tables]
    problems = [
        "[data]: must name task and protocol of each table"
        for table in tables
        if not isinstance(table, dict)
        or not all(isinstance(table.get(key), str) for key in ("task", "protocol"))
    ]
    backbone = found.get("backbone")
    if not isinstance(backbone, dict) or not isinstance(backbone.get("name"), str):
        problems.append("[backbone]: must have a name")
    methods = found.get("methods", [])
    if not isinstance(methods, list) or not all(isinstance(m, dict) for m in methods):
        problems.append("[[methods]]: must be tables")
    if problems or not tables:
        raise DataError(str(path), [f"{p}; {_RESTORE}" for p in problems or ["[data]: is empty"]])
    return found


def read_environment(folder: Path) -> dict[str, Any]:
    """environment.json of a run."""
    path = folder / ENVIRONMENT
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(found.get(p), dict) for p in _ENVIRONMENT):
        raise DataError(
            str(path), [f"must hold tables named {', '.join(_ENVIRONMENT)}; {_RESTORE}"]
        )
    problems = [
        f"{part}: must have {', '.join(keys)}; {_RESTORE}"
        for part, keys in _ENVIRONMENT.items()
        if not found[part].keys() >= set(keys)
    ]
    if problems:
        raise DataError(str(path), problems)
    return found


class Predictions(NamedTuple):
    """What a trial said of the rows of one test set."""

    ids: list[str]
    labels: NDArray[Any]
    """[n]: classes, or targets of a regression."""
    logits: NDArray[Any]
    """[n, C]"""


def read_predictions(path: Path) -> dict[str, Predictions]:
    """predictions.parquet of a trial by test set, the main one first; empty where there were no rows."""
    try:
        content = pa.BufferReader(read_file(path))
        with pq.ParquetFile(content, page_checksum_verification=True) as file:
            check_promised(path, file.metadata, 1)
            table = file.read()
        table.validate(full=True)
        found = table.to_pydict()
        labels = np.asarray(found["label"])
        logits = np.asarray(found["logits"], dtype=np.float64)
        finite = np.isfinite(labels).all() and np.isfinite(logits).all()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(str(path), [f"unreadable: {said}; {_RESTORE}"]) from None
    classes = logits.shape[1] if logits.ndim == 2 else 0
    whole = classes <= 1 or bool(
        ((labels == labels.round()) & (labels >= 0) & (labels < classes)).all()
    )
    texts = all(isinstance(v, str) for name in ("split", "id") for v in found.get(name, [None]))
    if len(table) and not (texts and whole and classes and finite):
        problem = (
            "must hold split, id, label and as many finite logits as there are labels in every row"
        )
        raise DataError(str(path), [f"{problem}; {_RESTORE}"])
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(found["split"]):
        rows.setdefault(name, []).append(i)
    return {
        name: Predictions([found["id"][i] for i in own], labels[own], logits[own])
        for name, own in rows.items()
    }


def is_of_another_run(path: Path, checksum: str | None) -> bool:
    """Whether a trial's file is not the one that the journal knows; checksum: None in runs of an older version."""
    return checksum not in (None, sha256(path))


@contextmanager
def damage_told(folder: Path) -> Generator[None]:
    """DataError for what only shows when the parts of a run are put together: a trial of no epochs, a set nobody saved."""
    try:
        yield
    except FleetuneError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
            StopIteration) as error:  # fmt: skip
        problem = (
            f"its files do not fit together ({type(error).__name__}: {error}); restore the run from a copy; if nobody "
            "changed them, please report this"
        )
        raise DataError(str(folder), [problem]) from error
