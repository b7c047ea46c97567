"""The forms of a setting in a study: a value, or what says which values are tried.

    lora_dropout = 0.01                                   a value
    learning_rate = [5e-4, 1e-3]                          one of these
    learning_rate = { low = 1e-4, high = 2e-3 }           a number between; log = true spreads it by its logarithm, which
                                                          is the default for learning_rate; steps = 5 makes it a list
    lora_alpha = "4r"                                     a rule: four times the setting r of the same trial

A setting that itself is a list (`target_modules`, `layers_to_transform`, `terms`) is a value when it is a plain list of names
or numbers, and searched when the list holds lists, presets ("all-linear") or names joined by commas.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from fleetune.config import TrainingSettings
from fleetune.errors import did_you_mean
from fleetune.methods.base import Method

RANGE_KEYS = ("low", "high", "log", "steps")
_RULE = re.compile(r"(?:(\d{1,9}(?:\.\d{1,9})?)\s*\*?\s*)?([A-Za-z_]{1,60})")
MOST_CHOICES = 1000
"""Values of one setting to choose from: each is checked, and no search tries nearly as many."""
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


def form_of(cls: type[Method], key: str, value: Any) -> Any:
    """The value, or what it says to search. ValueError with the rule that it breaks."""
    field = field_of(cls, key)
    if field is None or value is None:
        return value
    if isinstance(value, list | tuple) and not (
        takes(field, (tuple, list)) and _is_one_list(field, value)
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
    if isinstance(value, Mapping) and not takes(field, (dict,)):
        return _range(key, value, field)
    if isinstance(value, str) and takes(field, (int, float)) and (m := _RULE.fullmatch(value)):
        known = [k for k in all_fields(cls) if k != key and takes(field_of(cls, k), (int, float))]
        if m[2] not in known:
            raise ValueError(
                f'the rule "{value}" names "{m[2]}", which is no number among the settings of {cls.name}'
                f"{nearest(m[2], known)}"
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
    whole = is_whole(field)
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


def members(space: Space) -> tuple[Any, ...]:
    if isinstance(space, Choice):
        return space.values
    ends = (space.low, space.high)
    return tuple(int(e) for e in ends) if space.whole else ends


_OTHER = {
    "rank": "r",
    "alpha": "lora_alpha",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "dropout": "lora_dropout",
    "warmup_ratio": "warmup_steps",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, or where to look: a list of forty would hide the other problems."""
    names = list(known)
    told = did_you_mean(_OTHER[name] if _OTHER.get(name) in names else name, names)
    return told if told.startswith(", ") else "; fleetune methods lists what there is"


def all_fields(cls: type[Method]) -> list[str]:
    return [*cls.model_fields, *TrainingSettings.model_fields]


def field_of(cls: type[Method], key: str) -> Any:
    return cls.model_fields.get(key) or TrainingSettings.model_fields.get(key)


def default_of(cls: type[Method], key: str) -> Any:
    if key == "learning_rate":
        return cls.default_learning_rate
    return field_of(cls, key).get_default(call_default_factory=True)


def _is_one_list(field: Any, value: Iterable[Any]) -> bool:
    """Whether a list is the value of a setting that holds a list, and not a list of such values."""
    presets = {a for branch in _branches(field.annotation) for a in get_args(branch)}
    numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    return numbers or all(isinstance(v, str) and v not in presets and "," not in v for v in value)


def is_whole(field: Any) -> bool:
    return takes(field, (int,)) and not takes(field, (float,))


def takes(field: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a setting's type has one of these among its branches; a literal text is none."""
    return any((get_origin(b) or b) in kinds for b in _branches(field.annotation))


def _branches(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [b for a in get_args(annotation) for b in _branches(a)]
    return [annotation]
