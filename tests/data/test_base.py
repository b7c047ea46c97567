"""Splits, tasks and data sets: rows taken, and checksums that tell contents apart."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.data.base import Dataset, Split, Task

TASK = Task("mine", ("text",), "label", ("no", "yes"), ("accuracy", "f1"))


def split(first: list[str], second: list[str] | None = None, labels: object = None) -> Split:
    return Split(
        ids=tuple(map(str, range(len(first)))),
        first=tuple(first),
        second=None if second is None else tuple(second),
        labels=None if labels is None else np.array(labels),
    )


def test_take() -> None:
    whole = split(["a", "b", "c"], ["d", "e", "f"], [0, 1, 0])
    part = whole.take([2, 0])
    assert (part.ids, part.first, part.second) == (("2", "0"), ("c", "a"), ("f", "d"))
    assert part.labels is not None and part.labels.tolist() == [0, 0]
    assert len(part) == 2
    assert whole.take(np.array([True, False, True])).first == ("a", "c")
    assert len(whole.take([])) == 0
    assert split(["a"]).take([0]).labels is None


def test_lengths_and_types_are_checked() -> None:
    with pytest.raises(ValueError, match="`second` must be as long"):
        split(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="int64 or float64"):
        Split(("0",), ("a",), None, np.array([1], dtype=np.int32))


SAME_JOINED = [
    split(["ab", "c"]),
    split(["a", "bc"]),
    split(["abc"]),
    split(["abc", ""]),
    split(["a"], ["bc"]),
    split(["ab"], ["c"]),
    split(["abc"], labels=[0]),
    split(["abc"], labels=[1]),
    split(["abc"], labels=[0.0]),
    split([]),
    split([], []),
]


def test_checksums_differ() -> None:
    assert len({part.checksum for part in SAME_JOINED}) == len(SAME_JOINED)


def test_checksum_is_of_texts_and_labels_only() -> None:
    a = Split(("1", "2"), ("a", "b"), None, np.array([0, 1]))
    b = Split(("x", "y"), ("a", "b"), None, np.array([0, 1]), groups=("g", "h"))
    assert a.checksum == b.checksum
    assert Dataset(TASK, a, {}, "here").checksum == Dataset(TASK, a, {}, "there").checksum
    assert Dataset(TASK, a, {}, "here").checksum != Dataset(TASK, b, {}, "here").checksum
    assert Dataset(TASK, a, {"test": a}, "").checksum != Dataset(TASK, a, {}, "").checksum


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_checksum_is_unambiguous(one: list[str], other: list[str]) -> None:
    assert (split(one).checksum == split(other).checksum) == (one == other)


def test_task_and_pickling() -> None:
    assert TASK.main_metric == "accuracy"
    part = split(["a", "b"], labels=[1, 0])
    again = pickle.loads(pickle.dumps(part))  # workers get their data this way
    assert again.checksum == part.checksum
