"""The two embedded data sets, `demo-sentiment` and `demo-entailment`.

They lie in the package, data/embedded/NAME/{train,test}.tsv: a header line, tab separated, no
quoting. Their further columns, domain and phenomenon, say how a row was made and are not read here.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np

from fleetune.data.base import Dataset, Split, Task
from fleetune.data.tsv import read_plain
from fleetune.errors import DataError, EnvironmentProblem, SettingsError, did_you_mean

_CITATION = "written for Fleetune; embedded in the package"

DEMOS: dict[str, Task] = {
    "demo-sentiment": Task(
        name="demo-sentiment",
        columns=("text",),
        label_column="label",
        label_names=("negative", "positive"),
        metrics=("accuracy",),
        citation=_CITATION,
    ),
    "demo-entailment": Task(
        name="demo-entailment",
        columns=("premise", "hypothesis"),
        label_column="label",
        label_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        citation=_CITATION,
    ),
}


def load_demo(name: str) -> Dataset:
    """An embedded data set. Raises SettingsError for an unknown name."""
    if name not in DEMOS:
        problem = f'there is no embedded task "{name}"{did_you_mean(name, DEMOS)}'
        raise SettingsError("task", [problem])
    folder = resources.files("fleetune.data") / "embedded" / name
    return read_demo(folder, DEMOS[name])


def read_demo(folder: Path | Traversable, task: Task) -> Dataset:
    """Read train.tsv and test.tsv of a folder in the embedded layout."""
    problems: list[str] = []
    splits: dict[str, Split] = {}
    for name in ("train", "test"):
        file = folder / f"{name}.tsv"
        if not file.is_file():
            raise EnvironmentProblem(
                f"The embedded data set {task.name} lacks {name}.tsv; install the package again."
            )
        splits[name] = _read_split(file, task, problems)
    if problems:
        raise DataError(task.name, problems)
    return Dataset(task, splits.pop("train"), splits, source=f"embedded {task.name}")


def _read_split(file: Path | Traversable, task: Task, problems: list[str]) -> Split:
    table = read_plain(file, ("id", task.label_column, *task.columns), problems)
    numbers = {label: number for number, label in enumerate(task.label_names)}
    ids, labels = table.column("id"), table.column(task.label_column)
    texts = [table.column(name) for name in task.columns]
    seen: set[str] = set()
    for i, (row_id, label) in enumerate(zip(ids, labels, strict=True)):
        if row_id in seen:
            problems.append(f'{table.place(i, "id")}: "{row_id}" stands twice')
        seen.add(row_id)
        if label not in numbers:
            choice = ", ".join(task.label_names)
            problems.append(
                f'{table.place(i, task.label_column)}: "{label}" is not one of {choice}'
            )
        problems.extend(
            f"{table.place(i, name)}: empty text"
            for name, column in zip(task.columns, texts, strict=True)
            if not column[i].strip()
        )
    return Split(
        ids=ids,
        first=texts[0],
        second=texts[1] if len(texts) == 2 else None,
        labels=np.array([numbers.get(label, -1) for label in labels], dtype=np.int64),
    )
