"""Read the nine GLUE tasks of glue_table.py from TSV folders, or from the hub.

`tests` is GLUE's labelled dev set, since the labels of GLUE's test set are not public; that set is
never read. Texts are taken as they are, trailing spaces included.

Departures from GLUE: an MRPC folder in MSR's own layout (msr_paraphrase_train.txt and _test.txt) is
tested on MSR's test file, whose labels are public; `Dataset.source` says so.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fleetune.data.base import Dataset, Split
from fleetune.data.formats import decimal
from fleetune.data.glue_table import GLUE, GlueTask
from fleetune.data.hub import read_hub
from fleetune.data.tsv import PlainTable, read_plain
from fleetune.errors import DataError, SettingsError, did_you_mean

__all__ = ["GLUE", "GlueTask", "load_glue"]


def load_glue(name: str, data_dir: Path | None) -> Dataset:
    """A GLUE task, from a folder in GLUE's TSV layout (or its parent), or from the hub.

    Raises SettingsError for an unknown name, DataError with all that is wrong in the files, and
    EnvironmentProblem when the hub is needed and cannot be reached.
    """
    if name not in GLUE:
        problem = f'task "{name}" is not one of GLUE{did_you_mean(name, GLUE)}'
        raise SettingsError("task", [problem])
    row = GLUE[name]
    if data_dir is not None:
        return _read_folder(row, data_dir)
    return read_hub(row.task, row.config, row.hub_splits)


def _read_folder(row: GlueTask, data_dir: Path) -> Dataset:
    folder = _find_folder(row, data_dir)
    files = {"train": "train.tsv", **row.dev_files}
    source = folder.resolve().name
    other = row.other_layout
    if other is not None and not (folder / files["train"]).is_file():
        there = (folder / other["train"]).is_file()
        files = dict(other) if there else files
        source += f" (tested on {files['test']})" if there else ""
    missing = [file for file in files.values() if not (folder / file).is_file()]
    if missing:
        needed = ", ".join(files.values())
        raise DataError(
            str(folder),
            [
                f"{file}: missing; {row.task.name} needs {needed} in GLUE's layout"
                for file in missing
            ],
        )
    problems: list[str] = []
    splits = {name: _read_split(row, folder / file, problems) for name, file in files.items()}
    if problems:
        raise DataError(str(folder), problems)
    return Dataset(row.task, splits.pop("train"), splits, source)


def _find_folder(row: GlueTask, data_dir: Path) -> Path:
    if (data_dir / row.folder).is_dir():
        return data_dir / row.folder
    if not data_dir.is_dir():
        problem = "there is no such folder; give the folder with GLUE's TSV files with --data-dir"
        raise DataError(str(data_dir), [problem])
    return data_dir


def _read_split(row: GlueTask, file: Path, problems: list[str]) -> Split:
    wanted = [*row.texts, row.label]
    if row.index is not None:
        wanted.append(row.index)
    table = read_plain(
        file,
        wanted,
        problems,
        header=row.header,
        short_rows_left_out=row.short_rows_left_out,
    )
    texts = [table.column(name) for name in row.texts]
    return Split(
        ids=_ids(row, table),
        first=texts[0],
        second=texts[1] if len(texts) == 2 else None,
        labels=_targets(row, table, problems)
        if row.task.regression
        else _classes(row, table, problems),
    )


def _ids(row: GlueTask, table: PlainTable) -> tuple[str, ...]:
    if row.index is not None:
        found = table.column(row.index)
        if len(set(found)) == len(found):
            return found
    return tuple(str(position) for position in table.positions)


def _classes(row: GlueTask, table: PlainTable, problems: list[str]) -> np.ndarray:
    numbers = {label: number for number, label in enumerate(row.labels)}
    labels = table.column(row.label)
    choice = ", ".join(row.labels)
    problems.extend(
        f'{table.place(i, row.label)}: "{label}" is not one of {choice}'
        for i, label in enumerate(labels)
        if label not in numbers
    )
    return np.array([numbers.get(label, -1) for label in labels], dtype=np.int64)


def _targets(row: GlueTask, table: PlainTable, problems: list[str]) -> np.ndarray:
    targets = np.zeros(len(table.rows), dtype=np.float64)
    for i, cell in enumerate(table.column(row.label)):
        targets[i] = decimal(cell)
        if not math.isfinite(targets[i]):
            problems.append(f'{table.place(i, row.label)}: "{cell}" is not a number')
    return targets
