"""Rules of a study file that concern several of its tables: a search and its seeds, equal budgets, one metric for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetune.config import TrainingSettings
from fleetune.errors import did_you_mean
from fleetune.study.forms import Range
from fleetune.study.settings import MethodSettings
from fleetune.study.space import Arm
from fleetune.study.tables import SearchTable, StudyFile

LENGTHS = ("num_train_epochs", "max_steps")
BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""With `max_steps`, these say how many epochs a training is."""


def together(
    study: StudyFile, entries: Sequence[MethodSettings], arms: Sequence[Arm], *, begun: bool
) -> list[str]:
    """What is wrong. arms: of the entries. begun: a run of the study is there already, see `file.parse_study`."""
    problems: list[str] = []
    searched = [a for a in arms if a.searched]
    search = study.search
    if searched and search is None:
        keys = ", ".join(sorted(f"{a.name}.{k}" for a in searched for k in a.searched))
        problems.append(f"search: missing, but there is something to search: {keys}; add [search]")
    names = [a.name for a in arms]
    reference = study.confirm.reference
    if reference is not None and reference not in names:
        problems.append(
            f'confirm.reference: "{reference}" is none of the methods{did_you_mean(reference, names)}'
        )
    if not begun:
        problems += one_metric(arms)
        problems += _one_reference(reference, entries, arms)
    if search is None:
        return problems
    last, first = search.seed + search.trials_per_method, study.confirm.first_seed
    if search.seed < first + study.confirm.seeds and first < last:
        problems.append(
            f"confirm.first_seed: must be fresh: the search may use seeds {search.seed} to {last - 1}, but got "
            f"{first} to {first + study.confirm.seeds - 1}"
        )
    for arm in searched:
        problems += _lengths_searched(arm, begun=begun)
        problems += _grid(arm, search)
    return problems + _equal_lengths(searched, begun=begun)


def _one_reference(
    name: str | None, entries: Sequence[MethodSettings], arms: Sequence[Arm]
) -> list[str]:
    """A rank that all methods are compared with is its own ranks' reference too.

    Else a pair of them would be judged twice, in two families, and could get two verdicts.
    """
    arm = next((a for a in arms if a.name == name and a.rank is not None), None)
    wanted = None if arm is None else entries[arm.entry].reference_rank
    if arm is None or wanted in (None, arm.rank):
        return []
    return [
        f"confirm.reference: {name} and reference_rank = {wanted} must be the same rank, since a pair of ranks has one verdict; "
        "give one of the two, or the same for both"
    ]


def _varies(arm: Arm, key: str) -> bool:
    """Whether a setting differs among the settings of an arm: it is searched, or follows one that is."""
    return key in arm.searched or (key in arm.rules and arm.rules[key].of in arm.searched)


def _cannot(arm: Arm, key: str) -> str:
    """The beginning of a sentence that says what such a setting must not do."""
    told = (
        "be searched" if key in arm.searched else f"follow `{arm.rules[key].of}`, which is searched"
    )
    return f"methods.{arm.name}.{key}: cannot {told}"


def _training(arm: Arm) -> dict[str, Any]:
    return arm.values(arm.first_picks())[1]


def _setting(arm: Arm, key: str) -> float:
    """The value of a training setting, the default where the study says nothing."""
    return float(_training(arm).get(key, TrainingSettings.model_fields[key].default))


def _steps(arm: Arm) -> int:
    """`max_steps` where it says how long an arm trains, else 0."""
    return max(int(_setting(arm, "max_steps")), 0)


def _lengths_searched(arm: Arm, *, begun: bool) -> list[str]:
    """Settings that would give an arm's trials different numbers of epochs: halving compares them after equally many."""
    problems = [
        f"{_cannot(arm, key)}, since search budgets are equal in epochs; give one value"
        for key in LENGTHS
        if key in arm.searched or (_varies(arm, key) and not begun)
    ]
    if begun or not _steps(arm):
        return problems
    return problems + [
        f"{_cannot(arm, key)} where max_steps={_steps(arm)} ends a training, since search budgets "
        "are equal in epochs and so many steps are more epochs with larger batches; give one value, or num_train_epochs "
        "without max_steps"
        for key in BATCHES
        if _varies(arm, key)
    ]


def _equal_lengths(searched: Sequence[Arm], *, begun: bool) -> list[str]:
    """The same for all searched methods: each has the budget of the others."""
    lengths = {(_setting(a, "num_train_epochs"), _steps(a)) for a in searched}
    if len(lengths) > 1:
        return [
            "methods: num_train_epochs and max_steps must be the same for every searched method, since search budgets "
            "are equal in epochs; set them in [training]"
        ]
    if begun or not any(map(_steps, searched)):
        return []
    problems: list[str] = []
    for key in BATCHES:
        values = {a.name: int(_setting(a, key)) for a in searched}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value} for {name}" for name, value in values.items())
            problems.append(
                f"methods: {key} must be the same for every searched method where max_steps ends a training, since search "
                f"budgets are equal in epochs, but got {told}; set it in [training], or num_train_epochs without max_steps"
            )
    return problems


def _grid(arm: Arm, search: SearchTable) -> list[str]:
    if search.sampler != "grid":
        return []
    ranges = [k for k, s in arm.searched.items() if isinstance(s, Range)]
    problems = [
        f"methods.{arm.name}.{key}: a grid needs a list, or `steps` in the range" for key in ranges
    ]
    if not ranges and arm.grid_size > search.trials_per_method:
        problems.append(
            f"search.trials_per_method: the grid of {arm.name} has {arm.grid_size} settings, but got "
            f"{search.trials_per_method}; raise it, or shorten the lists"
        )
    return problems


def one_metric(arms: Sequence[Arm]) -> list[str]:
    """Methods are compared by their selection scores, so one metric and one direction must choose for all of them."""
    chosen = {a.name: _metric(a) for a in arms}
    if len(set(chosen.values())) > 1:
        told = ", ".join(
            f"{metric or 'the main metric'}{'' if higher else ', lower is better,'} for {name}"
            for name, (metric, higher) in chosen.items()
        )
        return [
            "methods: metric_for_best_model and greater_is_better must be the same for every method, since the winner is "
            f"found by them, but got {told}; set them in [training]"
        ]
    if any(metric != "loss" for metric, _ in chosen.values()):
        return []
    key, rule = "label_smoothing_factor", "the loss on the selection rows is smoothed by it"
    problems = [
        f'{_cannot(a, key)} where metric_for_best_model = "loss", since {rule}; give one value, '
        "or another metric"
        for a in arms
        if _varies(a, key)
    ]
    if not problems and len({float(_training(a).get(key, 0.0)) for a in arms}) > 1:
        problems.append(
            f'methods: {key} must be the same for every method where metric_for_best_model = "loss", since {rule}; set it in '
            "[training], or choose by another metric"
        )
    return problems


def _metric(arm: Arm) -> tuple[str | None, bool]:
    """(metric that chooses, None for the task's main one; whether higher is better)."""
    training = _training(arm)
    name = training.get("metric_for_best_model")
    metric = None if name is None else str(name).removeprefix("eval_")
    higher = training.get("greater_is_better")
    if higher is None:  # of every metric but the loss, more is better
        higher = metric != "loss"
    return metric, bool(higher)
