"""Which cells are measured, in which order, and what a cut leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.cells import Cell, Group, estimate, plan
from bench.store import Results, fingerprint, read

GROUP = Group("minilm", "rte", "mixed", (1, 8))
LORA = Group("minilm", "rte", "lora", (1, 2, 8))
ALL = ("fleetune", "trainer", "trainer-default", "processes", "adapters")


def planned(groups: list[Group], repeats: int = 2, **given) -> list[Cell]:
    return plan(groups, repeats, **{"sides": ALL, "loop_trials": 2, "processes": 4, **given})


def test_every_cell_has_its_own_name_and_every_size_is_there_in_every_repeat() -> None:
    cells = planned([GROUP, LORA])
    keys = [cell.key for cell in cells]
    assert len(keys) == len(set(keys))
    for repeat in (0, 1):
        assert {c.trials for c in cells if c.side == "fleetune" and c.repeat == repeat} == {1, 2, 8}
        assert f"minilm/rte/mixed/processes/K4/r{repeat}" in keys


def test_the_rate_is_measured_once_a_backbone_and_repeat_before_its_cells() -> None:
    cells = planned([GROUP, LORA])
    assert [c.key for c in cells if c.side == "rate"] == ["minilm/rate/r0", "minilm/rate/r1"]
    for repeat in (0, 1):
        assert next(c for c in cells if c.repeat == repeat).side == "rate"


def test_every_other_repeat_goes_backwards() -> None:
    order = {
        r: [c.key[:-3] for c in planned([GROUP]) if c.repeat == r and c.side != "rate"]
        for r in (0, 1)
    }
    assert order[0] == order[1][::-1]
    assert len(order[0]) > 2


def test_adapterhub_is_asked_for_lora_only() -> None:
    groups = {c.group.mix for c in planned([GROUP, LORA]) if c.side == "adapters"}
    assert groups == {"lora"}


def test_only_keeps_what_matches_and_the_rate_that_it_needs() -> None:
    keys = [c.key for c in planned([GROUP, LORA], 1, only=("rte/lora/fleetune/K8",))]
    assert keys == ["minilm/rate/r0", "minilm/rte/lora/fleetune/K8/r0"]


def test_a_larger_cohort_is_expected_to_take_longer() -> None:
    small, large = (Cell(GROUP, "fleetune", k, 0) for k in (1, 32))
    assert estimate(large, 128, "cpu", 2) > estimate(small, 128, "cpu", 2)


def test_a_finished_cell_is_on_the_disk_at_once_and_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cohort.json"
    Results(path, {"steps": 2}).add("a", {"seconds": 1.0})
    again = Results(path, {"steps": 2})
    assert again.done("a")
    assert again.cells["a"]["seconds"] == 1.0
    assert not again.done("b")


def test_a_failed_cell_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "cohort.json"
    Results(path, {}).add("a", {"failed": "no memory"})
    assert not Results(path, {}).done("a")


@pytest.mark.parametrize("fresh", [False, True])
def test_results_of_another_setup_are_set_aside_and_kept(tmp_path: Path, fresh: bool) -> None:
    path = tmp_path / "cohort.json"
    Results(path, {"steps": 2}).add("a", {"seconds": 1.0})
    after = Results(path, {"steps": 2 if fresh else 3}, fresh=fresh)
    assert not after.done("a")
    assert after.set_aside is not None
    assert "a" in json.loads(after.set_aside.read_text())["cells"]


def test_a_damaged_file_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "cohort.json"
    path.write_text('{"cells": ')
    with pytest.raises(ValueError, match="not JSON"):
        read(path)


def test_the_fingerprint_follows_what_is_measured_and_nothing_else(tmp_path: Path) -> None:
    from bench.store import MEASURING

    for name in ("src/fleetune/cohort/train.py", "src/fleetune/cli/main.py", "bench/tables.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a = 1\n")
    for name in MEASURING:
        (tmp_path / "bench" / f"{name}.py").write_text("a = 1\n")
    before = fingerprint(tmp_path)
    (tmp_path / "src/fleetune/cli/main.py").write_text("a = 2\n")
    (tmp_path / "bench/tables.py").write_text("a = 2\n")
    assert fingerprint(tmp_path) == before
    (tmp_path / "src/fleetune/cohort/train.py").write_text("a = 2\n")
    assert fingerprint(tmp_path) != before
