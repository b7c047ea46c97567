"""What somebody should know of a data set before its scores are believed, one sentence each."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fleetune.data.base import Dataset
from fleetune.data.overlap import Texts, labels_by_text, overlap_message, overlaps_of
from fleetune.errors import counted

_MOST_TOLD = 5
_SHOWN = 60
"""Characters of a text."""
_RARE, _SMALL = 5, 20
_MISSING = ("nan", "null", "n/a", "<na>", "nat")
"""What programs write where nothing is."""
_CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")
"""All of C1 but the line's end of some old systems."""
# With a hundred rows the interval of an accuracy reaches ten points to either side: more than methods differ by.
_FEW = 100
_Z = 1.959964  # the normal distribution's 97.5 % point


def notes_on(dataset: Dataset) -> list[str]:
    """What spoils scores: test rows that the training rows hold too, texts under several labels, characters that were misread,
    labels that may be one or none, labels without a test row, targets that are all the same."""
    labels = labels_by_text(dataset.train)
    shared = [
        overlap_message(name, found, len(dataset.tests[name]))
        for name, found in overlaps_of(labels, dataset.tests).items()
    ]
    if dataset.task.regression:
        return [*shared, *_constant(dataset)]
    return [
        *shared,
        *_relabelled(labels),
        *_misread(dataset),
        *_written_alike(dataset),
        *_no_label(dataset),
        *_untested(dataset),
    ]


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
    told = [
        f"{n} {name} rows are few: the 95% interval of an accuracy may reach {100 * _reach(n):.0f} points to either side"
        for name, n in few.items()
    ]
    return [*told, *_rare(dataset)]


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


def _relabelled(labels: Mapping[Texts, set[float]]) -> Iterator[str]:
    """Texts of train that stand there under more than one label."""
    several = [text for text, own in labels.items() if len(own) > 1]
    if several:
        are = "text of train stands" if len(several) == 1 else "texts of train stand"
        shown = several[0] if isinstance(several[0], str) else " | ".join(several[0])
        yield (
            f"{len(several)} {are} there under more than one label, and at most one of them can be right; the first is "
            f"{json.dumps(shown[:_SHOWN], ensure_ascii=False)}"
        )


def _misread(dataset: Dataset) -> Iterator[str]:
    """Control characters that no text holds, but a Windows-1252 file does that was read as ISO-8859-1."""
    found: list[str] = []
    for name, split in {"train": dataset.train, **dataset.tests}.items():
        texts = zip(split.first, split.second or split.first, strict=True)
        count = sum(any(map(_CONTROLS.search, own)) for own in texts)
        if count:
            found.append(f"{counted(count, 'row')} of {name}")
    if found:
        yield (
            f"control characters (U+0080 to U+009F) stand in {', '.join(found)}, as in text that was converted from ISO-8859-1 "
            "and is Windows-1252; convert the original file with `iconv -f WINDOWS-1252 -t UTF-8`"
        )


def _no_label(dataset: Dataset) -> Iterator[str]:
    for label in dataset.task.label_names:
        if label.strip().casefold() in _MISSING:
            yield f"the label {label} is taken for a class of its own; where it stands for a missing label, take its rows out"


def _rare(dataset: Dataset) -> Iterator[str]:
    """Labels that a test set has, but so few rows of that their scores say nothing; of a small set that is clear by itself."""
    for name, split in dataset.tests.items():
        if split.labels is None or len(split) < _SMALL:
            continue
        counts = Counter(split.labels.tolist())
        few = [
            f"{label} ({counts[k]})"
            for k, label in enumerate(dataset.task.label_names)
            if 0 < counts[k] < _RARE
        ]
        if few:
            more = f" and {len(few) - _MOST_TOLD} more" if len(few) > _MOST_TOLD else ""
            yield f"{name} has few rows of {', '.join(few[:_MOST_TOLD])}{more}: what it says of them is chance"


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
