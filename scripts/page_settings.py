"""docs/settings.md: every training setting, and what became of other names of `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from fleetune.config import INSTEAD, TrainingSettings
from scripts import markdown as md


def names_of_transformers() -> dict[str, Any]:
    """The fields of TrainingArguments with their defaults; `...` where a factory makes them."""
    from transformers import TrainingArguments

    return {
        f.name: f.default if f.default is not dataclasses.MISSING else ...
        for f in dataclasses.fields(TrainingArguments)
    }


def instead() -> dict[str, str]:
    """Every name that has another here, or none, and what to use: settings, flags and commands as code."""
    names = "|".join(name for name in TrainingSettings.model_fields if "_" in name)
    code = re.compile(
        rf"fleetune export [A-Z/ a-z-]+NAME|--[a-z-]+( bfloat16| cpu)?|\b({names}|dtype)\b"
    )
    return {name: code.sub(lambda found: md.code(found[0]), told) for name, told in INSTEAD.items()}


def render() -> str:
    """The page."""
    theirs = names_of_transformers()
    rows = [
        [
            md.code(name),
            md.kind_of(field),
            md.default_of(field),
            _their_default(theirs[name], md.default_of(field))
            if name in theirs
            else "no such name",
            field.description or "",
        ]
        for name, field in TrainingSettings.model_fields.items()
    ]
    return md.page(
        "Training settings",
        [
            md.paragraph(
                "Names and meanings are those of `transformers.TrainingArguments`. On the command line a setting is a "
                "flag: `learning_rate` is `--learning-rate`. What is left out keeps its default; a run stores every "
                "value in `study.toml`, defaults included. A setting that cannot be used ends the command with exit "
                "code 2 and a list of all that is wrong."
            ),
            md.table(["setting", "type", "default", "in transformers", "meaning"], rows),
            "## Other names, and what to use instead",
            md.paragraph(
                "Names that transformers has or had, and names that people try. Where one of them is given, the error says what "
                "stands here; nothing is ignored without a word."
            ),
            md.table(
                ["name", "use"], [[md.code(name), value] for name, value in instead().items()]
            ),
            md.paragraph(
                "All other names of `TrainingArguments` have no counterpart. The rest of what decides a run is on the "
                "command line: [`fleetune train`](cli.md#fleetune-train). Settings of the methods: "
                "[methods](methods.md)."
            ),
        ],
    )


def _their_default(value: Any, ours: str) -> str:
    plain = getattr(value, "value", value)  # of an enumeration its word
    told = "-" if plain is ... or plain is None else md.code(md.shown(plain))
    return "the same" if told == ours else told
