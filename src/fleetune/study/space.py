"""What may be searched: lists, ranges and rules in place of values, and the arms that a study compares.

An arm is one method with what is fixed and what is searched; in a rank study every rank is an arm. What a setting may say:
forms.py.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from fleetune.config import TrainingSettings, explain
from fleetune.errors import SettingsError
from fleetune.methods.base import Method
from fleetune.methods.table import method_class
from fleetune.study.forms import (
    Choice,
    Range,
    Rule,
    Space,
    all_fields,
    default_of,
    field_of,
    form_of,
    is_whole,
    members,
    nearest,
    takes,
)
from fleetune.study.settings import MethodSettings, names_of, ranked

_HARDEST: dict[str, Callable[[Iterable[Any]], Any]] = {
    "learning_rate": min,
    "per_device_train_batch_size": max,
    "gradient_accumulation_steps": max,
}
_KINDS = ("lr_scheduler_type", "lr_scheduler_kwargs")


@dataclass(frozen=True, slots=True)
class Arm:
    """One method with what is fixed and what is searched."""

    name: str
    """What the study calls it (`names_of`); with the rank in a rank study."""
    method: str
    fixed: Mapping[str, Any]
    searched: Mapping[str, Space]
    rules: Mapping[str, Rule]
    entry: int
    """Which of the study's methods it comes from, from 0."""
    rank: int | None = None
    """In a rank study."""

    def values(self, picks: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(hyperparameters, training) of one setting; picks: a value for everything that is searched."""
        cls = method_class(self.method)
        found = {**self.fixed, **picks}
        for key, rule in self.rules.items():
            base = found.get(rule.of, default_of(cls, rule.of))
            value = rule.factor * base
            whole = is_whole(field_of(cls, key)) and math.isfinite(value)
            found[key] = int(value) if whole else value
        own = {k: v for k, v in found.items() if k in cls.model_fields}
        return own, {k: v for k, v in found.items() if k not in cls.model_fields}

    def first_picks(self) -> dict[str, Any]:
        """One setting of the space: the first of each list, the lower end of each range."""
        return {k: members(s)[0] for k, s in self.searched.items()}

    def corners(self) -> list[dict[str, Any]]:
        """Settings that together hold every listed value and both ends of every range."""
        first = self.first_picks()
        return [first, *({**first, k: v} for k, s in self.searched.items() for v in members(s))]

    def hardest_schedules(self) -> list[dict[str, Any]]:
        """Settings whose schedules of the learning rate are the first to fail: few steps, a low rate, every kind."""
        found = {key: members(space) for key, space in self.searched.items()}
        first = self.first_picks()
        for key, worst in _HARDEST.items():
            if key in found:
                first[key] = worst(found[key])
        if "warmup_steps" in found:
            found["warmup_steps"] = (min(found["warmup_steps"]), max(found["warmup_steps"]))
        varied = [key for key in ("warmup_steps", *_KINDS) if key in found]
        return [
            {**first, **dict(zip(varied, values, strict=True))}
            for values in itertools.product(*(found[key] for key in varied))
        ]

    @property
    def grid_size(self) -> int:
        """How many settings `grid` would list; it may be far more than fit into memory."""
        return math.prod(len(members(space)) for space in self.searched.values())

    def grid(self) -> list[dict[str, Any]]:
        """Every setting of a space of lists, the last key fastest."""
        names = list(self.searched)
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(members(self.searched[n]) for n in names))
        ]


def arms_of(methods: Iterable[MethodSettings], training: Mapping[str, Any]) -> tuple[Arm, ...]:
    """The arms of a study. SettingsError names every setting that is wrong, with its key, rule and value."""
    found: list[Arm] = []
    problems: list[str] = []
    entries = list(methods)
    names = names_of((m.method, m.name) for m in entries)
    for i, (m, name) in enumerate(zip(entries, names, strict=True)):
        try:
            found += _arms(i, name, m, training)
        except SettingsError as error:
            problems += error.problems
    problems += _same_names([arm.name for arm in found])
    if problems:
        raise SettingsError("settings", list(dict.fromkeys(problems)))
    return tuple(found)


def _same_names(names: list[str]) -> list[str]:
    # Folders are called after them, and some file systems do not tell capitals from small letters.
    counts = Counter(name.casefold() for name in names)
    return [
        f'methods: "{name}" stands for more than one method; give each a `name` of its own'
        for name in dict.fromkeys(names)
        if counts[name.casefold()] > 1
    ]


def _arms(entry: int, name: str, m: MethodSettings, training: Mapping[str, Any]) -> list[Arm]:
    cls = method_class(m.method)
    fixed: dict[str, Any] = {}
    searched: dict[str, Space] = {}
    rules: dict[str, Rule] = {}
    problems: list[str] = []
    own = {**m.hyperparameters, **m.training}
    for where, values in (("training", training), (f"methods.{name}", own)):
        for key, value in values.items():
            try:
                form = form_of(cls, key, value)
            except ValueError as error:
                problems.append(f"{where}.{key}: {error}")
                continue
            for place in (fixed, searched, rules):
                place.pop(key, None)
            into: Any = {Choice: searched, Range: searched, Rule: rules}.get(type(form), fixed)
            into[key] = form
            listed = members(form) if isinstance(form, Choice | Range) else ()
            checked = () if isinstance(form, Rule) else listed or (form,)
            problems += [
                f"{where}.{p}" for v in checked for p in _wrong(cls, key, v, where == "training")
            ]
    valued = {key for key, value in {**fixed, **searched}.items() if value is not None}
    problems += _baseless_rules(name, cls, rules, valued)
    ranks = searched.get("r")
    if m.rank_study:
        problems += _rank_problems(name, cls, ranks, m)
    if problems:
        raise SettingsError("settings", problems)
    if not m.rank_study:
        return [Arm(name, m.method, fixed, searched, rules, entry)]
    others = {k: v for k, v in searched.items() if k != "r"}
    assert isinstance(ranks, Choice)
    return [
        Arm(ranked(name, r), m.method, {**fixed, "r": r}, others, rules, entry, rank=r)
        for r in ranks.values
    ]


def _baseless_rules(
    name: str, cls: type[Method], rules: Mapping[str, Rule], valued: Set[str]
) -> list[str]:
    """Rules that follow what has no number; valued: the settings that the study gives a value or values."""
    return [
        f"methods.{name}.{key}: follows `{rule.of}`, which {why}"
        for key, rule in rules.items()
        for why in (
            ["is a rule itself; name a setting that has values"]
            if rule.of in rules
            else ["has no number by default; give it one"]
            if rule.of not in valued and default_of(cls, rule.of) is None
            else []
        )
    ]


def _rank_problems(
    name: str, cls: type[Method], ranks: Space | None, m: MethodSettings
) -> list[str]:
    if "r" not in cls.model_fields:
        return [f"methods.{name}.rank_study: {cls.name} has no rank; use it on lora"]
    if not isinstance(ranks, Choice) or len(ranks.values) < 2:
        return [f"methods.{name}.rank_study: `r` must be a list of ranks, such as r = [1, 2, 4, 8]"]
    if any(type(r) is not int for r in ranks.values):
        told = f"ranks must be whole numbers, but got {list(ranks.values)}"
        return [f"methods.{name}.rank_study: {told}"]
    if m.reference_rank not in (None, *ranks.values) or m.reference_rank is True:
        listed = ", ".join(map(str, ranks.values))
        return [
            f"methods.{name}.reference_rank: must be one of the ranks {listed}, but got {m.reference_rank}"
        ]
    return []


def _wrong(cls: type[Method], key: str, value: Any, shared: bool) -> list[str]:
    """What pydantic says about one value of one setting; shared: it stands in [training]."""
    models: list[type[BaseModel]] = [TrainingSettings] if shared else [cls, TrainingSettings]
    model = next((m for m in models if shared or key in m.model_fields), None)
    if model is None:
        known = [*all_fields(cls), "name", "rank_study", "reference_rank"]
        return [f"{key}: unknown setting of {cls.name}{nearest(key, known)}"]
    # pydantic would read "1" and true as one, and a rule or a grid would then meet a text among numbers.
    field = model.model_fields.get(key)
    if isinstance(value, str | bool) and field is not None and takes(field, (int, float)):
        return [f"{key}: must be a number, but got {value!r:.80}"]
    try:
        model(**{key: value})
    except ValidationError as error:
        return explain(error, model)
    return []
