"""What many tests share: a tiny backbone, small data, and one finished run, made once a session."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import Made


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tokens of these tests go to a folder of their own, not to the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETUNE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def made(token_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All four methods with two seeds on small CSV files."""
    from tests.backbone.hub import save_tiny
    from tests.runs import settings, train, write_csv

    folder = tmp_path_factory.mktemp("made")
    with contextlib.redirect_stderr(io.StringIO()):  # transformers draws a bar
        save_tiny(folder / "backbone")
    write_csv(folder / "train.csv", 60)
    write_csv(folder / "test.csv", 24, seed=7)
    train(folder / "run", settings(folder, folder / "backbone"))
    return Made(folder, folder / "backbone", folder / "run")
