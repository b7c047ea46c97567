"""The table of methods: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fleetune.config import explain
from fleetune.errors import SettingsError, did_you_mean
from fleetune.methods.base import Method
from fleetune.methods.bitfit import BitFit
from fleetune.methods.full import Full
from fleetune.methods.head import Head
from fleetune.methods.lora import Lora

METHODS: dict[str, type[Method]] = {row.name: row for row in (BitFit, Lora, Head, Full)}


def method_class(name: str) -> type[Method]:
    """The method of a name; SettingsError with the nearest right one."""
    if name not in METHODS:
        raise SettingsError("method", [f'there is no method "{name}"{did_you_mean(name, METHODS)}'])
    return METHODS[name]


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """A method with its settings; SettingsError names every setting that is wrong."""
    cls = method_class(name)
    try:
        return cls(**settings)
    except ValidationError as error:
        raise SettingsError(name, explain(error, cls)) from None
