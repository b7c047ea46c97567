"""A page as a reader without eyes meets it: elements, visible text, tables, by the standard library's parser alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset(("meta", "br", "link", "img", "input", "hr"))
_BLOCKS = frozenset(
    (
        "p",
        "li",
        "dt",
        "dd",
        "h1",
        "h2",
        "h3",
        "caption",
        "th",
        "td",
        "figcaption",
        "summary",
        "title",
        "desc",
        "pre",
        "div",
    )
)


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    within: tuple[str, ...]


@dataclass
class Table:
    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)


class Page(HTMLParser):
    """`elements` in order, `text` of all but style and script, `tables` with the text of their cells."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.tables: list[Table] = []
        self._stack: list[str] = []
        self._text: list[str] = []
        self._drawn: list[str] = []
        self.feed(source)
        self.close()
        assert not self._stack, f"left open: {self._stack}"

    @property
    def text(self) -> str:
        """What is read aloud: no style, no script, no ticks of pictures."""
        return re.sub(r"[ \n]+", " ", "".join(self._text))

    @property
    def drawn(self) -> list[str]:
        """The texts within the pictures."""
        return self._drawn

    def table(self, start: str) -> Table:
        """The one whose caption starts so."""
        (found,) = [t for t in self.tables if t.caption.startswith(start)]
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {k: v or "" for k, v in attrs}, tuple(self._stack)))
        if tag == "table":
            self.tables.append(Table())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th"):
            self.tables[-1].rows[-1].append("")
        if tag not in VOID:
            self._stack.append(tag)
        if tag in _BLOCKS:
            self._text.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._stack and self._stack[-1] == tag, f"</{tag}> closes {self._stack[-1:]}"
        self._stack.pop()
        if tag in _BLOCKS:
            self._text.append(" ")

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._stack):
            return
        if "svg" in self._stack and self._stack[-1] not in ("title", "desc"):
            self._drawn.append(data)
            return
        self._text.append(data)
        if "caption" in self._stack:
            self.tables[-1].caption += data
        elif {"td", "th"} & set(self._stack):
            self.tables[-1].rows[-1][-1] += data
