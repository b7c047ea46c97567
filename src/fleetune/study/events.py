"""What the events of a journal hold: the fields that other parts rely on, and what each may be.

A CRC finds accidents and not a forger; a run's folder may come from anybody, and `fleetune show`, `report` and `predict` read it.
So every event is checked when the journal is read, and what is read later has these types. Kinds and fields that are not named
here are let through: a later Fleetune may write more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Rule = tuple[str, Callable[[Any], bool]]
"""In words, and as a check."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_name(value: Any) -> bool:
    """A trial's name is that of its folder in trials/, and may lead nowhere else."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _are(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_training(value: Any) -> bool:
    """The training settings of a trial, as far as tables and charts read them."""
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(key)) for key in ("num_train_epochs", "max_steps"))
        and _or_none(_is_number)(value.get("learning_rate"))
        and isinstance(value.get("metric_for_best_model"), str)
        and isinstance(value.get("greater_is_better"), bool)
    )


TEXT: Rule = ("a text", lambda value: isinstance(value, str))
NUMBER: Rule = ("a number", _is_number)
MOMENT: Rule = (
    "seconds since 1970, up to the year 9999",
    lambda value: _is_number(value) and 0 <= value < 253_402_300_800,
)
WHOLE: Rule = ("a whole number", _is_whole)
YES: Rule = ("true or false", lambda value: isinstance(value, bool))
NAME: Rule = ("a trial's name (letters, digits, `_`, `.`, `-`)", _is_name)
NAMES: Rule = ("a list of trials' names", _are(_is_name))
TABLE: Rule = ("a table", _is_table)
SCORES: Rule = ("a table of numbers", _each(_is_number))
TRAINING: Rule = ("the training settings of a trial", _is_training)
COUNTS: Rule = (
    "numbers of encoder and head",
    lambda value: _each(_is_whole)(value) and {"encoder", "head"} <= value.keys(),
)

FIELDS: Mapping[str, Mapping[str, Rule]] = {
    "run-started": {"trials": NAMES},
    "test-selects": {"task": TEXT, "sets": ("a list of texts", _are(TEXT[1]))},
    "trial-started": {
        **{"id": NAME, "task": TEXT, "method": TEXT, "phase": TEXT, "seed": WHOLE},
        **{"hyperparameters": TABLE, "training": TRAINING, "trainable_parameters": COUNTS},
        "stage": ("a text, or null", _or_none(TEXT[1])),
    },
    "epoch": {
        **{"id": NAME, "epoch": WHOLE, "step": WHOLE, "loss": NUMBER, "seconds": NUMBER},
        "selection": SCORES,
    },
    "trial-done": {
        **{"id": NAME, "best_epoch": WHOLE, "seconds": NUMBER, "optimistic": YES},
        "selection": SCORES,
        "test": ("a table of numbers, or null", _or_none(_each(_is_number))),
        "tests": ("a table of numbers for each test set", _each(_each(_is_number))),
        "predictions": ("a sha256, or null", _or_none(TEXT[1])),
        "weights": ("a sha256, or null", _or_none(TEXT[1])),
        "train": ("a table of numbers, or null", _or_none(_each(_is_number))),
        "tokens": ("a whole number, or null", _or_none(_is_whole)),
    },
    "planned": {
        **{"stage": TEXT, "at_once": WHOLE, "tokens": WHOLE, "bytes": WHOLE},
        "why": ("a list of texts", _are(TEXT[1])),
    },
    "stage-done": {
        "stage": TEXT,
        "peak_bytes": ("a whole number, or null", _or_none(_is_whole)),
    },
    "trial-stopped": {"id": NAME, "best_epoch": WHOLE, "seconds": NUMBER},
    "trial-failed": {"id": NAME, "reason": TEXT},
    "test-opened": {"id": NAME},
    "test-declared": {"task": TEXT, "settings": ("a list of texts", _are(TEXT[1]))},
    "phase-started": {
        **{"task": TEXT, "phase": TEXT, "trials": NAMES},
        "arms": ("a table of lists of trials' names", _each(_are(_is_name))),
    },
    "proposed": {
        **{"task": TEXT, "arm": TEXT, "first": WHOLE},
        "settings": ("a list of tables", _are(_is_table)),
        "trials": ("a list of lists of trials' names", _are(_are(_is_name))),
    },
    "chosen": {
        **{"task": TEXT, "arm": TEXT, "trials": NAMES},
        **{key: WHOLE for key in ("tried", "stopped", "failed", "epochs_trained")},
        "picks": ("a table, or null", _or_none(_is_table)),
        "score": ("a number, or null", _or_none(_is_number)),
        "epochs": ("a whole number, or null", _or_none(_is_whole)),
    },
}


def wrong_fields(event: Mapping[str, Any]) -> list[str]:
    """What an event says that no Fleetune would have written: a sentence for each field, empty for a sound event."""
    rules = {"time": MOMENT, **FIELDS.get(event["kind"], {})}
    return [
        f"{event['kind']}: `{key}` must be {rule}, but is {event.get(key)!r:.60}"
        for key, (rule, holds) in rules.items()
        if not holds(event.get(key))
    ]
