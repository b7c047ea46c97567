"""Settings without a search: what `fleetune train` and `fleetune.train` make of what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

from fleetune.data.load import TASK_NAMES
from fleetune.errors import SettingsError, did_you_mean
from fleetune.study.settings import MOST_TRIALS, DataSettings, MethodSettings, Settings


def fixed_settings(
    data: DataSettings,
    methods: Sequence[MethodSettings],
    *,
    seeds: int | Sequence[int],
    seed: int,
    training: Mapping[str, Any],
    **encoder: Any,
) -> Settings:
    """One setting of each method. seeds: the seeds themselves, or how many from `seed` on. encoder: fields of `Settings`.

    SettingsError where a method is named twice, there is no seed, or something about the data would change nothing.
    """
    if problems := misplaced(data, columns=True):
        raise SettingsError("data", problems)
    names = [m.name or m.method for m in methods]
    if len(set(names)) != len(names):
        raise SettingsError(
            "methods", [f"a method may be named once, but got {', '.join(names)}; use a study"]
        )
    return Settings(
        data=data, methods=tuple(methods), seeds=_seeds(seeds, seed), training=training, **encoder
    )


def _seeds(seeds: int | Iterable[int], first: int) -> tuple[int, ...]:
    """The seeds themselves, or so many from the first on; numpy's whole numbers become Python's."""
    try:
        if isinstance(seeds, Iterable):
            return tuple(index(seed) for seed in seeds)
        count, first = index(seeds), index(first)
    except TypeError:
        rule = "must be a whole number or a list of them, and seed a whole number"
        raise SettingsError("seeds", [f"{rule}, but got {seeds!r} and {first!r}"]) from None
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
    given = {"--test-data": data.test_file, "--groups-column": data.groups_column}
    if columns:
        given |= {"--text-column": data.text_columns, "--label-column": data.label_column}
    told = f"is for own rows (--data), and task {data.task} has its own test rows and columns"
    return [f"{flag} {told}; leave one out" for flag, value in given.items() if value]


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
