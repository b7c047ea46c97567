"""Verdicts of a run without a search: every setting against the first that was named."""

from __future__ import annotations

import pytest

from fleetune.report.facts import run_facts
from fleetune.report.study_tables import found
from tests.runs import METHODS, Made


def test_a_plain_run_compares_with_the_first_method(made: Made) -> None:
    facts = run_facts(made.run)
    value = {e["method"]: e["value"] for e in facts["estimates"] if e["metric"] == "accuracy"}
    verdicts = facts["verdicts"]
    assert {v["reference"] for v in verdicts} == {METHODS[0]}
    assert {v["method"].split()[0] for v in verdicts} == set(METHODS[1:])
    for v in verdicts:
        method = v["method"].split()[0]
        assert v["difference"] == pytest.approx(value[method] - value[METHODS[0]], abs=1e-12)
        assert v["low"] <= v["difference"] <= v["high"]
        assert v["seeds"] == 2 and v["n"] == 24
        assert v["verdict"] == "cannot tell", "two seeds never give more"
        assert v["p_adjusted"] >= v["p_value"]


def test_the_table_says_each_verdict(made: Made) -> None:
    table = found(run_facts(made.run))
    for method in METHODS[1:]:
        (line,) = [row for row in table.split("\n") if f" {method}" in row and " against " in row]
        assert line.endswith("cannot tell") and line.split(" against ")[1].startswith(METHODS[0])
