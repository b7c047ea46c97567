"""Rows of a test set whose text(s) the training rows hold too: what a model knows by heart there is not what it has learned.

Compared are whole texts, as they stand; nothing is left out of either side. Rows that differ by a blank are not found. A test
set that Fleetune holds out itself (splits.py) has none, since rows with the same texts stay together there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fleetune.data.base import Dataset, Split

Texts = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of one test set."""

    rows: int
    """Rows of the test set whose text(s) stand in train too."""
    relabelled: int
    """Those of them that never have this label in train."""


def overlaps(dataset: Dataset) -> dict[str, Overlap]:
    """The overlap with train of each test set that has one."""
    return overlaps_with(dataset.train, dataset.tests)


def overlaps_with(train: Split, tests: Mapping[str, Split]) -> dict[str, Overlap]:
    """The same of any rows; classes are numbered alike on both sides."""
    return overlaps_of(labels_by_text(train), tests)


def labels_by_text(rows: Split) -> dict[Texts, set[float]]:
    """The labels under which each text, or pair of texts, stands."""
    labels: dict[Texts, set[float]] = {}
    for text, label in _rows(rows):
        labels.setdefault(text, set()).add(label)
    return labels


def overlaps_of(
    labels: Mapping[Texts, set[float]], tests: Mapping[str, Split]
) -> dict[str, Overlap]:
    """The same, where the labels of train by their texts are known."""
    found: dict[str, Overlap] = {}
    for name, split in tests.items():
        shared = [(text, label) for text, label in _rows(split) if text in labels]
        if shared:
            other = sum(label not in labels[text] for text, label in shared)
            found[name] = Overlap(len(shared), other)
    return found


def overlap_message(name: str, found: Overlap, rows: int) -> str:
    """One sentence for people."""
    other = f", {found.relabelled} of them under another label" if found.relabelled else ""
    return (
        f"{found.rows} of the {rows} rows of {name} stand in train too{other}: scores on them say what was learned by heart; "
        "take them out of one of the two"
    )


def _rows(split: Split) -> Iterator[tuple[Texts, float]]:
    """The text, or both of a pair, and the label of each row."""
    assert split.labels is not None
    texts = split.first if split.second is None else zip(split.first, split.second, strict=True)
    yield from zip(texts, split.labels.tolist(), strict=True)
