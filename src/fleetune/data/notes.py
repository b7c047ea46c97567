"""What somebody should know of a data set before its scores are believed, one sentence each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from fleetune.data.base import Dataset
from fleetune.data.overlap import overlap_message, overlaps
from fleetune.errors import counted

_MOST_TOLD = 5
# With a hundred rows the interval of an accuracy reaches ten points to either side: more than methods differ by.
_FEW = 100
_Z = 1.959964  # the normal distribution's 97.5 % point


def notes_on(dataset: Dataset) -> list[str]:
    """What spoils scores: test rows that the training rows hold too, labels that may be one, labels without a test row, targets
    that are all the same."""
    shared = [
        overlap_message(name, found, len(dataset.tests[name]))
        for name, found in overlaps(dataset).items()
    ]
    if dataset.task.regression:
        return [*shared, *_constant(dataset)]
    return [*shared, *_written_alike(dataset), *_untested(dataset)]


def of_f1(metrics: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Which class an F1 of two is about, where that is a metric."""
    return (
        [f"f1 is that of the label {labels[1]} alone, the second in order"]
        if "f1" in metrics
        else []
    )


def few_rows(dataset: Dataset) -> list[str]:
    """How little test sets of few rows can say. The intervals of the results say it too, once the training is paid for."""
    few = {name: len(rows) for name, rows in dataset.tests.items() if len(rows) < _FEW}
    if dataset.task.regression:
        return [
            f"{n} {name} rows are few: the 95% interval of a correlation may reach {_reach_of_r(n):.2f} to either side"
            for name, n in few.items()
        ]
    return [
        f"{n} {name} rows are few: the 95% interval of an accuracy may reach {100 * _reach(n):.0f} points to either side"
        for name, n in few.items()
    ]


def cut_rows(count: int, what: str, max_length: int) -> str:
    """That rows lost their end."""
    are, were = ("is", "was") if count == 1 else ("are", "were")
    return f"{counted(count, 'row')} of {what} {are} longer than {max_length} tokens and {were} cut"


def _reach_of_r(n: int) -> float:
    """Half of Fisher's interval at a correlation of 0, where it is widest."""
    return math.tanh(_Z / math.sqrt(n - 3)) if n > 3 else 1.0


def _constant(dataset: Dataset) -> Iterator[str]:
    for name, split in {"train": dataset.train, **dataset.tests}.items():
        if split.labels is not None and len(split) and (split.labels == split.labels[0]).all():
            what = (
                "there is nothing to learn"
                if name == "train"
                else "correlations with them do not exist, and stand as 0"
            )
            yield f"every target of {name} is {split.labels[0]:g}, so {what}"


def _reach(n: int) -> float:
    """Half of Wilson's interval at a share of one half, where it is widest."""
    return _Z / (2 * math.sqrt(n + _Z**2))


def _written_alike(dataset: Dataset) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for label in dataset.task.label_names:
        alike.setdefault(" ".join(label.split()).casefold(), []).append(
            json.dumps(label, ensure_ascii=False)
        )
    for written in [found for found in alike.values() if len(found) > 1][:_MOST_TOLD]:
        yield f"the labels {', '.join(written)} differ in case or spaces alone, and are taken for different ones"


def _untested(dataset: Dataset) -> Iterator[str]:
    names = dataset.task.label_names
    for name, split in dataset.tests.items():
        if split.labels is None:
            continue
        seen = set(split.labels.tolist())
        missing = [label for k, label in enumerate(names) if k not in seen]
        if missing:
            more = f" and {len(missing) - _MOST_TOLD} more" if len(missing) > _MOST_TOLD else ""
            told = f"{', '.join(missing[:_MOST_TOLD])}{more}"
            yield f"no {name} row has the label {told}, so nothing will be known about it"
