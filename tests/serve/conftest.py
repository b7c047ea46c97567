"""Saved models of every method, of pairs, of three classes and of targets, all on one tiny backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fleetune.study.prepare import DataSettings
from tests.runs import METHODS, Made, on_task, settings, train, write_csv, write_glue


@pytest.fixture(scope="session")
def places(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by the names that they are served by."""
    folder = tmp_path_factory.mktemp("served")
    short = {"seeds": [0], "max_steps": 2}
    file = write_csv(folder / "pairs.csv", 60, pairs=True)
    pairs = DataSettings(file=str(file), text_columns=("first", "second"), label_column="label")
    given = settings(made.folder, made.backbone, ["lora"], **short)
    train(folder / "pairs", replace(given, data=pairs))
    three = write_csv(folder / "three.csv", 60, labels=("bad", "fair", "good"))
    train(folder / "three", replace(given, data=DataSettings(file=str(three))))
    stsb = on_task(given, "stsb", write_glue(folder / "glue", "STS-B"))
    train(folder / "targets", stsb)
    own = {name: made.run / f"trials/{name}-s0" for name in METHODS}
    return {**own, **{name: folder / name for name in ("pairs", "three", "targets")}}
