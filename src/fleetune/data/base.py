"""What a data set is: `Split` (rows), `Task` (their meaning) and `Dataset` (both together).

Words: a row is one or two texts and a label. Labels are class numbers (int64 [n]) or, for
regression, targets (float64 [n]). Checksums are over content only, so the same rows from another
folder or format have the same one. Not covered: reading (sources.py, glue.py, demo.py), dividing
(splits.py), tokens (tokens.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class _Sink(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of one part of a data set. Two splits with equal checksums hold the same rows."""

    ids: tuple[str, ...]
    """Row names, unique within the split: GLUE's index or row number; own files: from 1."""
    first: tuple[str, ...]
    """The text, or the first text of a pair."""
    second: tuple[str, ...] | None
    """The second text of a pair."""
    labels: np.ndarray | None
    """int64 [n] class numbers or float64 [n] targets; None when unlabelled."""
    groups: tuple[str, ...] | None = None
    """Rows of one group stay on one side of every division; not part of the checksum."""

    def __post_init__(self) -> None:
        columns = {"first": self.first, "second": self.second, "labels": self.labels}
        for name, column in {**columns, "groups": self.groups}.items():
            if column is not None and len(column) != len(self.ids):
                raise ValueError(
                    f"`{name}` must be as long as `ids` ({len(self.ids)}), not {len(column)}."
                )
        if self.labels is not None and str(self.labels.dtype) not in ("int64", "float64"):
            raise ValueError(f"`labels` must be int64 or float64, not {self.labels.dtype}.")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The rows at these positions, in this order; a boolean mask marks the rows to take."""
        picks = np.asarray(indices)
        picks = np.flatnonzero(picks) if picks.dtype == np.bool_ else picks.astype(np.int64)

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[i] for i in picks.tolist())

        return Split(
            ids=pick(self.ids),
            first=pick(self.first),
            second=None if self.second is None else pick(self.second),
            labels=None if self.labels is None else self.labels[picks],
            groups=None if self.groups is None else pick(self.groups),
        )

    @property
    def checksum(self) -> str:
        """sha256 (hex) over texts and labels, in order."""
        found = hashlib.sha256()
        _add_strings(found, self.first)
        _add_strings(found, self.second)
        if self.labels is None:
            found.update(b"none;")
        else:
            kind = "<i8" if self.labels.dtype == np.int64 else "<f8"
            found.update(f"{kind}:{len(self)};".encode() + self.labels.astype(kind).tobytes())
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Task:
    """What a data set is, without its rows."""

    name: str
    columns: tuple[str, ...]
    """One or two text columns."""
    label_column: str
    label_names: tuple[str, ...]
    """Class names in the order of their numbers; () for regression."""
    metrics: tuple[str, ...]
    """Official metrics, names of metrics.py; the first is the main one."""
    regression: bool = False
    citation: str = ""

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return 1 if self.regression else len(self.label_names)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A task with its rows."""

    task: Task
    train: Split
    tests: Mapping[str, Split]
    """The labelled reported sets, main one first; may be empty until splits.py divides train."""
    source: str
    """"hub nyu-mll/glue@REVISION" or the last part of the path; never an absolute path."""

    @property
    def main_test(self) -> tuple[str, Split]:
        """The main reported set with its name. There must be one."""
        return next(iter(self.tests.items()))

    @property
    def checksum(self) -> str:
        """sha256 (hex) over the task's name, its label names and all splits."""
        found = hashlib.sha256()
        _add_strings(found, (self.task.name, *self.task.label_names))
        for name, split in {"train": self.train, **self.tests}.items():
            _add_strings(found, (name, split.checksum))
            # Groups do not change what a row is, but they change how rows are divided.
            _add_strings(found, split.groups)
        return found.hexdigest()


def _add_strings(found: _Sink, strings: Iterable[str] | None) -> None:
    """Add texts after their count and lengths, so that no two lists give the same bytes."""
    if strings is None:
        found.update(b"none;")
        return
    encoded = [text.encode("utf-8", "surrogatepass") for text in strings]
    found.update(f"text:{len(encoded)};".encode())
    found.update(np.array([len(text) for text in encoded], dtype="<i8").tobytes())
    found.update(b"".join(encoded))
