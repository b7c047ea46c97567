"""Packing against a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.data.packing import Packed, pack
from fleetune.data.tokens import TokenTable


def table_of(rows: list[list[int]], *, types: bool) -> TokenTable:
    """A table of these rows; a token's segment is told from its number, to check both."""
    ids = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    type_ids = (ids % 2).astype(np.uint8) if types else None
    return TokenTable(ids=ids, offsets=offsets, type_ids=type_ids, truncated=0, max_length=99)


def plain(parts: list[tuple[list[list[int]], list[int], bool]]) -> dict[str, list[int] | None]:
    """Token by token."""
    ids: list[int] = []
    positions: list[int] = []
    offsets, trials = [0], [0]
    for rows, chosen, _ in parts:
        for row in chosen:
            for place, token in enumerate(rows[row]):
                ids.append(token)
                positions.append(place)
            offsets.append(len(ids))
        trials.append(trials[-1] + len(chosen))
    typed = all(types for _, _, types in parts)
    return {
        "ids": ids,
        "positions": positions,
        "type_ids": [token % 2 for token in ids] if typed else None,
        "offsets": offsets,
        "trials": trials,
    }


def check(found: Packed, expected: dict[str, list[int] | None]) -> None:
    for name, values in expected.items():
        array = getattr(found, name)
        if values is None:
            assert array is None, name
            continue
        assert array.dtype == np.int64, f"{name}: torch takes indices as int64"
        assert array.tolist() == values, name
    assert found.lengths.tolist() == np.diff(found.offsets).tolist()


ROWS = st.lists(st.lists(st.integers(0, 60_000), min_size=1, max_size=9), min_size=1, max_size=6)


@st.composite
def parts_of_trials(draw: Any) -> list[tuple[list[list[int]], list[int], bool]]:
    """Each trial's rows, which of them it brings (repeated, in any order), segments or not."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(ROWS)
        chosen = draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
        parts.append((rows, chosen, draw(st.booleans())))
    return parts


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(parts=parts_of_trials())
def test_packing_is_the_plain_loop(parts: list[tuple[list[list[int]], list[int], bool]]) -> None:
    given_parts = [
        (table_of(rows, types=types), np.array(chosen, dtype=np.int64))
        for rows, chosen, types in parts
    ]
    check(pack(given_parts), plain(parts))


def test_one_token() -> None:
    check(pack([(table_of([[7]], types=True), np.array([0]))]), plain([([[7]], [0], True)]))


@pytest.mark.parametrize("chosen", [[[], [1, 0]], [[1, 0], []], [[], []]], ids=str)
def test_trial_without_rows_holds_its_place(chosen: list[list[int]]) -> None:
    rows = [[1, 2], [3]]
    table = table_of(rows, types=True)
    found = pack([(table, np.array(own, dtype=np.int64)) for own in chosen])
    check(found, plain([(rows, own, True) for own in chosen]))


def test_a_trial_may_bring_several_micro_batches() -> None:
    rows = [[1, 2], [3], [4, 5, 6]]
    given = [(table_of(rows, types=True), np.array(own)) for own in ([2, 0], [1], [0, 1, 2])]
    whole, sliced = pack(given), pack(given, [2, 1])
    assert np.array_equal(sliced.ids, whole.ids)
    assert (
        sliced.batches.tolist() == whole.trials.tolist() == whole.batches.tolist() == [0, 2, 3, 6]
    )
    assert sliced.trials.tolist() == [0, 3, 6]


def test_trials_may_share_a_table() -> None:
    """And packing does not write into it."""
    rows = [[1, 2], [3], [4, 5, 6]]
    table = table_of(rows, types=False)
    found = pack([(table, np.array([2, 0])), (table, np.array([1, 2, 2]))])
    check(found, plain([(rows, [2, 0], False), (rows, [1, 2, 2], False)]))
    found.ids[:] = 0
    assert table.ids.tolist() == [1, 2, 3, 4, 5, 6]
