"""The little Markdown that the generated pages are made of."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

WIDTH = 130
NOTE = "<!-- Written by `make docs` from the code. Change the code, not this page. -->"


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page: note, title, parts, with one blank line between them."""
    return "\n\n".join([NOTE, f"# {title}", *(part.strip("\n") for part in parts)]) + "\n"


def paragraph(text: str) -> str:
    """Running text, broken at the width of prose."""
    return _fill(text)


def points(items: Iterable[str]) -> str:
    """A list with one point an item."""
    return "\n".join(_fill(item, "- ", "  ") for item in items)


_HELD = "\0"


def _fill(text: str, first: str = "", later: str = "") -> str:
    """Break text at the width of prose, but never within `inline code`."""
    one_line = re.sub(r"`[^`]*`", lambda m: m[0].replace(" ", _HELD), " ".join(text.split()))
    filled = textwrap.fill(
        one_line,
        WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_HELD, " ")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table; `right` names the columns that hold numbers."""
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    lines = [list(header), rule, *([cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without those of its last columns in which nothing stands."""
    while len(header) > 1 and all(row[len(header) - 1] in ("", "-") for row in rows):
        header = header[:-1]
    return table(header, [row[: len(header)] for row in rows])


def cell(text: str) -> str:
    """Text that cannot end its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Inline code."""
    return f"`{text}`" if text else ""


def block(text: str, language: str = "console") -> str:
    """A fenced block."""
    return f"```{language}\n{text}\n```"


def default_of(field: FieldInfo) -> str:
    """A setting's default as a user would write it; a dash where none is set."""
    value = field.get_default(call_default_factory=True)
    if value is None or value == {}:
        return "-"
    return code(shown(value))


def shown(value: Any) -> str:
    """A value as a user would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        members: Sequence[Any] = value
        return ",".join(shown(v) for v in members)
    return str(value)


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_KINDS: dict[Any, str] = {
    int: "integer", float: "number", bool: "true or false", str: "text", dict: "JSON object",
}  # fmt: skip


def kind_of(field: FieldInfo) -> str:
    """The type of a setting in words, with its bounds."""
    bounds = [
        f"{sign} {shown(getattr(rule, name))}"
        for rule in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(annotation: Any) -> str:
    if annotation in _KINDS:
        return _KINDS[annotation]
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(code(shown(v)) for v in get_args(annotation))
    if origin in (tuple, list, set, frozenset):
        return "list of names" if str in get_args(annotation) else "list"
    if origin in _KINDS:
        return _KINDS[origin]
    members = [_kind(a) for a in get_args(annotation) if a is not type(None)]
    return " or ".join(dict.fromkeys(members)) if members else str(annotation)


def paragraphs(docstring: str | None) -> list[str]:
    """The paragraphs of a docstring, without its first line, each as one line."""
    parts = re.split(r"\n\s*\n", (docstring or "").strip())
    return [" ".join(part.split()) for part in parts[1:] if part.strip()]
