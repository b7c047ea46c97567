"""From settings to what can be trained: rows, tokens, backbone, arms, with nothing left to defaults.

`Settings` (settings.py) is what a user says; `Prepared` is what can be trained, and its `settings` are what study.toml
stores. The test rows of a task lie in `PreparedTask.dataset`, apart from `PreparedTask.rows`, which is all that search sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fleetune.backbone.load import Backbone, find_backbone
from fleetune.backbone.sites import SiteMap, empty_model, site_map
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.data.base import Dataset, Split
from fleetune.data.load import TASK_NAMES, load_task
from fleetune.data.sources import dataset_from_files
from fleetune.data.splits import subset, three_way
from fleetune.data.tokens import TokenTable, default_cache_dir, tokenize, tokenizer_fingerprint
from fleetune.errors import DataError, EnvironmentProblem, SettingsError, did_you_mean
from fleetune.study.fixed import check_columns, misplaced
from fleetune.study.folder import recorded_commit
from fleetune.study.rows import TaskRows, settle, trial_input
from fleetune.study.settings import MOST_SEED, PROTOCOLS, TRAIN, Settings
from fleetune.study.settings import DataSettings as DataSettings
from fleetune.study.settings import MethodSettings as MethodSettings
from fleetune.study.settings import as_toml as as_toml
from fleetune.study.space import Arm, arms_of

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
# Longer rows are rare in sentence tasks and cost attention their square; packed rows cost nothing for being short.
DEFAULT_MAX_LENGTH = 256


@dataclass(frozen=True, eq=False)
class PreparedTask:
    """One task of a run."""

    rows: TaskRows
    """What training and search see."""
    dataset: Dataset
    """With its test sets, which only `seal.Seal` hands out."""
    test_tables: Mapping[str, TokenTable]
    sites: SiteMap
    truncated: Mapping[str, int]
    """Rows cut to max_length, by split."""


@dataclass(frozen=True)
class Prepared:
    """All that a run needs to train."""

    settings: Settings
    """Resolved: nothing left to defaults."""
    backbone: Backbone
    dtype: str
    max_length: int
    tasks: tuple[PreparedTask, ...]
    arms: tuple[Arm, ...]
    inputs: tuple[TrialInput, ...]
    """The trials, where they are known before anything was searched: those of `train`."""

    @property
    def optimistic(self) -> bool:
        """Whether the epoch is chosen on the reported set."""
        return self.settings.data.protocol == "paper"

    @property
    def dataset(self) -> Dataset:
        """Of the first task."""
        return self.tasks[0].dataset

    @property
    def test_tables(self) -> Mapping[str, TokenTable]:
        """Of the first task."""
        return self.tasks[0].test_tables

    @property
    def num_labels(self) -> int:
        """Of the first task."""
        return self.dataset.task.num_labels


def prepare(
    settings: Settings, *, cache: bool = True, device: str = "cpu", run: Path | None = None
) -> Prepared:
    """Read data and backbone, check everything. Raises any FleetuneError.

    cache: whether tokens may be kept for the next time; False writes nothing at all. device: where it is to run, which decides
    what dtype "auto" is. run: the folder that it is to run in; a run that has begun goes on with the commit of
    its backbone.
    """
    _check(settings)
    arms = arms_of(settings.methods, settings.training)
    if settings.search is None and (searched := [a.name for a in arms if a.searched]):
        raise SettingsError(
            "settings",
            [
                f"{', '.join(searched)}: a setting with several values is searched; use fleetune study"
            ],
        )
    datasets = [read_dataset(data) for data in settings.all_data]
    names = [d.task.name for d in datasets]
    if len(set(names)) != len(names):
        raise SettingsError("data", [f"the tasks need different names, but got {', '.join(names)}"])
    commit = recorded_commit(run, settings.backbone)
    backbone = find_backbone(settings.backbone, revision=commit or settings.revision)
    max_length = min(settings.max_length or DEFAULT_MAX_LENGTH, backbone.max_length)
    prefixes = _prefixes(names) if len(names) > 1 else [""]
    tasks = tuple(
        _task(d, data.protocol, prefix, backbone, max_length, cache)
        for d, data, prefix in zip(datasets, settings.all_data, prefixes, strict=True)
    )
    for task in tasks:
        _check_arms(arms, task)
        if len(arms) > 1:
            _check_tests(task.dataset)
    resolved = _resolved(settings, arms, tasks, max_length, device)
    inputs = _fixed_trials(resolved, arms, tasks) if settings.phase == TRAIN else ()
    return Prepared(resolved, backbone, resolved.dtype, max_length, tasks, arms, inputs)


def _task(
    dataset: Dataset, protocol: str, prefix: str, backbone: Backbone, max_length: int, cache: bool
) -> PreparedTask:
    fingerprint = tokenizer_fingerprint(backbone.tokenizer)
    folder = default_cache_dir() if cache else None

    def tokens(split: Split) -> TokenTable:
        return tokenize(split, backbone.tokenizer, max_length, folder, fingerprint)

    train = tokens(dataset.train)
    tests = {name: tokens(split) for name, split in dataset.tests.items()}
    reported = None
    if protocol == "paper":
        name, split = dataset.main_test
        assert split.labels is not None
        reported = Rows(tests[name], np.arange(len(split)), split.labels)
    return PreparedTask(
        TaskRows(dataset.task, dataset.train, train, dataset.source, protocol, prefix, reported),
        dataset,
        tests,
        site_map(empty_model(backbone.config, dataset.task.num_labels)),
        {name: t.truncated for name, t in {"train": train, **tests}.items()},
    )


def _check_arms(arms: tuple[Arm, ...], task: PreparedTask) -> None:
    """What cannot be used on this data or backbone is refused before anything is written."""
    problems: list[str] = []
    for arm in arms:
        for picks in [*arm.corners(), *arm.hardest_schedules()]:
            try:
                settle(arm, picks, task.rows).method.ownership(task.sites)
            except SettingsError as error:
                problems += [f"{error.where}: {p}" for p in error.problems]
    if problems:
        raise SettingsError("settings", list(dict.fromkeys(problems)))


def _check_tests(dataset: Dataset) -> None:
    """Methods are compared on the main test set, and one row says nothing about others."""
    name, split = dataset.main_test
    if len(split) < 2:
        problem = f"methods are compared on 2 {name} rows or more, but there is {len(split)}; give more, or train one method"
        raise DataError(dataset.source, [problem])


def _resolved(
    settings: Settings,
    arms: tuple[Arm, ...],
    tasks: tuple[PreparedTask, ...],
    max_length: int,
    device: str,
) -> Settings:
    """The settings with every default said; what is searched, and rules, stay as they were given."""
    methods: list[MethodSettings] = []
    first = tasks[0].rows
    for i, m in enumerate(settings.methods):
        own = [a for a in arms if a.entry == i]
        arm = own[0]
        setting = settle(arm, arm.first_picks(), first)
        hyper = setting.method.model_dump(mode="json")
        training = setting.training.model_dump(mode="json")
        if len(tasks) > 1:  # these may differ by task
            given = {**settings.training, **m.training}
            for key in ("metric_for_best_model", "greater_is_better"):
                training[key] = given.get(key)
        said = {**settings.training, **m.hyperparameters, **m.training}
        keep = (*arm.searched, *arm.rules, *(("r",) if m.rank_study else ()))
        for place in (hyper, training):
            place.update({k: said[k] for k in keep if k in place})
        if m.rank_study:
            hyper["r"] = [a.rank for a in own]  # a range in steps is a list of them
        reference = m.reference_rank
        if m.rank_study and reference is None:
            # One that all methods are compared with is its own ranks' too.
            common = (a.rank for a in own if a.name == settings.reference)
            reference = next(common, own[0].rank)
        methods.append(MethodSettings(m.method, hyper, training, m.rank_study, reference, m.name))
    data = [
        replace(
            d,
            task=t.dataset.task.name,
            text_columns=t.dataset.task.columns,
            label_column=t.dataset.task.label_column,
        )
        for d, t in zip(settings.all_data, tasks, strict=True)
    ]
    return replace(
        settings,
        methods=tuple(methods),
        training={},
        dtype=resolve_dtype(settings.dtype, device),
        max_length=max_length,
        data=data[0],
        more_data=tuple(data[1:]),
    )


def _fixed_trials(
    settings: Settings, arms: tuple[Arm, ...], tasks: tuple[PreparedTask, ...]
) -> tuple[TrialInput, ...]:
    return tuple(
        trial_input(
            task.rows,
            settle(arm, {}, task.rows),
            task.rows.divisions(seed)[0],
            ident=f"{arm.name}-s{seed}",
            seed=seed,
            phase=settings.phase,
        )
        for task in tasks
        for arm in arms
        for seed in settings.seeds
    )


def read_dataset(data: DataSettings) -> Dataset:
    """The rows; own data without a test file gives up a fixed tenth for it."""
    if data.file is None:
        assert data.task is not None
        dataset = load_task(data.task, Path(data.data_dir) if data.data_dir else None)
        check_columns(data, dataset.task)
    else:
        test = Path(data.test_file) if data.test_file else None
        dataset = dataset_from_files(
            Path(data.file), test, data.text_columns, data.label_column,
            name=data.task, groups_column=data.groups_column,
        )  # fmt: skip
    if not dataset.tests:
        kept, held = three_way(dataset.train)
        dataset = Dataset(
            dataset.task,
            dataset.train.take(kept),
            {"test": dataset.train.take(held)},
            dataset.source,
        )
    return _fewer(dataset, data.max_train_samples)


def _fewer(dataset: Dataset, count: int | None) -> Dataset:
    """Train on so many rows at most."""
    if count is None or count >= len(dataset.train):
        return dataset
    rows = subset(dataset.train, dataset.task.regression, count)
    return replace(dataset, train=dataset.train.take(rows))


def resolve_dtype(name: str, device: str = "cpu") -> str:
    """The compute dtype; "auto": bfloat16 where the device multiplies it in hardware, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if _has_bfloat16(device) else "float32"


def is_imitated(dtype: str, device: str) -> bool:
    """Whether the device has no hardware for products of the dtype, so that float32 is many times faster."""
    return dtype == "bfloat16" and not _has_bfloat16(device)


def _has_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu: Any = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def check_compute(dtype: str | None, device: str) -> None:
    """SettingsError for a dtype or device that there is not; EnvironmentProblem for one that this machine lacks."""
    if dtype is not None and dtype not in ("auto", *DTYPES):
        raise SettingsError(
            "settings",
            [f'dtype "{dtype}" is not known{did_you_mean(str(dtype), ("auto", *DTYPES))}'],
        )
    try:
        kind = torch.device(device)
    except (RuntimeError, TypeError):
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise SettingsError(
            "settings", [f'device "{device}" is not known; give cpu, cuda or cuda:N']
        )
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"device {device}: this machine has {torch.cuda.device_count()} CUDA devices; give --device cpu"
        )


def _check(settings: Settings) -> None:
    problems: list[str] = []
    for data in settings.all_data:
        both = data.file is not None and data.task in TASK_NAMES
        if both or (data.task is None and data.file is None):
            problems.append(
                "give either a task (--task rte) or a file (--data reviews.csv), and not both"
            )
        problems += misplaced(data)
        if data.protocol not in PROTOCOLS:
            # Folds choose the epochs in a search, so it is not offered without one.
            there = [p for p in PROTOCOLS if p != "cv" or settings.phase != TRAIN]
            problems.append(
                f'protocol "{data.protocol}" is not known{did_you_mean(data.protocol, there)}'
            )
        if data.max_train_samples is not None and data.max_train_samples < 10:
            problems.append(
                f"`max_train_samples >= 10` must hold, but got {data.max_train_samples}"
            )
        if data.protocol == "cv" and settings.phase == TRAIN:
            problems.append(
                "protocol cv first chooses the epochs by five folds; it is for fleetune study"
            )
    if settings.dtype not in ("auto", *DTYPES):
        problems.append(
            f'dtype "{settings.dtype}" is not known{did_you_mean(settings.dtype, ("auto", *DTYPES))}'
        )
    if not settings.methods:
        problems.append("at least one method must be named")
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        problems.append(
            f"seeds must be different numbers, at least one; got {list(settings.seeds)}"
        )
    wrong = [seed for seed in settings.seeds if not 0 <= seed <= MOST_SEED]
    if wrong:
        problems.append(f"`0 <= seed <= {MOST_SEED}` must hold, but got {wrong[0]}")
    if settings.max_length is not None and settings.max_length < 4:
        problems.append(f"`max_length >= 4` must hold, but got {settings.max_length}")
    if problems:
        raise SettingsError("settings", problems)


def _prefixes(names: Sequence[str]) -> list[str]:
    """What the trials of each task are called by first; two tasks whose names come to the same are numbered."""
    slugs = [_slug(name) for name in names]
    alike = [slug.casefold() for slug in slugs]  # folders may ignore case
    return [
        f"{slug}-" if alike.count(slug.casefold()) == 1 else f"{slug}_{i}-"
        for i, slug in enumerate(slugs, start=1)
    ]


def _slug(name: str) -> str:
    """A task's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)[:40]
