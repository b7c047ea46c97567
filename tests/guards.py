"""Guards around every test: a plugin that conftest.py names, whose fixtures pytest applies by itself.

Every test runs on one thread, offline, with a token cache of its own session, and must leave the global generators of
torch and numpy where they were: draws come from named streams (`fleetune.seeds`), so that no test depends on another.

FLEETUNE_TEST_BUDGET=2100 starts no further slow test once so many seconds have passed, and the summary lists those left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

BUDGET = float(os.environ.get("FLEETUNE_TEST_BUDGET", "inf"))
BEGAN = time.monotonic()


# These take longest. Taken up last, one of them would leave the other worker idle (`--no-loadscope-reorder` keeps this order).
FIRST = (
    "tests/torture/test_short.py",
    "tests/study/test_run.py",
    "tests/report/test_page.py",
    "tests/cohort/test_parity.py",
    "tests/study/",
    "tests/backbone/test_attention.py",
    "tests/hostile/",
    "tests/cohort/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first; within a module, and among the others, the order stays."""

    def place(item: pytest.Item) -> int:
        found = (i for i, start in enumerate(FIRST) if item.nodeid.startswith(start))
        return next(found, len(FIRST))

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what does not fit in the time that slow tests may take."""
    if item.get_closest_marker("slow") and time.monotonic() - BEGAN > BUDGET:
        pytest.skip(f"the {BUDGET:.0f} s for slow tests are used up; `make test-slow` runs all")


def _global_state() -> tuple[bytes, bytes]:
    """Where torch's and numpy's global generators stand."""
    _, keys, *rest = np.random.get_state()
    numpy_state = np.asarray(keys).tobytes() + repr(rest).encode()
    return torch.random.get_rng_state().numpy().tobytes(), numpy_state


@pytest.fixture(autouse=True)
def generators_stay() -> Iterator[None]:
    """Fail a test that draws from a global generator, or seeds one."""
    before = _global_state()
    yield
    moved = [
        name
        for name, old, new in zip(("torch", "numpy"), before, _global_state(), strict=True)
        if old != new
    ]
    if moved:
        pytest.fail(
            f"the test moved the global generator of {' and '.join(moved)}; draw from `fleetune.seeds`, "
            "or put what other libraries draw inside `torch.random.fork_rng(devices=[])`",
            pytrace=False,
        )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Processes of one thread each: threads of two test processes on two cores wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tokens go to a folder of this session, and no test asks a hub unless it sets the variable itself."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETUNE_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder
