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


def test_a_column_name_stands_once() -> None:
    frame = pd.DataFrame([["a", 1, 2]], columns=["text", "label", "label"])
    with pytest.raises(DataError, match="column label: this name stands twice"):
        records_of(frame)
