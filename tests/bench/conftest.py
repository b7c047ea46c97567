"""A backbone of two layers for the benchmarks' own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backbone.hub import save_tiny


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, with a tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("bench") / "tiny")
