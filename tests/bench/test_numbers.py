"""What is reported follows from the cells: ratios, shares, memory, tables. Expected values are worked out by hand here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.breakdown import kind_of
from bench.rate import attention_operations, frozen_operations, matrix_shapes
from bench.summary import summarise
from bench.tables import filled

from bench import memory, startup, tables


def cell(seconds: float, examples: int, tokens: int, **more) -> dict:
    return {
        "seconds": seconds, "examples": examples, "tokens": tokens, "trials": 2, "peak_mib": 700.0,
        "frozen_operations": 10.0 * tokens, "dtype": "bfloat16", **more,
    }  # fmt: skip


def results(**cells: dict) -> dict:
    return {"setup": {"steps": 5, "code": "x"}, "cells": {k.replace("__", "/"): c for k, c in cells.items()}}  # fmt: skip


TOLD = results(
    m__rate__r0={"bfloat16": 1000.0, "float32": 500.0},
    m__rate__r1={"bfloat16": 2000.0, "float32": 400.0},
    m__rte__lora__fleetune__K2__r0=cell(10.0, 100, 1000),
    m__rte__lora__fleetune__K2__r1=cell(20.0, 100, 1000),
    m__rte__lora__trainer__K2__r0=cell(40.0, 100, 1000),
    m__rte__lora__trainer__K2__r1=cell(120.0, 100, 1000),
)


def test_ratios_are_taken_within_a_repeat() -> None:
    (row,) = summarise(TOLD)
    assert row["peers"]["trainer"]["ratio"] == {"median": 5.0, "low": 4.0, "high": 6.0, "n": 2}
    assert row["examples_per_second"] == {"median": 7.5, "low": 5.0, "high": 10.0, "n": 2}


def test_the_share_of_the_limit_is_drawn_from_the_highest_rate_of_the_compute_dtype() -> None:
    (row,) = summarise(TOLD)
    # 10,000 operations at 2,000 a second are 5 s; the sides took 10 and 20.
    assert row["share_of_limit"]["high"] == pytest.approx(0.5)
    assert row["share_of_limit"]["low"] == pytest.approx(0.25)
    # 100 examples in those 5 s.
    assert row["limit_examples_per_second"]["median"] == pytest.approx(20.0)


def test_cost_is_seconds_a_trial_and_step() -> None:
    (row,) = summarise(TOLD)
    assert row["seconds_per_trial_step"]["low"] == pytest.approx(10.0 / 2 / 5)


def test_a_cohort_of_one_is_compared_with_the_loop_over_the_same_one_trial() -> None:
    each = [
        {"seconds": 10.0, "examples": 50, "tokens": 500},
        {"seconds": 30.0, "examples": 50, "tokens": 500},
    ]
    told = results(
        m__rte__mixed__fleetune__K1__r0=cell(5.0, 50, 500),
        m__rte__mixed__trainer__K2__r0=cell(40.0, 100, 1000, each=each),
    )
    (row,) = summarise(told)
    assert row["peers"]["trainer"]["ratio"]["median"] == pytest.approx(2.0)


def test_adapterhub_is_compared_at_the_same_number_of_trials_only() -> None:
    told = results(
        m__rte__lora__fleetune__K2__r0=cell(5.0, 50, 500),
        m__rte__lora__fleetune__K8__r0=cell(5.0, 50, 500),
        m__rte__lora__adapters__K8__r0=cell(15.0, 50, 500),
    )
    two, eight = summarise(told)
    assert two["peers"] == {}
    assert eight["peers"]["adapters"]["ratio"]["median"] == pytest.approx(3.0)


def test_a_failed_cell_takes_no_part_and_is_told() -> None:
    told = results(
        m__rte__lora__fleetune__K2__r0=cell(5.0, 50, 500),
        m__rte__lora__trainer__K2__r0={"failed": "exit code -9: killed"},
    )
    told["summary"] = summarise(told)
    assert told["summary"][0]["peers"] == {}
    assert "killed" in tables.cohort_text(told)


def test_the_text_holds_every_group_and_ratio() -> None:
    told = {**TOLD, "summary": summarise(TOLD)}
    text = tables.cohort_text(told)
    assert "m/rte/lora" in text
    assert "5.00 [4.00, 6.00]" in text


def test_the_page_is_filled_from_results_and_says_what_was_not_measured(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(
        json.dumps({"about": ["a machine"], "head": ["K", "MiB"], "rows": [["1", "700"]]})
    )
    page = "A\n<!-- bench:one -->\nold\n<!-- /bench:one -->\nB\n<!-- bench:two -->\n<!-- /bench:two -->\n"
    new = filled(page, tmp_path)
    assert "| 1 | 700 |" in new
    assert "old" not in new
    assert "no bench/results/two.json" in new
    assert filled(new, tmp_path) == new


def test_the_page_in_the_documents_is_what_the_results_give() -> None:
    page = tables.PAGE.read_text()
    assert filled(page) == page
    assert {"cohort", "memory", "startup"} <= {m["name"] for m in tables.MARKED.finditer(page)}


def test_the_limit_counts_two_products_a_frozen_matrix(tiny_backbone: Path) -> None:
    from fleetune.backbone.load import find_backbone

    backbone = find_backbone(str(tiny_backbone))
    c = backbone.config
    width, inner = c.hidden_size, c.intermediate_size
    one_layer = 4 * width * width + 2 * width * inner
    shapes = matrix_shapes(backbone)
    # Two operations for each weight and token, forward and back; the pooler sees no tokens.
    assert frozen_operations(7, shapes) == 7 * 2 * 2 * one_layer * c.num_hidden_layers


def test_attention_is_counted_by_the_square_of_each_length() -> None:
    import numpy as np

    # Forward QK^T and PV, backward four products of the same size, each 2 L^2 D.
    assert attention_operations(np.array([3, 4]), 8, 2) == 6 * 2 * (9 + 16) * 8 * 2


def test_memory_of_processes_that_were_not_started_is_marked() -> None:
    cells = {
        "fleetune/K1": {"peak_mib": 700.0},
        "fleetune/K8": {"peak_mib": 770.0},
        "processes/K1": {"peak_mib": 650.0, "pss_mib": 600.0},
        "processes/K2": {"peak_mib": 1300.0, "pss_mib": 1000.0},
    }
    one, two, eight = memory.rows(cells, [1, 2, 8])
    assert one == ["1", "700", "-", "650", "600"]
    assert two == ["2", "-", "-", "1300", "1000"]
    assert eight == ["8", "770", "10.0", "~5200", "~4000"]


def test_the_clock_counts_a_stage_within_a_stage_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 4.0, 6.0, 7.0])
    monkeypatch.setattr(startup.time, "perf_counter", lambda: next(now))
    clock = startup.Clock(0.0)
    inner = clock.around("inner", lambda: None)
    clock.around("outer", inner)()
    assert clock.spent == {startup.FIRST: 1.0, "outer": 3.0 + 1.0, "inner": 2.0}


def test_imports_are_summed_by_package() -> None:
    said = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:   1500000 |    2000000 |     torch.nn\n"
        "import time:    500000 |    9000000 |   torch\n"
        "import time:    250000 |     250000 | numpy\n"
    )
    assert startup.by_package(said) == [(2.0, "torch"), (0.25, "numpy")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::bmm", "batched products (attention)"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::add_", "elementwise"),
        ("aten::copy_", "copies and casts"),
        ("autograd::engine::evaluate_function", "other operations"),
    ],
)
def test_operations_fall_into_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
