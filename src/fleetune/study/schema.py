"""The JSON schema of a study file, for editors that complete keys and underline mistakes (`fleetune study --schema`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleetune.config import TrainingSettings
from fleetune.methods.table import METHODS
from fleetune.study.forms import RANGE_KEYS
from fleetune.study.tables import StudyFile


def schema() -> dict[str, Any]:
    """The JSON schema of a study file, for editors."""
    found = StudyFile.model_json_schema()
    table = {"$ref": "#/$defs/DataTable"}
    found["properties"]["data"] = {
        "anyOf": [table, {"type": "array", "items": table, "minItems": 1}]
    }
    own = TrainingSettings.model_json_schema()["properties"]
    found["properties"]["training"] = {
        "type": "object",
        "properties": own,
        "additionalProperties": False,
    }
    found["properties"]["methods"] = {
        "type": "array",
        "minItems": 1,
        "items": {"oneOf": [_method_schema(name, own) for name in METHODS]},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _method_schema(name: str, training: Mapping[str, Any]) -> dict[str, Any]:
    fields = METHODS[name].model_json_schema()["properties"]
    properties: dict[str, Any] = {
        "method": {"const": name},
        "name": {
            "type": "string",
            "description": "What the study calls it; by default its method.",
        },
    }
    for key, value in {**training, **fields}.items():
        properties[key] = {
            "description": value.get("description", ""),
            "anyOf": [
                {k: v for k, v in value.items() if k != "description"},
                {"type": "array", "minItems": 1},
                {
                    "type": "object",
                    "required": ["low", "high"],
                    "properties": {k: {"type": ["number", "boolean"]} for k in RANGE_KEYS},
                    "additionalProperties": False,
                },
                {"type": "string"},
            ],
        }
    if "r" in fields:
        properties["rank_study"] = {"type": "boolean"}
        properties["reference_rank"] = {"type": "integer", "minimum": 1}
    return {
        "type": "object",
        "required": ["method"],
        "properties": properties,
        "additionalProperties": False,
    }
