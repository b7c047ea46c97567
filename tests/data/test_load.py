"""Tasks by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetune.data import load
from fleetune.errors import SettingsError


def test_names() -> None:
    assert len(load.TASK_NAMES) == len(set(load.TASK_NAMES)) == 11


def test_unknown() -> None:
    with pytest.raises(SettingsError) as caught:
        load.load_task("rtee", None)
    assert 'task "rtee" is not known, did you mean "rte"' in str(caught.value)
    assert "--data FILE" in str(caught.value)


def test_each_goes_to_its_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "load_glue", lambda name, data_dir: ("glue", name, data_dir))
    monkeypatch.setattr(load, "load_demo", lambda name: ("demo", name))
    assert load.load_task("rte", tmp_path) == ("glue", "rte", tmp_path)
    assert load.load_task("demo-sentiment", None) == ("demo", "demo-sentiment")
