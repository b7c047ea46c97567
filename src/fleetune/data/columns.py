"""Which columns of an own file hold the text(s) and the label, when nobody said.

First by name, in the order of the tables below, without regard to case. Else by content: the label
is the column with the fewest distinct values (at least two, and fewer than there are rows), the
text the one with the longest mean. A tie is an error, never a guess; so is a label column in CSV or TSV
whose own name stands among its values, since the file may have no header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleetune.data.formats import Format, Header, lone_header
from fleetune.errors import DataError

TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("text", "text_pair"),
)
TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "question",
    "comment",
    "message",
    "document",
    "body",
)
LABELS = ("label", "labels", "target", "class", "sentiment", "category")

MAX_CLASSES = 1000
"""More classes than this are taken for a mistake: a text column, or numbers to be predicted."""


@dataclass(slots=True)
class _Content:
    """What is known of a column after a pass over the file."""

    characters: int = 0
    distinct: set[str] = field(default_factory=set[str])


def guess(
    path: Path, form: Format, header: Header, texts: Sequence[str] | None, label: str | None
) -> tuple[tuple[str, ...], str]:
    """The text columns and the label column; what is given is kept. DataError when unclear."""
    label = label or _label_by_name(header, texts or ())
    texts = tuple(texts) if texts else texts_by_name(header, (label,) if label else ())
    if texts and label:
        return texts, label
    contents, rows = _contents(path, form, header)
    if label is None:
        label = _label_by_content(path, header, contents, rows, texts or ())
        if form.headed and label in contents[label].distinct:
            told = f'line 1 looks like a row, not a header: "{label}" stands below it too'
            raise DataError(str(path), [f"{told}; add a header line, or name the columns"])
    return texts or _text_by_content(path, header, contents, label), label


def texts_by_name(header: Header, taken: Sequence[str]) -> tuple[str, ...] | None:
    """The text columns by their names, or None when no name is known."""
    for columns in (header.texts, (*header.texts, *_odd(header))):
        free = _by_name(columns, taken)
        for first, second in TEXT_PAIRS:
            if first in free and second in free:
                return free[first], free[second]
        if (single := next((free[name] for name in TEXTS if name in free), None)) is not None:
            return (single,)
    return None


def _by_name(columns: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Free columns by their names without case; where several differ in case alone, the one in small letters, else the first."""
    found: dict[str, str] = {}
    for name in columns:
        if name not in taken and (name == name.casefold() or name.casefold() not in found):
            found[name.casefold()] = name
    return found


def _odd(header: Header) -> tuple[str, ...]:
    """Columns of a kind that nothing can be made of; one with a known name is taken, and its reader says what is wrong."""
    return tuple(name for name in header.columns if name not in header.scalars)


def only_text(path: Path, header: Header) -> tuple[str, ...]:
    """The text columns of a file without labels: by name, or the only column that holds text."""
    found = texts_by_name(header, ())
    if found is None and len(header.texts) == 1 and lone_header(header.columns) is None:
        found = (header.texts[0],)
    if found is None:
        raise _cannot_tell(path, header, "which column holds the text", "--text-column")
    return found


def _label_by_name(header: Header, taken: Sequence[str]) -> str | None:
    for columns in (header.scalars, _odd(header)):
        free = _by_name(columns, taken)
        if (label := next((free[name] for name in LABELS if name in free), None)) is not None:
            return label
    return None


def _contents(path: Path, form: Format, header: Header) -> tuple[dict[str, _Content], int]:
    contents = {name: _Content() for name in header.scalars}
    problems: list[str] = []
    rows = 0
    for _, cells in form.rows(path, header.scalars, frozenset(header.scalars), problems, False):
        rows += 1
        for content, cell in zip(contents.values(), cells, strict=True):
            content.characters += len(cell)
            if len(content.distinct) <= MAX_CLASSES:
                content.distinct.add(cell)
    if problems and not rows:
        raise DataError(str(path), problems)
    return contents, rows


def _label_by_content(
    path: Path, header: Header, contents: dict[str, _Content], rows: int, taken: Sequence[str]
) -> str:
    counts = {
        name: len(content.distinct)
        for name, content in contents.items()
        if name not in taken and 2 <= len(content.distinct) < min(rows, MAX_CLASSES + 1)
    }
    fewest = [name for name, count in counts.items() if count == min(counts.values())]
    if len(fewest) != 1:
        raise _cannot_tell(path, header, "which column holds the label", "--label-column")
    return fewest[0]


def _text_by_content(
    path: Path, header: Header, contents: dict[str, _Content], label: str
) -> tuple[str, ...]:
    lengths = {name: contents[name].characters for name in header.texts if name != label}
    longest = [name for name, length in lengths.items() if length == max(lengths.values())]
    if len(longest) != 1:
        raise _cannot_tell(path, header, "which column holds the text", "--text-column")
    return (longest[0],)


def _cannot_tell(path: Path, header: Header, what: str, flag: str) -> DataError:
    there = ", ".join(header.columns)
    remedy = lone_header(header.columns) or f"name it with {flag}"
    return DataError(str(path), [f"it cannot be told {what}; {remedy}; the columns are: {there}"])
