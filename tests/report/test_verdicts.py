"""Verdicts of a run without a search: every setting against the first that was named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fleetune.report.facts import run_facts
from fleetune.report.page import render
from fleetune.report.page_facts import page_facts
from fleetune.report.study_facts import over_tasks
from fleetune.report.study_tables import found
from fleetune.report.trainings import Saved
from tests.report.made_up import BITFIT, Plan, lora, write_run
from tests.report.reader import Page
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


def test_no_verdict_of_a_family_is_contradicted_by_what_stands_beside_it(tmp_path: Path) -> None:
    """Seven settings half a point apart: some differences would be found alone and are not among seven."""
    arms = (BITFIT, *(lora(r, 0.79 + 0.004 * i) for i, r in enumerate((1, 2, 3, 4, 6, 8, 16), 1)))
    plan = Plan(arms=arms, epochs=1, tests={"test": 400})
    folder = write_run(tmp_path / "run", plan)
    facts = run_facts(folder)
    words = {v["verdict"] for v in facts["verdicts"]}
    assert {"better", "cannot tell"} <= words
    lost = [
        v for v in facts["verdicts"] if v["unadjusted_low"] > 0 and v["verdict"] == "cannot tell"
    ]
    assert lost, "the test needs a difference that is not found among seven"
    for v in facts["verdicts"]:
        assert (v["low"] > 0 or v["high"] < 0) == (v["verdict"] in ("better", "worse"))
        assert v["comparisons"] == 7 and "simultaneous over the 7" in v["how"]
        # Found four times in five: well above the half width, which that of a comparison alone is not.
        half = max(v["high"] - v["difference"], v["difference"] - v["low"])
        assert v["detectable"] > 1.2 * half
    text = Page(render(facts, page_facts(folder, facts))).text
    assert "The 95% intervals are simultaneous over the 7 comparisons" in text
    assert "points of accuracy, 95% interval (simultaneous over 7) [" in text
    for v in lost:
        assert f"the data agree with anything from {100 * v['low']:+.2f} to" in text
        assert f"{100 * v['unadjusted_low']:+.2f} to" not in text


def test_below_five_seeds_no_difference_is_called_detectable(tmp_path: Path) -> None:
    """Nor do the data "agree with" an interval that leaves out 0: there is no verdict, and the page says why."""
    plan = Plan(arms=(BITFIT, lora(8, 0.95)), seeds=range(3), epochs=1, tests={"test": 400})
    folder = write_run(tmp_path / "run", plan)
    facts = run_facts(folder)
    (v,) = facts["verdicts"]
    assert v["low"] > 0 and (v["verdict"], v["detectable"]) == ("cannot tell", None)
    text = Page(render(facts, page_facts(folder, facts))).text
    assert "Below 5 seeds no verdict is given" in text and "the data agree with" not in text
    assert "A run like this finds" not in text
    (row,) = [line for line in found(facts).split("\n") if " against " in line][:1]
    assert row.split("]")[1].removeprefix("  < ").split()[1] == "-"


TASKS = ("cola", "mrpc", "qnli", "qqp", "rte", "sst2")


@pytest.mark.slow
def test_six_tasks_are_compared_together(tmp_path: Path) -> None:
    """By the exact signed-rank test on the differences of the means, one a task; on page and terminal too."""
    folder = write_run(
        tmp_path / "run", Plan(tasks=TASKS, arms=(BITFIT, lora(8), lora(2, 0.7)), epochs=1)
    )
    facts = run_facts(folder)
    value = {
        (e["task"], e["hyperparameters"].get("r")): e["value"]
        for e in facts["estimates"]
        if e["metric"] == "accuracy"
    }
    assert len(facts["over_tasks"]) == 2
    p_values = []
    for c, r in zip(facts["over_tasks"], (8, 2), strict=True):
        gaps = [value[task, r] - value[task, None] for task in TASKS]
        p_values.append(stats.wilcoxon(gaps, mode="exact").pvalue)
        assert c["p_value"] == pytest.approx(p_values[-1], rel=1e-12)
        assert (c["wins"], c["losses"]) == (sum(g > 0 for g in gaps), sum(g < 0 for g in gaps))
        assert c["difference"] == pytest.approx(sorted(gaps)[2] / 2 + sorted(gaps)[3] / 2)
        assert c["tasks"] == 6
    assert min(c["p_adjusted"] for c in facts["over_tasks"]) == pytest.approx(2 * min(p_values))
    table = found(facts)
    assert "over all tasks" in table and "Wilcoxon signed-rank over 6 tasks" in table
    text = Page(render(facts, page_facts(folder, facts))).text
    assert "Over all 6 tasks together" in text and "Wilcoxon" in text


def test_the_sign_over_tasks_is_that_of_the_methods_means() -> None:
    def estimate(task: str, method: str, value: float) -> dict[str, Any]:
        told = {"hyperparameters": {}, "training": {}, "optimistic": False, "failed_trials": []}
        own = {"task": task, "set": "test", "metric": "accuracy", "method": method, "value": value}
        return {**own, **told, "trials": [f"{task}-{method}-s0"]}

    gaps = dict(zip(TASKS, (0.01, 0.02, 0.03, 0.04, 0.05, 0.06), strict=True))
    every = [
        e
        for t, gap in gaps.items()
        for e in (estimate(t, "head", 0.7), estimate(t, "lora", 0.7 + gap))
    ]
    (c,) = over_tasks({"study": {}, "arms": [], "estimates": every})
    assert (c["reference"], c["method"], c["verdict"]) == ("head", "lora", "better")
    assert (c["wins"], c["losses"]) == (6, 0) and c["difference"] == pytest.approx(0.035)


def test_five_tasks_are_not(tmp_path: Path) -> None:
    facts = run_facts(write_run(tmp_path / "run", Plan(tasks=TASKS[:5])))
    assert facts["over_tasks"] == [] and "over all tasks" not in found(facts)


def test_a_comparison_of_two_ranks_has_one_verdict(tmp_path: Path) -> None:
    """Beside other methods, whose comparisons ask for more evidence, a rank study's own family would find more."""
    arms = (*(lora(r, 0.7 + 0.02 * i) for i, r in enumerate((1, 2, 8))), BITFIT)
    plan = Plan(arms=arms, phase="confirm", ranks=True, search=2, tests={"test": 277})
    facts = run_facts(write_run(tmp_path / "run", plan))
    judged = {v["method"]: v for v in facts["verdicts"]}
    (study,) = facts["rank"]
    contrasts = study["trend"]["contrasts"]
    assert len(judged) == 3 and [c["r"] for c in contrasts] == [2, 8]
    for rank in study["ranks"]:
        assert rank["gap"] == pytest.approx(rank["train"] - rank["selection"])
    for contrast in contrasts:
        assert contrast == {**judged[contrast["method"]], "r": contrast["r"]}
        assert contrast["comparisons"] == 3


def test_a_rank_study_by_a_correlation_has_a_slope_too(tmp_path: Path) -> None:
    """Of a metric that is no mean over examples: least squares on the means of each rank's trainings."""
    arms = tuple(lora(r, 0.7 + 0.05 * i) for i, r in enumerate((1, 2, 8)))
    plan = Plan(
        arms=arms, phase="confirm", ranks=True, search=2, regression=True, tasks=("stsb",),
        labels=("score",), tests={"test": 60},
    )  # fmt: skip
    facts = run_facts(write_run(tmp_path / "run", plan))
    (study,) = facts["rank"]
    trend, ranks = study["trend"], study["ranks"]
    assert study["metric"] == "pearson" and [r["r"] for r in ranks] == [1, 2, 8]
    oracle = np.polyfit(np.log2([1, 2, 8]), [r["value"] for r in ranks], 1)[0]
    assert trend["slope"] == pytest.approx(oracle) and trend["low"] < oracle < trend["high"]
    differences = [r["value"] - ranks[0]["value"] for r in ranks[1:]]
    assert [c["difference"] for c in trend["contrasts"]] == pytest.approx(differences)
    assert "pseudo-values" in trend["how"]
    html = render(facts, page_facts(tmp_path / "run", facts))
    assert "Each doubling of the rank of lora changes pearson by" in html


def test_below_five_seeds_the_terminal_says_why_there_is_no_verdict(tmp_path: Path) -> None:
    """No p and no P(better) beside an interval that leaves out 0, as if they were about it."""
    plan = Plan(arms=(BITFIT, lora(8, 0.95)), seeds=range(1), epochs=1, tests={"test": 400})
    table = found(run_facts(write_run(tmp_path / "run", plan)))
    (row,) = [line for line in table.split("\n") if " against " in line][:1]
    assert row.split("]")[1].split() == ["-", "-", "-", "cannot", "tell"]
    assert "1 training on a side, and no verdict is given below 5: run more seeds" in table


def test_what_the_most_frequent_label_has_stands_beside_accuracies(tmp_path: Path) -> None:
    """Whoever gives one label to all rows has that too, and a method that is not above it is said to be there."""
    plan = Plan(arms=(lora(1, 0.52), lora(8, 0.95)), tests={"test": 300})
    folder = write_run(tmp_path / "run", plan)
    facts = run_facts(folder)
    labels = Saved(folder).of(facts["trials"][0]["id"])["test"].labels
    constant = max(np.mean(labels == c) for c in (0, 1))
    assert {e["constant_score"] for e in facts["estimates"]} == {constant}
    said = f"the most frequent label in every row has {100 * constant:.2f}"
    assert f"  accuracy: {said}\n" in found(facts)
    text = Page(render(facts, page_facts(folder, facts))).text
    assert f"Whether lora r=1 has learned anything: {said} %" in text
    assert "Whether lora r=8 has learned anything" not in text
