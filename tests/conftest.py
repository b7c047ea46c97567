"""Fixtures for all tests: a tiny backbone, and finished runs that many tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import runs
from tests.backbone.hub import save_tiny

# Guards that apply to every test because they are known here.
from tests.guards import generators_stay, one_thread, own_environment  # noqa: F401


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of two layers and its tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty own rows with two labels."""
    return runs.write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", 60)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, reviews: Path) -> Path:
    """A run of all four methods with two seeds. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    runs.train(folder, runs.settings(tiny_backbone, reviews))
    return folder
