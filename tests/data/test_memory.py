"""Rows that a program holds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fleetune.data.memory import as_jsonl, records_of
from fleetune.errors import DataError


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA, pd.NaT, np.float32("nan")])
def test_what_a_frame_lacks_is_null(missing: Any) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1, 0], "note": pd.Series(["x", missing], dtype=object)})  # fmt: skip
    lines = [json.loads(line) for line in as_jsonl(records_of(frame)).splitlines()]
    assert lines == [
        {"text": "a", "label": 1, "note": "x"},
        {"text": "b", "label": 0, "note": None},
    ]


def test_a_column_that_is_not_asked_for_may_hold_anything() -> None:
    """Names that JSON has no form for, and a cell that holds itself."""
    circle: list[Any] = []
    circle.append(circle)
    given = [
        {"text": "a", "label": np.int64(1), "note": note}
        for note in ({(1, 2): 3}, circle, {4}, [1.0, np.nan])
    ]
    lines = [json.loads(line) for line in as_jsonl(given).splitlines()]
    assert [(line["text"], line["label"]) for line in lines] == [("a", 1)] * 4
    assert [line["note"] for line in lines] == [
        {"type": name} for name in ("dict", "list", "set", "list")
    ]


def test_a_column_name_stands_once() -> None:
    frame = pd.DataFrame([["a", 1, 2]], columns=["text", "label", "label"])
    with pytest.raises(DataError, match="column label: this name stands twice"):
        records_of(frame)
