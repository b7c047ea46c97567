"""What a user says: which rows, which backbone, which methods with which settings, how to search, how to confirm.

`Settings` is the one form for `train` (fixed settings, no search) and for a study file. A setting of a method may be a
value, or say what to search: the forms are those of the study file, see forms.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PROTOCOLS = ("holdout", "cv", "paper")
TRAIN, SEARCH, CONFIRM = "train", "search", "confirm"
"""The phases that a trial may belong to."""
FIRST_CONFIRM_SEED = 1000
"""Far from the search's seeds, which start at 0: what was chosen on a seed must not be measured on it."""
MOST_TRIALS = 10_000
"""Of one method, in a search or as seeds: more is a slip of the keyboard, and would fill the memory with plans."""
MOST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """One method: its hyperparameters, and training settings of its own."""

    method: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rank_study: bool = False
    """Every rank in `r` is a method of its own, searched and confirmed by itself."""
    reference_rank: int | None = None
    """The rank that the others of a rank study are compared with."""
    name: str | None = None
    """What a study calls it; None: by its method (`names_of`)."""


def names_of(methods: Iterable[tuple[str, str | None]]) -> list[str]:
    """What a study calls its methods, each a method with a name of its own or None: without one by the method, numbered where
    more than one has none."""
    found = list(methods)
    unnamed = [method for method, name in found if name is None]
    numbers = Counter[str]()
    names: list[str] = []
    for method, name in found:
        numbers[method] += name is None
        several = unnamed.count(method) > 1
        names.append(name or (f"{method}-{numbers[method]}" if several else method))
    return names


def ranked(name: str, rank: int) -> str:
    """What a rank study of that name calls one of its ranks."""
    return f"{name}-r{rank}"


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the rows come from: a task by name, or files."""

    task: str | None = None
    data_dir: str | None = None
    file: str | None = None
    test_file: str | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    groups_column: str | None = None
    max_train_samples: int | None = None
    """Train on so many rows at most: a stratified draw, the same for every trial. Test rows are not touched."""
    protocol: str = "holdout"


PLACES = ("file", "test_file", "data_dir")
"""Fields of `DataSettings` that say where rows lie. That is another path in another folder; whether they are the same rows is
said by their checksum."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How settings are searched; the same for every method."""

    trials_per_method: int = 12
    sampler: str = "tpe"
    pruner: str = "halving"
    batch: int | None = None
    """So many settings are proposed at once, and compete with one another; None: see `plan.batch_size`."""
    seed: int = 0
    """The first seed of the search: of its draws, and of its trials."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides the numbers of a run."""

    data: DataSettings
    methods: tuple[MethodSettings, ...]
    seeds: tuple[int, ...]
    """Of the trials that are measured on the test rows."""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    backbone: str = "minilm"
    revision: str | None = None
    dtype: str = "auto"
    max_length: int | None = None
    more_data: tuple[DataSettings, ...] = ()
    """Further tasks of a study."""
    search: SearchSettings | None = None
    phase: str = TRAIN
    """Of those trials: "train" for fixed settings, "confirm" in a study."""
    reference: str | None = None
    """The method that the others of a study are compared with, by the name of its arm (space.py)."""

    report_to: tuple[str, ...] = ()
    """Who else is told (live/writers.py). It decides no number, so a run's study.toml does not hold it."""

    @property
    def all_data(self) -> tuple[DataSettings, ...]:
        return (self.data, *self.more_data)


def as_toml(settings: Settings) -> dict[str, Any]:
    """The settings in the form of a study file; TOML has no null, so what is unset is left out."""
    tables = [{k: v for k, v in asdict(d).items() if v is not None} for d in settings.all_data]
    found: dict[str, Any] = {
        "data": tables[0] if len(tables) == 1 else tables,
        "backbone": {
            "name": settings.backbone,
            "revision": settings.revision,
            "dtype": settings.dtype,
            "max_length": settings.max_length,
        },
        "methods": [_method(m) for m in settings.methods],
    }
    if settings.search is not None:
        found["search"] = asdict(settings.search)
    if settings.phase == TRAIN:
        found["seeds"] = list(settings.seeds)
    else:
        found["confirm"] = {
            "seeds": len(settings.seeds),
            "first_seed": settings.seeds[0],
            "reference": settings.reference,
        }
    return _without_none(found)


def _method(m: MethodSettings) -> dict[str, Any]:
    own = {"rank_study": True, "reference_rank": m.reference_rank} if m.rank_study else {}
    return {"method": m.method, "name": m.name, **own, **m.hyperparameters, **m.training}


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value
