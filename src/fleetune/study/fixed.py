"""Settings without a search: what `fleetune train` and `fleetune.train` make of what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import index
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleetune.config import explain
from fleetune.data.base import Task
from fleetune.data.demo import DEMOS
from fleetune.data.load import TASK_NAMES
from fleetune.errors import SettingsError, did_you_mean
from fleetune.study.folder import has_begun
from fleetune.study.settings import MOST_TRIALS, DataSettings, MethodSettings, Settings
from fleetune.study.space import arms_of
from fleetune.study.tables import BackboneTable, DataTable
from fleetune.study.together import one_metric

FIRST_SEED = 42


def fixed_settings(
    data: DataSettings,
    methods: Sequence[MethodSettings],
    *,
    seeds: int | Sequence[int],
    seed: int | None,
    training: Mapping[str, Any],
    output_dir: Path | None = None,
    **encoder: Any,
) -> Settings:
    """One setting of each method. encoder: fields of `Settings`.

    seeds: the seeds themselves, or how many from `seed` on, by default 42. SettingsError where a method is named twice, there is
    no seed, methods are chosen by different metrics, or something about data or seeds would change nothing. output_dir: where
    a run of these has begun, it goes on with the metrics that it has.
    """
    if problems := _of_other_types(data, encoder):
        raise SettingsError("settings", problems)
    if problems := misplaced(data, columns=True):
        raise SettingsError("data", problems)
    names = [m.name or m.method for m in methods]
    if len(set(names)) != len(names):
        raise SettingsError(
            "methods", [f"a method may be named once, but got {', '.join(names)}; use a study"]
        )
    found = Settings(
        data=data, methods=tuple(methods), seeds=_seeds(seeds, seed), training=training, **encoder
    )
    begun = output_dir is not None and has_begun(output_dir)
    if not begun and (problems := one_metric(arms_of(found.methods, training))):
        raise SettingsError("methods", [p.removeprefix("methods: ") for p in problems])
    return found


def _of_other_types(data: DataSettings, encoder: Mapping[str, Any]) -> list[str]:
    """What a Python caller gave that is no text or number where one is asked for; rules on values are prepare.py's."""
    columns = data.text_columns
    rows = asdict(data) | {"text_columns": None if columns is None else list(columns)}
    told = {"name" if key == "backbone" else key: value for key, value in encoder.items()}
    problems: list[str] = []
    for table, values in ((DataTable, rows), (BackboneTable, told)):
        try:
            table.model_validate(values)
        except ValidationError as error:
            wrong = {
                str(e["loc"][0])
                for e in error.errors()
                if e["type"].endswith("_type") or not isinstance(e["input"], str | int)
            }
            problems += [p for p in explain(error, table) if p.split(".")[0].split(":")[0] in wrong]
    return problems


def _seeds(seeds: int | Iterable[int], first: int | None) -> tuple[int, ...]:
    """The seeds themselves, or so many from the first on; numpy's whole numbers become Python's."""
    try:
        if isinstance(seeds, Iterable):
            if first is not None:
                told = f"is the first of so many, and seeds names each of them; leave seed={first!r} out"
                raise SettingsError("seed", [told])
            return tuple(index(seed) for seed in seeds)
        count, first = index(seeds), FIRST_SEED if first is None else index(first)
    except TypeError:
        rule = "must be a whole number or a list of them, and seed a whole number"
        of_first = "" if first is None else f" and seed={first!r}"
        raise SettingsError("seeds", [f"{rule}, but got {seeds!r}{of_first}"]) from None
    if not 1 <= count <= MOST_TRIALS:
        rule = f"`seeds {'>= 1' if count < 1 else f'<= {MOST_TRIALS}'}` must hold"
        raise SettingsError("seeds", [f"{rule}, but got {count}"])
    return tuple(range(first, first + count))


def misplaced(data: DataSettings, *, columns: bool = False) -> list[str]:
    """What is given for the other source of rows, and would change nothing; columns: of text and label too.

    A resolved study says the columns of a named task, so they can only be judged as they were given.
    """
    known = data.task in TASK_NAMES
    if data.file is not None:
        if data.data_dir is None or known:  # both sources: that is said by itself
            return []
        return [
            "--data-dir is for a named task (--task), and the rows come from a file; leave one out"
        ]
    if data.task is None:
        return []
    if data.task in DEMOS and data.data_dir is not None:
        return [f"--data-dir is for GLUE's tasks, and {data.task} is embedded; leave it out"]
    given = {"--test-data": data.test_file, "--groups-column": data.groups_column}
    if columns:
        given |= {"--text-column": data.text_columns, "--label-column": data.label_column}
    told = f"is for own rows (--data), and task {data.task} has its own test rows and columns"
    return [f"{flag} {told}; leave one out" for flag, value in given.items() if value]


def check_columns(data: DataSettings, task: Task) -> None:
    """SettingsError where a named task is given other columns than it has; a stored study says its own."""
    given = {"text_columns": data.text_columns, "label_column": data.label_column}
    own = {"text_columns": task.columns, "label_column": task.label_column}
    if problems := [
        f"{key}: is for own rows, and task {task.name} has its own columns; leave it out"
        for key, value in given.items()
        if value is not None and value != own[key]
    ]:
        raise SettingsError("data", problems)


def task_or_file(name: str) -> tuple[str | None, str | None]:
    """(task, None) for a task's name, else (None, file). SettingsError for what looks like neither."""
    if name in TASK_NAMES:
        return name, None
    path = Path(name)
    if not path.suffix and not path.exists():
        raise SettingsError(
            "data", [f'"{name}" is neither a file nor a task{did_you_mean(name, TASK_NAMES)}']
        )
    return None, name
