"""Divisions of data: what they promise, for any rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.data.base import Split
from fleetune.data.splits import _stratum_of_units, folds, holdout, subset, three_way
from fleetune.errors import DataError


def split(
    texts: list[str], labels: list[int] | list[float], groups: list[str] | None = None
) -> Split:
    return Split(
        ids=tuple(map(str, range(len(texts)))),
        first=tuple(texts),
        second=None,
        labels=np.array(labels),
        groups=None if groups is None else tuple(groups),
    )


def distinct(n: int, classes: int) -> Split:
    return split([f"text {i}" for i in range(n)], [i % classes for i in range(n)])


@st.composite
def rows(draw: st.DrawFn) -> Split:
    """Rows with repeated texts, where a text has one label, and some groups."""
    n = draw(st.integers(2, 60))
    texts = draw(st.lists(st.integers(0, n), min_size=n, max_size=n))
    label_of = draw(st.lists(st.integers(0, 3), min_size=n + 1, max_size=n + 1))
    grouped = draw(st.booleans())
    groups = draw(st.lists(st.integers(0, n), min_size=n, max_size=n)) if grouped else None
    return split(
        [str(text) for text in texts],
        [label_of[text] for text in texts],
        None if groups is None else [str(group) for group in groups],
    )


def check(whole: Split, one: np.ndarray, other: np.ndarray) -> None:
    """Sorted, disjoint, covering; neither empty; no text and no group on both sides."""
    assert one.dtype == other.dtype == np.int64
    assert len(one) and len(other)
    for side in (one, other):
        assert (np.diff(side) > 0).all()
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(len(whole)))
    left, right = whole.take(one), whole.take(other)
    assert not set(left.first) & set(right.first)
    assert not set(left.groups or ()) & set(right.groups or ())


@settings(max_examples=100, deadline=None)
@given(rows(), st.integers(0, 5), st.sampled_from([None, 0.1, 0.5, 0.9]))
def test_any_rows(whole: Split, seed: int, share: float | None) -> None:
    try:
        one, other = holdout(whole, False, seed, share)
    except DataError:
        assert len(set(whole.first)) == 1 or whole.groups is not None
        return
    check(whole, one, other)
    if whole.groups is None:
        assert whole.labels is not None
        for label in np.unique(whole.labels):
            here = whole.labels == label
            if len({whole.first[i] for i in np.flatnonzero(here)}) >= 2:
                assert here[one].any() and here[other].any()
    check(whole, *three_way(whole))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 5) | st.sampled_from([0.0, 1.0, 5.0]), min_size=2, max_size=80),
    st.integers(0, 3),
)
def test_any_targets(targets: list[float], seed: int) -> None:
    whole = split([str(i) for i in range(len(targets))], targets)
    check(whole, *holdout(whole, True, seed))
    check(whole, *three_way(whole))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=2, max_size=60),
    st.integers(0, 3),
)
def test_one_text_with_several_labels(pairs: list[tuple[int, int]], seed: int) -> None:
    whole = split([str(text) for text, _ in pairs], [label for _, label in pairs])
    if len(set(whole.first)) > 1:
        check(whole, *holdout(whole, False, seed))


@pytest.mark.parametrize(
    ("n", "size"),
    [(10, 2), (300, 30), (2490, 249), (9999, 999), (10_000, 1000), (67_349, 1346), (150_000, 2000)],
)
def test_sizes(n: int, size: int) -> None:
    one, other = holdout(distinct(n, 2), False, 0)
    assert (len(one), len(other)) == (n - size, size)


def test_strata_keep_their_shares() -> None:
    whole = split([str(i) for i in range(1000)], [int(i % 10 == 0) for i in range(1000)])
    _, held = holdout(whole, False, 3)
    assert whole.labels is not None
    assert np.bincount(whole.labels[held]).tolist() == [90, 10]
    targets = split([str(i) for i in range(1000)], [i / 200 for i in range(1000)])
    _, held = holdout(targets, True, 3)
    assert np.bincount(held // 100).tolist() == [10] * 10


def test_folds_spread_each_class_evenly_beside_a_text_of_many_rows() -> None:
    texts = ["the same"] * 10 + [f"a{i}" for i in range(4)] + [f"b{i}" for i in range(20)]
    whole = split(texts, [0] * 14 + [1] * 20)
    assert whole.labels is not None
    for seed in range(5):
        parts = folds(whole, False, 5, seed)
        assert [int(whole.labels[held].sum()) for _, held in parts] == [4] * 5


def test_a_text_is_of_the_class_of_most_of_its_rows_and_on_a_tie_of_the_lower() -> None:
    labels, texts = np.array([0, 1, 1, 1, 0, 0]), np.array([0, 0, 0, 1, 1, 2])
    assert _stratum_of_units(labels, texts).tolist() == [1, 0, 0]


def test_share() -> None:
    assert len(holdout(distinct(100, 2), False, 0, 0.3)[1]) == 30
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="0 < share < 1"):
            holdout(distinct(100, 2), False, 0, share)


def test_a_seed_is_a_division() -> None:
    whole = distinct(500, 2)
    first, again, other = (holdout(whole, False, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_the_test_set_is_the_same_every_time() -> None:
    whole = distinct(500, 2)
    (train, test), (again, same) = three_way(whole), three_way(whole)
    assert len(test) == 50 and test.tolist() == same.tolist() and train.tolist() == again.tolist()
    assert holdout(whole, False, 0)[1].tolist() != test.tolist()


def test_pairs_are_equal_only_when_both_texts_are() -> None:
    whole = Split(("0", "1"), ("a", "a"), ("b", "c"), np.array([0, 0]))
    one, other = holdout(whole, False, 0)
    assert len(one) == len(other) == 1


def test_groups_chain() -> None:
    """Rows that share a text or a group, directly or through others, stay together."""
    whole = split(["a", "a", "b", "c"], [0, 1, 0, 1], ["g", "h", "h", "i"])
    one, other = holdout(whole, False, 0)
    assert {tuple(one.tolist()), tuple(other.tolist())} == {(0, 1, 2), (3,)}


def test_unlabelled_and_undividable() -> None:
    whole = Split(("0", "1", "2"), ("a", "b", "c"), None, None)
    check(whole, *holdout(whole, False, 0))
    with pytest.raises(DataError, match="at least two different"):
        holdout(split(["a", "a"], [0, 1]), False, 0)
    with pytest.raises(DataError, match="at least two different"):
        three_way(Split((), (), None, None))


def test_a_subset_is_stratified_and_the_same_every_time() -> None:
    whole = split([f"text {i}" for i in range(400)], [int(i % 4 == 0) for i in range(400)])
    rows = subset(whole, False, 80)
    assert len(rows) == len(set(rows.tolist())) == 80
    assert int(whole.take(rows).labels.sum()) == 20
    assert rows.tolist() == subset(whole, False, 80).tolist() != sorted(range(80))


def test_a_subset_keeps_equal_texts_together() -> None:
    whole = split([f"text {i // 4}" for i in range(200)], [i // 4 % 2 for i in range(200)])
    rows = subset(whole, False, 40)
    inside = set(whole.take(rows).first)
    assert {i for i in range(200) if whole.first[i] in inside} == set(rows.tolist())
