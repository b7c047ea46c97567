"""Trainings that failed: none is dropped from an estimate, a verdict, a rank study or the choice of the winner."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fleetune.api import Result
from fleetune.report import words
from fleetune.report.facts import run_facts
from fleetune.report.page import render
from fleetune.report.page_facts import page_facts
from fleetune.report.study_tables import found
from fleetune.report.winner import winner
from fleetune.stats.failed import learned_nothing
from tests.report.made_up import BITFIT, Plan, lora, write_run
from tests.report.reader import Page

TEN = Plan(arms=(BITFIT, lora(8, 0.84)), seeds=range(10), epochs=1, tests={"test": 400})


def failing(*seeds: int, arm: str = "lora-r8") -> tuple[str, ...]:
    return tuple(f"{arm}-s{seed}" for seed in seeds)


def test_failing_does_not_make_a_method_better(tmp_path: Path) -> None:
    """LoRA is better by six points, and then four of its ten trainings fail: on the others it still looks better."""
    whole = run_facts(write_run(tmp_path / "whole", TEN))
    assert [v["verdict"] for v in whole["verdicts"]] == ["better"]
    plan = dataclasses.replace(TEN, failed=failing(1, 4, 6, 9))
    facts = run_facts(write_run(tmp_path / "run", plan))
    (v,) = facts["verdicts"]
    assert v["verdict"] == "cannot tell" and (v["seeds"], v["failed_seeds"]) == (10, 4)
    assert v["difference"] < 0 < whole["verdicts"][0]["difference"]
    sentence = words.answers(facts)[0]["text"]
    assert (
        "over 10 seeds and 400 examples, 4 failed trainings counted as having learned nothing"
        in (sentence)
    )
    table = found(facts)
    assert "10 (4 failed)" in table and "  failed  " in table
    assert "4 failed trainings count as giving the most frequent label for every row" in table


def test_a_method_that_always_failed_stays_in_the_family(tmp_path: Path) -> None:
    plan = Plan(
        arms=(BITFIT, lora(8), lora(2)),
        seeds=range(5),
        failed=failing(*range(5)),
        epochs=1,
        tests={"test": 400},
    )
    run = write_run(tmp_path / "run", plan)
    facts = run_facts(run)
    assert [(e["method"], e["seeds"], e["failed_seeds"]) for e in facts["estimates"]] == [
        ("bitfit", 5, 0), ("lora", 5, 5), ("lora", 5, 0),
    ]  # fmt: skip
    none = facts["estimates"][1]
    labels = pq.read_table(run / "trials/bitfit-s0/predictions.parquet")["label"].to_numpy()
    assert none["value"] == max(np.mean(labels == 0), np.mean(labels == 1)) == none["failed_score"]
    assert [(v["seeds"], v["failed_seeds"]) for v in facts["verdicts"]] == [(5, 5), (5, 0)]
    assert facts["verdicts"][0]["verdict"] == "worse"
    text = Page(render(facts, page_facts(run, facts))).text
    assert "5 failed trainings counted as having learned nothing" in text
    assert "5 (5 failed)" in text


def test_the_reference_may_have_failed_too(tmp_path: Path) -> None:
    plan = Plan(seeds=range(5), failed=failing(*range(5), arm="bitfit"), epochs=1, phase="confirm")
    facts = run_facts(write_run(tmp_path / "run", plan))
    (v,) = facts["verdicts"]
    assert (v["reference"], v["verdict"], v["failed_seeds"]) == ("bitfit", "better", 5)


def test_a_rank_of_which_trainings_failed_stays_in_the_slope(tmp_path: Path) -> None:
    arms = tuple(lora(r, 0.7 + 0.05 * i) for i, r in enumerate((1, 2, 8)))
    plan = Plan(
        arms=arms, phase="confirm", ranks=True, search=2,
        failed=(*failing(1000, 1001), *failing(*range(1000, 1005), arm="lora-r2")),
    )  # fmt: skip
    run = write_run(tmp_path / "run", plan)
    facts = run_facts(run)
    (study,) = facts["rank"]
    assert [(r["r"], r["seeds"], r["failed_seeds"]) for r in study["ranks"]] == [
        (1, 5, 0), (2, 5, 5), (8, 5, 2),
    ]  # fmt: skip
    oracle = np.polyfit(np.log2([1, 2, 8]), [r["value"] for r in study["ranks"]], 1)[0]
    assert study["trend"]["slope"] == pytest.approx(oracle)
    text = Page(render(facts, page_facts(run, facts))).text
    assert "7 failed trainings counted as having learned nothing" in text
    assert "5 (5 failed)" in found(facts)


def test_a_constant_answer_has_no_correlation(tmp_path: Path) -> None:
    plan = Plan(
        tasks=("stsb",), regression=True, labels=("score",), seeds=range(5), epochs=1,
        failed=failing(0, 2),
    )  # fmt: skip
    facts = run_facts(write_run(tmp_path / "run", plan))
    lora8 = facts["estimates"][1]
    ended = [t["test"]["pearson"] for t in facts["trials"] if t["method"] == "lora" and t["test"]]
    assert lora8["failed_score"] == 0.0 and lora8["value"] == pytest.approx(sum(ended) / 5)
    assert learned_nothing(np.array([1.0, 2.0, 6.0]), 1).tolist() == [[3.0]] * 3
    assert "2 failed trainings count as giving the mean of the targets" in lora8["how"]


def test_where_all_failed_a_correlation_has_no_interval(tmp_path: Path) -> None:
    """Terminal and page say so; no interval of no width, and no difference that "the data are compatible with"."""
    plan = Plan(
        tasks=("stsb",), regression=True, labels=("score",), seeds=range(5), epochs=1,
        failed=(*failing(*range(5)), *failing(*range(5), arm="lora-r2")),
        arms=(lora(8), lora(2), lora(4)),
    )  # fmt: skip
    run = write_run(tmp_path / "run", plan)
    facts = run_facts(run)
    none, other, ended = facts["estimates"]
    assert (none["low"], other["high"]) == (None, None) and ended["low"] is not None
    same, lora4 = facts["verdicts"]
    assert (same["low"], same["detectable"], same["verdict"]) == (None, None, "cannot tell")
    assert "nothing varies" in same["reason"] and lora4["verdict"] == "better"
    (row,) = [line for line in found(facts).split("\n") if "r=2 against" in line]
    assert "  none  " in row
    text = Page(render(facts, page_facts(run, facts))).text
    assert "differ: nothing varies over these trainings and examples" in text
    json.dumps(facts, allow_nan=False)


def test_from_python_they_are_among_a_methods_trainings(tmp_path: Path) -> None:
    plan = dataclasses.replace(TEN, failed=failing(1, 4, 6, 9))
    run = Result(write_run(tmp_path / "run", plan))
    assert run["lora"].failed == 4 and len(run["lora"].folders) == 6


def test_failing_counts_against_the_winner(tmp_path: Path) -> None:
    """One lucky survivor of ten is not the model to use."""
    plan = dataclasses.replace(TEN, failed=failing(*range(1, 10)))
    best = winner(run_facts(write_run(tmp_path / "run", plan)))
    assert best is not None and best["id"].startswith("bitfit")
    best = winner(run_facts(write_run(tmp_path / "whole", TEN)))
    assert best is not None and best["id"].startswith("lora")


@pytest.mark.parametrize("arm", ["bitfit", "lora-r8"])
def test_a_failed_trial_is_worse_than_any_loss(tmp_path: Path, arm: str) -> None:
    plan = dataclasses.replace(TEN, seeds=range(2), failed=failing(1, arm=arm))
    facts = copy.deepcopy(run_facts(write_run(tmp_path / "run", plan)))
    for trial in facts["trials"]:
        trial["training"] |= {"metric_for_best_model": "loss", "greater_is_better": False}
    best = winner(facts)
    assert best is not None and best["status"] == "done" and not best["id"].startswith(arm)


def test_where_all_methods_have_failures_the_losses_of_the_others_decide(tmp_path: Path) -> None:
    plan = dataclasses.replace(TEN, seeds=range(2), failed=("bitfit-s0", "lora-r8-s1"))
    facts = copy.deepcopy(run_facts(write_run(tmp_path / "run", plan)))
    for trial in facts["trials"]:
        trial["training"] |= {"metric_for_best_model": "loss", "greater_is_better": False}
        for epoch in trial["epochs"]:
            epoch["selection"]["loss"] = 0.1 if trial["method"] == "lora" else 0.2
    best = winner(facts)
    assert best is not None and best["id"] == "lora-r8-s0"


def test_sentences_name_their_task_though_one_alone_has_a_verdict(tmp_path: Path) -> None:
    """The other has lost what it predicted."""
    run = write_run(tmp_path / "run", Plan(tasks=("rte", "mrpc"), seeds=range(5), epochs=1))
    for lost in run.glob("trials/mrpc*bitfit*/predictions.parquet"):
        lost.unlink()
    facts = run_facts(run)
    assert {v["task"] for v in facts["verdicts"]} == {"rte"}
    said = [a["text"] for a in words.answers(facts) if a["verdict"]]
    said += [text for text in words.untold(facts) if text.startswith("Whether")]
    assert len(said) > 1 and all(" on rte" in text or " on mrpc" in text for text in said), said
