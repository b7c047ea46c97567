"""What may be searched: lists, ranges and rules in place of values, and the arms that a study compares.

An arm is one method with what is fixed and what is searched; in a rank study every rank is an arm. Forms of a setting:

    lora_dropout = 0.01                                   a value
    learning_rate = [5e-4, 1e-3]                          one of these
    learning_rate = { low = 1e-4, high = 2e-3 }           a number between; log = true spreads it by its logarithm, which
                                                          is the default for learning_rate; steps = 5 makes it a list
    lora_alpha = "4r"                                     a rule: four times the setting r of the same trial

A setting that itself is a list (`target_modules`, `layers_to_transform`, `terms`) is a value when it is a plain list of names
or numbers, and searched when the list holds lists, presets ("all-linear") or names joined by commas.
"""

from __future__ import annotations

import itertools
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fleetune.config import TrainingSettings, explain
from fleetune.errors import SettingsError, did_you_mean
from fleetune.methods.base import Method
from fleetune.methods.table import method_class
from fleetune.study.settings import MethodSettings, names_of, ranked

RANGE_KEYS = ("low", "high", "log", "steps")
_RULE = re.compile(r"(?:(\d{1,9}(?:\.\d{1,9})?)\s*\*?\s*)?([A-Za-z_]{1,60})")
MOST_CHOICES = 1000
"""Values of one setting to choose from: each is checked, and no search tries nearly as many."""
_HARDEST: dict[str, Callable[[Iterable[Any]], Any]] = {
    "learning_rate": min,
    "per_device_train_batch_size": max,
    "gradient_accumulation_steps": max,
}
_KINDS = ("lr_scheduler_type", "lr_scheduler_kwargs")
# Methods are compared by it, so it belongs to the study and not to a method's search.
_NEVER_SEARCHED = ("metric_for_best_model", "greater_is_better")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """A factor times another setting of the same trial."""

    factor: float
    of: str


Space = Choice | Range


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
            base = found.get(rule.of, _default(cls, rule.of))
            value = rule.factor * base
            whole = _is_whole(_field(cls, key)) and math.isfinite(value)
            found[key] = int(value) if whole else value
        own = {k: v for k, v in found.items() if k in cls.model_fields}
        return own, {k: v for k, v in found.items() if k not in cls.model_fields}

    def first_picks(self) -> dict[str, Any]:
        """One setting of the space: the first of each list, the lower end of each range."""
        return {k: _members(s)[0] for k, s in self.searched.items()}

    def corners(self) -> list[dict[str, Any]]:
        """Settings that together hold every listed value and both ends of every range."""
        first = self.first_picks()
        return [first, *({**first, k: v} for k, s in self.searched.items() for v in _members(s))]

    def hardest_schedules(self) -> list[dict[str, Any]]:
        """Settings whose schedules of the learning rate are the first to fail: few steps, a low rate, every kind."""
        found = {key: _members(space) for key, space in self.searched.items()}
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
        return math.prod(len(_members(space)) for space in self.searched.values())

    def grid(self) -> list[dict[str, Any]]:
        """Every setting of a space of lists, the last key fastest."""
        names = list(self.searched)
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(_members(self.searched[n]) for n in names))
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
                form = _form(cls, key, value)
            except ValueError as error:
                problems.append(f"{where}.{key}: {error}")
                continue
            for place in (fixed, searched, rules):
                place.pop(key, None)
            into: Any = {Choice: searched, Range: searched, Rule: rules}.get(type(form), fixed)
            into[key] = form
            members = _members(form) if isinstance(form, Choice | Range) else ()
            checked = () if isinstance(form, Rule) else members or (form,)
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
            if rule.of not in valued and _default(cls, rule.of) is None
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


def _form(cls: type[Method], key: str, value: Any) -> Any:
    """The value, or what it says to search. ValueError with the rule that it breaks."""
    field = _field(cls, key)
    if field is None or value is None:
        return value
    if isinstance(value, list | tuple) and not (
        _takes(field, (tuple, list)) and _is_one_list(field, value)
    ):
        if key in _NEVER_SEARCHED:
            raise ValueError("cannot be searched, since methods are compared by it; give one value")
        if not value:
            raise ValueError("an empty list leaves nothing to choose from")
        if len(value) > MOST_CHOICES:
            raise ValueError(
                f"at most {MOST_CHOICES} values can be chosen from, but got {len(value)}; give a range"
            )
        if len({_as_number(v) for v in value}) != len(value):
            raise ValueError(f"the values to choose from must differ, but got {list(value)!r}")
        return Choice(tuple(value))
    if isinstance(value, Mapping) and not _takes(field, (dict,)):
        return _range(key, value, field)
    if isinstance(value, str) and _takes(field, (int, float)) and (m := _RULE.fullmatch(value)):
        known = [k for k in _all_fields(cls) if k != key and _takes(_field(cls, k), (int, float))]
        if m[2] not in known:
            raise ValueError(
                f'the rule "{value}" names "{m[2]}", which is no number among the settings of {cls.name}'
                f"{_nearest(m[2], known)}"
            )
        return Rule(float(m[1] or 1), m[2])
    return value


def _as_number(value: Any) -> str:
    """What two values have in common where they are the same to a training, as 1 and 1.0 are."""
    return repr(float(value) if type(value) in (int, float) else value)


def _range(key: str, value: Mapping[str, Any], field: Any) -> Space:
    unknown = [k for k in value if k not in RANGE_KEYS]
    if unknown:
        raise ValueError(
            f'a range knows no "{unknown[0]}"{did_you_mean(str(unknown[0]), RANGE_KEYS)}'
        )
    numbers = [value.get("low"), value.get("high")]
    if any(not isinstance(n, int | float) or isinstance(n, bool) for n in numbers):
        raise ValueError(
            f"a range needs two numbers, {{ low = ..., high = ... }}, but got {dict(value)!r}"
        )
    low, high = _number(value["low"]), _number(value["high"])
    log = value.get("log", key == "learning_rate")
    if not isinstance(log, bool):
        raise ValueError(f"`log` is true or false, but got {log!r}")
    if not low < high or (log and low <= 0):
        rule = "0 < low < high" if log else "low < high"
        raise ValueError(f"`{rule}` must hold, but got low={low:g}, high={high:g}")
    whole = _is_whole(field)
    if whole and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"must be between whole numbers, but got low={low:g}, high={high:g}")
    steps = value.get("steps")
    if steps is None:
        return Range(low, high, log, whole)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= MOST_CHOICES:
        raise ValueError(f"`2 <= steps <= {MOST_CHOICES}` must hold, but got steps={steps!r}")
    places = [i / (steps - 1) for i in range(steps)]
    found = [
        math.exp(math.log(low) * (1 - p) + p * math.log(high)) if log else low + p * (high - low)
        for p in places
    ]
    # Twelve digits: what a list would say, without the last bits of the logarithm.
    found = [low, *(float(f"{v:.12g}") for v in found[1:-1]), high]
    return Choice(tuple(dict.fromkeys(round(v) if whole else v for v in found)))


def _number(value: int | float) -> float:
    """As a float; ValueError for what is none, and for whole numbers that would lose digits."""
    if abs(value) >= 2**53 or not math.isfinite(value):
        raise ValueError(f"a range is between finite numbers below 2**53, but got {value!r:.40}")
    return float(value)


def _members(space: Space) -> tuple[Any, ...]:
    if isinstance(space, Choice):
        return space.values
    ends = (space.low, space.high)
    return tuple(int(e) for e in ends) if space.whole else ends


def _wrong(cls: type[Method], key: str, value: Any, shared: bool) -> list[str]:
    """What pydantic says about one value of one setting; shared: it stands in [training]."""
    models: list[type[BaseModel]] = [TrainingSettings] if shared else [cls, TrainingSettings]
    model = next((m for m in models if shared or key in m.model_fields), None)
    if model is None:
        known = [*_all_fields(cls), "name", "rank_study", "reference_rank"]
        return [f"{key}: unknown setting of {cls.name}{_nearest(key, known)}"]
    # pydantic would read "1" and true as one, and a rule or a grid would then meet a text among numbers.
    field = model.model_fields.get(key)
    if isinstance(value, str | bool) and field is not None and _takes(field, (int, float)):
        return [f"{key}: must be a number, but got {value!r:.80}"]
    try:
        model(**{key: value})
    except ValidationError as error:
        return explain(error, model)
    return []


_OTHER = {
    "rank": "r",
    "alpha": "lora_alpha",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "dropout": "lora_dropout",
    "warmup_ratio": "warmup_steps",
}


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, or where to look: a list of forty would hide the other problems."""
    names = list(known)
    told = did_you_mean(_OTHER[name] if _OTHER.get(name) in names else name, names)
    return told if told.startswith(", ") else "; fleetune methods lists what there is"


def _all_fields(cls: type[Method]) -> list[str]:
    return [*cls.model_fields, *TrainingSettings.model_fields]


def _field(cls: type[Method], key: str) -> Any:
    return cls.model_fields.get(key) or TrainingSettings.model_fields.get(key)


def _default(cls: type[Method], key: str) -> Any:
    if key == "learning_rate":
        return cls.default_learning_rate
    return _field(cls, key).get_default(call_default_factory=True)


def _is_one_list(field: Any, value: Iterable[Any]) -> bool:
    """Whether a list is the value of a setting that holds a list, and not a list of such values."""
    presets = {a for branch in _branches(field.annotation) for a in get_args(branch)}
    numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    return numbers or all(isinstance(v, str) and v not in presets and "," not in v for v in value)


def _is_whole(field: Any) -> bool:
    return _takes(field, (int,)) and not _takes(field, (float,))


def _takes(field: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a setting's type has one of these among its branches; a literal text is none."""
    return any((get_origin(b) or b) in kinds for b in _branches(field.annotation))


def _branches(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [b for a in get_args(annotation) for b in _branches(a)]
    return [annotation]
