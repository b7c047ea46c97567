"""docs/methods.md: every method with its source, settings, departures, parameter counts and abilities.

All of it comes from the table of methods, the docstrings of their modules, and two configs without weights; a new method
needs no change here.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from fleetune.backbone.sites import SiteMap, empty_model, site_map
from fleetune.errors import SettingsError
from fleetune.methods.base import Abilities, Method, count_parameters
from fleetune.methods.table import METHODS
from scripts import markdown as md

# Ranks whose parameters are counted for methods that have one.
RANKS = (1, 2, 4, 8, 16)


def shapes() -> dict[str, SiteMap]:
    """The two backbones that parameters are counted on, made from their published configs with two labels."""
    from transformers import BertConfig, RobertaConfig

    roberta = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
    minilm = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return {
        "roberta-base": site_map(empty_model(roberta)),
        "MiniLM-L6": site_map(empty_model(minilm)),
    }


def departures(cls: type[Method]) -> list[str]:
    """Where a method differs from its paper or from peft, as its module says: one entry each."""
    found: list[str] = []
    for text in _module_paragraphs(cls):
        if text.startswith("Departures"):
            told = text.partition(":")[2].strip()
            found += [
                part.strip().rstrip(";").strip()
                for part in re.split(r"(?:^|(?<=\s))\(\d+\)", told)
                if part.strip()
            ]
    return [f"{part.rstrip('.')}." for part in found]


def about(cls: type[Method]) -> list[str]:
    """What the module says of the method: its first sentence, and its paragraphs but the departures."""
    first = " ".join((inspect.getdoc(inspect.getmodule(cls)) or "").split("\n\n")[0].split())
    others = [text for text in _module_paragraphs(cls) if not text.startswith("Departures")]
    own = md.paragraphs(inspect.getdoc(cls)) if cls.__doc__ != Method.__doc__ else []
    return [first, *others, *own]


def _module_paragraphs(cls: type[Method]) -> list[str]:
    return md.paragraphs(inspect.getdoc(inspect.getmodule(cls)))


def counts(cls: type[Method], maps: dict[str, SiteMap]) -> list[list[str]]:
    """Rows of (setting, then encoder and head for each backbone): the defaults, and settings that change the counts."""
    plain = _count(cls, {}, maps)
    rows = [["defaults", *plain]]
    for settings in _variants(cls):
        found = _count(cls, settings, maps)
        if found != plain and any(value != "refused" for value in found):
            told = ", ".join(f"{name}={md.shown(value)}" for name, value in settings.items())
            rows.append([md.code(told), *found])
    return rows


def _variants(cls: type[Method]) -> list[dict[str, Any]]:
    """Each rank, each named choice of a setting, each switch turned: one at a time."""
    found: list[dict[str, Any]] = []
    for name, field in cls.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if name == "r":
            found += [{name: r} for r in RANKS]
        elif isinstance(value, bool):
            found.append({name: not value})
        else:
            found += [{name: choice} for choice in _choices(field.annotation) if choice != value]
    return found


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


def _count(cls: type[Method], settings: dict[str, Any], maps: dict[str, SiteMap]) -> list[str]:
    row: list[str] = []
    for sites in maps.values():
        try:
            count = count_parameters(cls(**settings), sites)
            row += [f"{count.encoder:,}", f"{count.head:,}"]
        except (SettingsError, ValidationError):
            row += ["refused", "refused"]
    return row


def abilities(cls: type[Method]) -> list[list[str]]:
    """(name, yes or no or value, meaning) of each ability."""
    meanings = _field_docs(Abilities)
    return [
        [
            md.code(f.name),
            {True: "yes", False: "no"}.get(v := getattr(cls.abilities, f.name), md.shown(v)),
            meanings.get(f.name, ""),
        ]
        for f in dataclasses.fields(Abilities)
    ]


def _field_docs(cls: type) -> dict[str, str]:
    """The string beneath each field of a dataclass."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def render() -> str:
    """The page."""
    maps = shapes()
    parts = [
        md.paragraph(
            "Every method trains the classification head in full, besides what is said here. `--method NAME` names a "
            "method, `--set NAME=VALUE` one of its settings, `--set METHOD.NAME=VALUE` where several methods train. "
            "`fleetune methods NAME --backbone ID` prints settings and counts for any backbone."
        ),
        md.paragraph(
            "Counts are of trainable parameters with two labels, encoder and head apart, made from the configs of "
            "roberta-base and all-MiniLM-L6-v2 without weights. The head of roberta-base is two layers, that of "
            "MiniLM one. A backbone whose checkpoint lacks its pooler has it counted and trained as part of the head."
        ),
        md.table(
            ["method", "what", "default learning rate", "source"],
            [
                [
                    f"[`{name}`](#{name})",
                    cls.summary,
                    f"{cls.default_learning_rate:g}",
                    cls.source,
                ]
                for name, cls in METHODS.items()
            ],
            right=(2,),
        ),
    ]
    for cls in METHODS.values():
        parts += _section(cls, maps)
    return md.page("Methods", parts)


def _section(cls: type[Method], maps: dict[str, SiteMap]) -> list[str]:
    parts = [f"## {cls.name}", *map(md.paragraph, about(cls))]
    parts.append(f"Source: {cls.source}. Default learning rate: {cls.default_learning_rate:g}.")
    if cls.model_fields:
        rows = [
            [md.code(name), md.kind_of(field), md.default_of(field), field.description or ""]
            for name, field in cls.model_fields.items()
        ]
        parts.append(md.table(["setting", "type", "default", "meaning"], rows))
    else:
        parts.append("It has no settings of its own.")
    told = departures(cls)
    if told:
        parts += ["Departures from the paper, or from peft:", md.points(told)]
    header = ["setting", *(f"{name}: {part}" for name in maps for part in ("encoder", "head"))]
    parts.append(md.table(header, counts(cls, maps), right=range(1, len(header))))
    parts.append(md.table(["ability", "", "meaning"], abilities(cls)))
    return parts
