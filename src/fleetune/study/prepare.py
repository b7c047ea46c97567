"""From settings to trials: which data, which backbone, which trials, with nothing left to defaults.

`Settings` is what a user says and what is stored as study.toml; `Prepared` is what can be trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fleetune.backbone.load import Backbone, find_backbone
from fleetune.backbone.sites import SiteMap, empty_model, site_map
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import TrainingSettings, training_settings
from fleetune.data import metrics
from fleetune.data.base import Dataset, Split
from fleetune.data.load import load_task
from fleetune.data.sources import dataset_from_files
from fleetune.data.splits import holdout, three_way
from fleetune.data.tokens import TokenTable, default_cache_dir, tokenize, tokenizer_fingerprint
from fleetune.errors import DataError, EnvironmentProblem, SettingsError, did_you_mean
from fleetune.methods.base import Method
from fleetune.methods.table import make_method
from fleetune.records import TrialSpec

PROTOCOLS = ("holdout", "paper")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
# Longer rows are rare in sentence tasks and cost attention their square; packed rows cost nothing for being short.
DEFAULT_MAX_LENGTH = 256


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """One method with one setting: hyperparameters of the method, and training settings of its own."""

    method: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])


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
    protocol: str = "holdout"


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides the numbers of a run."""

    data: DataSettings
    methods: tuple[MethodSettings, ...]
    seeds: tuple[int, ...]
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    backbone: str = "minilm"
    revision: str | None = None
    dtype: str = "auto"
    max_length: int | None = None


@dataclass(frozen=True)
class Prepared:
    """Trials ready to train, and what belongs to all of them."""

    settings: Settings
    dataset: Dataset
    backbone: Backbone
    sites: SiteMap
    dtype: str
    max_length: int
    inputs: tuple[TrialInput, ...]
    test_tables: Mapping[str, TokenTable]
    truncated: Mapping[str, int]
    """Rows cut to max_length, by split."""

    @property
    def optimistic(self) -> bool:
        """Whether the epoch is chosen on the reported set."""
        return self.settings.data.protocol == "paper"

    @property
    def num_labels(self) -> int:
        return 1 if self.dataset.task.regression else len(self.dataset.task.label_names)


def prepare(settings: Settings) -> Prepared:
    """Read data and backbone, check everything, make the trials. Raises any FleetuneError."""
    _check(settings)
    dataset = read_dataset(settings.data)
    backbone = find_backbone(settings.backbone, revision=settings.revision)
    max_length = min(settings.max_length or DEFAULT_MAX_LENGTH, backbone.max_length)
    fingerprint = tokenizer_fingerprint(backbone.tokenizer)

    def tokens(split: Split) -> TokenTable:
        return tokenize(split, backbone.tokenizer, max_length, default_cache_dir(), fingerprint)

    train = tokens(dataset.train)
    tests = {name: tokens(split) for name, split in dataset.tests.items()}
    num_labels = 1 if dataset.task.regression else len(dataset.task.label_names)
    sites = site_map(empty_model(backbone.config, num_labels))
    made = [
        (m, make_method(m.method, m.hyperparameters), _training(settings, m, dataset, len(train)))
        for m in settings.methods
    ]
    for _, method, _ in made:
        method.ownership(
            sites
        )  # what cannot be used on this backbone is refused before anything is written
    resolved = replace(
        settings,
        methods=tuple(
            MethodSettings(
                m.method, method.model_dump(mode="json"), training.model_dump(mode="json")
            )
            for m, method, training in made
        ),
        training={},
        dtype=resolve_dtype(settings.dtype),
        max_length=max_length,
        data=replace(
            settings.data,
            task=dataset.task.name,
            text_columns=dataset.task.columns,
            label_column=dataset.task.label_column,
        ),
    )
    inputs = tuple(
        _input(dataset, train, tests, resolved, method, training, ident, seed)
        for ident, method, training in _named(made)
        for seed in settings.seeds
    )
    truncated = {name: t.truncated for name, t in {"train": train, **tests}.items()}
    return Prepared(
        resolved, dataset, backbone, sites, resolved.dtype, max_length, inputs, tests, truncated
    )


def read_dataset(data: DataSettings) -> Dataset:
    """The rows; own data without a test file gives up a fixed tenth for it."""
    if data.file is None:
        assert data.task is not None
        dataset = load_task(data.task, Path(data.data_dir) if data.data_dir else None)
    else:
        test = Path(data.test_file) if data.test_file else None
        dataset = dataset_from_files(
            Path(data.file), test, data.text_columns, data.label_column,
            groups_column=data.groups_column,
        )  # fmt: skip
    if not dataset.tests:
        kept, held = three_way(dataset.train)
        dataset = Dataset(
            dataset.task,
            dataset.train.take(kept),
            {"test": dataset.train.take(held)},
            dataset.source,
        )
    return dataset


def resolve_dtype(name: str) -> str:
    """The compute dtype; "auto": bfloat16 where this machine multiplies it in hardware, else float32."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    cpu: Any = torch.cpu
    fast = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def check_compute(dtype: str | None, device: str) -> None:
    """SettingsError for a dtype or device that there is not; EnvironmentProblem for one that this machine lacks."""
    if dtype is not None and dtype not in ("auto", *DTYPES):
        raise SettingsError(
            "settings", [f'dtype "{dtype}" is not known{did_you_mean(dtype, ("auto", *DTYPES))}']
        )
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise SettingsError(
            "settings", [f'device "{device}" is not known; give cpu, cuda or cuda:N']
        )
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"device {device}: this machine has {torch.cuda.device_count()} CUDA devices; give --device cpu"
        )


def as_toml(settings: Settings) -> dict[str, Any]:
    """The resolved settings in the form of a study file; TOML has no null, so what is unset is left out."""
    data = {k: v for k, v in asdict(settings.data).items() if v is not None}
    return _without_none(
        {
            "data": data,
            "backbone": {
                "name": settings.backbone,
                "revision": settings.revision,
                "dtype": settings.dtype,
                "max_length": settings.max_length,
            },
            "methods": [
                {"method": m.method, **m.hyperparameters, **m.training} for m in settings.methods
            ],
            "seeds": list(settings.seeds),
        }
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value


def _check(settings: Settings) -> None:
    problems: list[str] = []
    data = settings.data
    if (data.task is None) == (data.file is None):
        problems.append(
            "give either a task (--task rte) or a file (--data reviews.csv), and not both"
        )
    if data.protocol not in PROTOCOLS:
        problems.append(
            f'protocol "{data.protocol}" is not known{did_you_mean(data.protocol, PROTOCOLS)}'
        )
    if settings.dtype not in ("auto", *DTYPES):
        problems.append(
            f'dtype "{settings.dtype}" is not known{did_you_mean(settings.dtype, DTYPES)}'
        )
    if not settings.methods:
        problems.append("at least one method must be named")
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        problems.append(
            f"seeds must be different numbers, at least one; got {list(settings.seeds)}"
        )
    if any(seed < 0 for seed in settings.seeds):
        problems.append(f"`seed >= 0` must hold, but got {min(settings.seeds)}")
    if settings.max_length is not None and settings.max_length < 4:
        problems.append(f"`max_length >= 4` must hold, but got {settings.max_length}")
    if problems:
        raise SettingsError("settings", problems)


def _training(
    settings: Settings, method: MethodSettings, dataset: Dataset, rows: int
) -> TrainingSettings:
    from fleetune.methods.table import method_class

    task = dataset.task
    values = {**settings.training, **method.training}
    if values.get("learning_rate") is None:
        values["learning_rate"] = method_class(method.method).default_learning_rate
    metric = values.get("metric_for_best_model") or task.main_metric
    metric = metric.removeprefix("eval_")
    known = ("loss", *task.metrics)
    if metric not in known:
        raise SettingsError(
            "training",
            [f'metric_for_best_model: {task.name} has no "{metric}"{did_you_mean(metric, known)}'],
        )
    values["metric_for_best_model"] = metric
    if values.get("greater_is_better") is None:
        values["greater_is_better"] = metrics.higher_is_better(metric)
    checked = training_settings(values)
    if checked.warmup(rows) > checked.total_steps(rows):
        raise SettingsError(
            "training",
            [
                f"warmup_steps={checked.warmup(rows)} is more than the {checked.total_steps(rows)} steps of the whole "
                "training; lower it, or give a share below 1"
            ],
        )
    return checked


def _named(
    made: list[tuple[MethodSettings, Method, TrainingSettings]],
) -> list[tuple[str, Method, TrainingSettings]]:
    """Each setting with a short name: the method's, numbered where a method stands more than once."""
    names = [m.method for m, _, _ in made]
    named: list[tuple[str, Method, TrainingSettings]] = []
    for i, (m, method, training) in enumerate(made):
        number = names[: i + 1].count(m.method)
        own = m.method if names.count(m.method) == 1 else f"{m.method}-{number}"
        named.append((own, method, training))
    return named


def _input(
    dataset: Dataset,
    train: TokenTable,
    tests: Mapping[str, TokenTable],
    settings: Settings,
    method: Method,
    training: TrainingSettings,
    ident: str,
    seed: int,
) -> TrialInput:
    task, labels = dataset.task, dataset.train.labels
    assert labels is not None
    if settings.data.protocol == "paper":
        name, split = next(iter(dataset.tests.items()))
        assert split.labels is not None
        rows = Rows(train, np.arange(len(train)), labels)
        selection = Rows(tests[name], np.arange(len(split)), split.labels)
    else:
        kept, held = holdout(dataset.train, task.regression, seed)
        rows, selection = Rows(train, kept, labels), Rows(train, held, labels)
    if len(rows) < 1 or len(selection) < 1:
        raise DataError(dataset.source, ["too few rows to hold any out; at least 10 are needed"])
    assert training.metric_for_best_model is not None
    return TrialInput(
        spec=TrialSpec(
            id=f"{ident}-s{seed}",
            task=task.name,
            method=method.name,
            seed=seed,
            hyperparameters=method.model_dump(mode="json"),
            training=training.model_dump(mode="json"),
        ),
        method=method,
        settings=training,
        train=rows,
        selection=selection,
        metrics=task.metrics,
        best_metric=training.metric_for_best_model,
        higher_is_better=bool(training.greater_is_better),
        regression=task.regression,
    )


def total_examples(inputs: tuple[TrialInput, ...]) -> int:
    """Training examples of all trials and epochs together."""
    return sum(math.ceil(_epochs(i) * len(i.train)) for i in inputs)


def _epochs(given: TrialInput) -> float:
    steps = given.settings.total_steps(len(given.train))
    return steps / given.settings.steps_per_epoch(len(given.train))
