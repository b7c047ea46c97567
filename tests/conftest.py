"""Fixtures for all tests: a tiny backbone with rows to train on, and a finished run that many tests read."""

from __future__ import annotations

import signal

import pytest

from tests import runs
from tests.backbone.hub import save_tiny

# A shell that starts the tests in the background lets them ignore Ctrl-C, and with them every command that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("tests.guards",)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> runs.Made:
    """A BERT of two layers, rows with two labels, and a run of all four methods. Tests only read them."""
    folder = tmp_path_factory.mktemp("made")
    backbone = save_tiny(folder / "tiny")
    runs.write_csv(folder / "train.csv", 60)
    runs.write_csv(folder / "test.csv", 24, seed=7)
    runs.train(folder / "run", runs.settings(folder, backbone))
    return runs.Made(folder, backbone, folder / "run")
