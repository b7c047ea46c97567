"""What the page computes itself, against independent ways to the same numbers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fleetune.errors import printable
from fleetune.report import inside_facts, model_facts, page_facts
from fleetune.report.again import again
from fleetune.report.charts import style
from fleetune.report.facts import run_facts
from fleetune.report.model_charts import singular_values
from fleetune.report.page_facts import search_facts
from fleetune.report.rank_chart import rank
from fleetune.report.svg import Picture, short
from fleetune.report.tables import labels
from fleetune.report.training_charts import budget
from fleetune.study.history import History
from tests.report.conftest import Written
from tests.runs import Made, run_cli, tree

Write = Callable[[str], Written]


@pytest.mark.parametrize("higher", [True, False])
def test_expected_best_is_the_mean_over_all_draws(higher: bool) -> None:
    scores = [0.61, 0.74, 0.7, 0.66]
    pick = max if higher else min
    wanted = [
        float(np.mean([pick(draw) for draw in product(scores, repeat=k)])) for k in (1, 2, 3, 4)
    ]
    found = page_facts.best_by_budget(scores, higher)
    np.testing.assert_allclose(found["expected"], wanted, rtol=1e-12)
    # The band of a single draw lies about it, and no budget promises more than the best that was seen.
    assert found["low"][0] < wanted[0] < found["high"][0]
    ends = np.array([found[key] for key in ("low", "expected", "high")])
    assert (np.diff(ends, axis=0) >= 0).all() and min(scores) <= ends.min() <= ends.max() <= max(
        scores
    )


def test_importance_is_guarded_and_finds_what_matters() -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"settings": {"a": float(a), "b": float(b)}, "score": float(a + 0.01 * b)}
        for a, b in draw.random((40, 2))
    ]
    found = page_facts.importance(rows, ["a", "b"])
    assert found is not None and found["a"] > 0.9 and sum(found.values()) == pytest.approx(1)
    assert page_facts.importance(rows[:29], ["a", "b"]) is None
    assert page_facts.importance(rows, ["a"]) is None


def test_calibration_of_known_confidences() -> None:
    """Two bins, 0.6 right as often as said and 0.9 right half as often: the error is half of their gaps."""
    shares = np.array([[0.6, 0.4]] * 10 + [[0.9, 0.1]] * 10)
    truth = np.array([0] * 6 + [1] * 4 + [0] * 5 + [1] * 5)
    found = model_facts.calibration(truth, shares)
    assert [b["n"] for b in found["bins"]] == [10, 10]
    assert found["error"] == pytest.approx(0.5 * 0.0 + 0.5 * 0.4)
    wanted = stats.binomtest(5, 10).proportion_ci(0.95, method="wilson")
    assert found["bins"][1]["accuracy_low"] == pytest.approx(wanted.low, abs=1e-6)
    assert found["bins"][1]["accuracy_high"] == pytest.approx(wanted.high, abs=1e-6)


def test_gaps_of_calibration_do_not_cancel() -> None:
    """Sure and wrong in one bin, unsure and right in another."""
    shares = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    truth = np.array([1] * 4 + [0] * 4)
    assert model_facts.calibration(truth, shares)["error"] == pytest.approx((0.9 + 0.4) / 2)


def test_a_confusion_has_the_label_in_its_row_and_the_answer_in_its_column() -> None:
    truth, said = np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1])
    found = model_facts.confusion(truth, np.eye(2)[said], 2)
    assert found.tolist() == [[1, 2], [0, 1]]


def test_singular_values_are_those_of_the_whole_product(write: Write) -> None:
    import safetensors.numpy

    page = write("train")
    (found,) = page.page["singular_values"]
    rows = []
    for trial in (t for t in page.facts["trials"] if t["method"] == "lora"):
        file = page.folder / "trials" / trial["id"] / "adapter_model.safetensors"
        t = safetensors.numpy.load_file(file)
        for name in (n for n in t if "lora_A" in n):
            update = 4.0 * t[name.replace("lora_A", "lora_B")].astype(float) @ t[name].astype(float)
            rows.append(np.linalg.svd(update, compute_uv=False)[:8])
    np.testing.assert_allclose(found["median"], np.median(rows, axis=0), rtol=1e-9)
    assert found["r"] == 8 and found["updates"] == len(rows) == 4
    shares = [row / row.sum() for row in rows]
    entropy = [float(np.exp(stats.entropy(share))) for share in shares]
    assert found["effective_rank"] == pytest.approx(np.mean(entropy), rel=1e-6)


def test_movement_is_read_against_the_backbone(made: Made) -> None:
    """Of a real run: as many biases moved as BitFit trains in the encoder, and none of them by nothing."""
    facts = run_facts(made.run)
    tasks = [page_facts.task_facts(facts, facts["study"]["data"]["task"])]
    (found,) = inside_facts.movement(made.run, facts, tasks)
    assert found["layers"] == [0, 1, 2] and found["trials"] == found["of"] == 2
    assert all(cell["change"] > 0 for cell in found["cells"])
    assert {"attention.self.query", "intermediate.dense", "output.LayerNorm"} <= set(found["roles"])


def test_settings_are_not_pooled_inside(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings of one method on one task are two records, each of its own trials and no more than are read."""
    facts = run_facts(made.run)
    ids = [t["id"] for t in facts["trials"] if t["method"] == "lora"]
    groups = [
        {"name": name, "estimate": {"method": "lora", "trials": of}}
        for name, of in (("wide", ids), ("none", []), ("narrow", ids[1:]))
    ]
    tasks = [{"task": "a", "groups": groups}, {"task": "b", "groups": groups[:1]}]
    monkeypatch.setattr(inside_facts, "_MOST_TRIALS", 1)
    found = inside_facts.singular_values(made.run, facts, tasks)
    told = [(f["task"], f["name"], f["trials"], f["of"]) for f in found]
    assert told == [("a", "wide", 1, 2), ("a", "narrow", 1, 1), ("b", "wide", 1, 2)]
    wide, narrow, again = (f["median"] for f in found)
    assert wide == again != narrow
    picture = singular_values(found[:2], "spectrum")
    assert isinstance(picture, Picture) and "wide: " in picture.note and "narrow: " in picture.note
    assert "Of each setting the first 1 trial at most" in picture.note


def test_each_rank_study_is_one_line() -> None:
    """Two studies of one method, and a setting in neither: three lines, each by the name that the study gives it."""

    def group(name: str, rank: int, encoder: int) -> dict[str, Any]:
        parameters = {"encoder": encoder, "head": 9}
        told = {
            "method": "lora",
            "value": 0.6,
            "low": 0.5,
            "high": 0.7,
            "failed_seeds": 0,
            "optimistic": False,
        }
        own = {"hyperparameters": {"r": rank}, "trainable_parameters": parameters}
        return {"name": name, "seeds": [], "estimate": {**told, **own}}

    def study(name: str | None, *labels: str) -> dict[str, Any]:
        return {"name": name, "method": "lora", "ranks": [{"label": w, "r": 1, "train": None} for w in labels]}  # fmt: skip

    sizes = {"a1": (1, 1000), "a8": (8, 8000), "b1": (1, 2000), "b8": (8, 16000), "c": (2, 2000)}
    groups = [group(name, *told) for name, told in sizes.items()]
    task = {"task": "rte", "metric": "accuracy", "groups": groups}
    found = rank(task, "rank", [study("query", "a1", "a8"), study(None, "b1", "b8")])
    assert isinstance(found, Picture)
    assert all(f">{name}<" in found.svg for name in ("query", "lora-1", "lora-2"))
    assert all(f">{words}<" in found.svg for words in ("1k to", "8k to", "16k"))


def test_the_command_does_the_same_run_again(made: Made) -> None:
    """Given the finished run's folder it finds the same settings there: other settings would be refused."""
    command = again(run_facts(made.run))
    assert command is not None
    words = shlex.split(command)
    assert words[:2] == ["fleetune", "train"] and words[-2:] == ["--output-dir", "again"]
    before = {k: v for k, v in tree(made.run).items() if k.startswith("trials/")}
    done = run_cli(*words[1:-1], made.run)
    assert done.code == 0, done.err
    assert {k: v for k, v in tree(made.run).items() if k.startswith("trials/")} == before
    assert f"{len(run_facts(made.run)['trials'])} of" in done.err


def test_names_hold_what_tells_settings_apart_and_no_more() -> None:
    def estimate(r: int, rate: float, alpha: float) -> dict[str, object]:
        own = {"r": r, "lora_alpha": alpha, "use_rslora": False}
        return {
            "method": "lora",
            "set": "test",
            "hyperparameters": own,
            "training": {"learning_rate": rate},
        }

    ranks = [estimate(r, 5e-4, 4.0 * r) for r in (1, 2, 4)]
    assert labels(ranks) == ["lora r=1", "lora r=2", "lora r=4"]
    rates = [estimate(8, rate, 8.0) for rate in (1e-4, 1e-3)]
    assert labels(rates) == ["lora r=8, learning_rate=0.0001", "lora r=8, learning_rate=0.001"]
    both = [*ranks, estimate(4, 5e-4, 8.0)]
    assert len(set(labels(both))) == 4


def test_series_differ_by_more_than_colour() -> None:
    looks = [style(i) for i in range(12)]
    assert len({(look["marker"], str(look["linestyle"])) for look in looks[:6]}) == 6
    assert len({(look["color"], look["marker"]) for look in looks}) == 12


def test_names_in_pictures_are_short_and_print() -> None:
    assert short("x" * 40) == "x" * 29 + "…"
    assert printable("a\u202eb\x00") == "a\\u202eb\\x00"


def test_the_command_of_a_named_task_leaves_its_columns_to_it() -> None:
    data = {"task": "rte", "data_dir": "glue/RTE", "text_columns": ["sentence1", "sentence2"]}
    facts = {
        "study": {
            "data": {**data, "label_column": "label", "protocol": "paper"},
            "backbone": {"name": "roberta-base", "dtype": "float32"},
            "methods": [{"method": "lora", "r": 2, "lora_alpha": 8.0, "learning_rate": 1e-3}],
            "seeds": [3, 4],
        },
        "estimates": [],
    }
    assert again(facts) == (
        "fleetune train --task rte --data-dir glue/RTE --protocol paper --methods lora --set lora.r=2 "
        "--learning-rate 0.001 --backbone roberta-base --dtype float32 --seeds 2 --seed 3 --output-dir again"
    )
    assert again({**facts, "study": {**facts["study"], "seeds": [3, 5]}}) is None
    (lora,) = facts["study"]["methods"]
    for methods in ([lora, {**lora, "r": 4}], [{**lora, "name": "small"}]):
        assert again({**facts, "study": {**facts["study"], "methods": methods}}) is None


def searched(ident: str, status: str, *scores: float, metric: str = "accuracy") -> dict[str, Any]:
    """A trial of a search as the facts have it."""
    return {
        "id": ident, "task": "rte", "method": "lora", "status": status, "hyperparameters": {"r": len(ident)},
        "training": {"metric_for_best_model": metric, "greater_is_better": metric != "loss"},
        "epochs": [{"epoch": i, "selection": {metric: s}} for i, s in enumerate(scores, start=1)],
    }  # fmt: skip


def proposed(arm: str, *trials: list[str]) -> dict[str, Any]:
    return {"kind": "proposed", "task": "rte", "arm": arm, "trials": list(trials)}


def test_folds_are_one_setting_with_their_mean() -> None:
    """The best fold has 0.80; the best mean of an epoch is 0.65."""
    trials = [
        searched("a1", "done", 0.40, 0.80), searched("a2", "done", 0.60, 0.50),
        searched("bb1", "stopped", 0.30), searched("bb2", "stopped", 0.50),
    ]  # fmt: skip
    (found,) = search_facts(
        {"trials": trials}, History([proposed("lora", ["a1", "a2"], ["bb1", "bb2"])])
    )
    assert [t["score"] for t in found["trials"]] == pytest.approx([0.65, 0.40])
    assert found["stopped"] == 1
    assert found["expected_best"]["expected"] == pytest.approx([(0.65 + 0.40) / 2, 0.75 * 0.65 + 0.25 * 0.40])  # fmt: skip


def test_ranks_are_searched_apart() -> None:
    trials = [searched(i, "done", 0.5) for i in ("a", "b", "c")]
    events = [proposed("lora-r1", ["a"]), proposed("lora-r8", ["b"]), proposed("lora-r1", ["c"])]
    found = search_facts({"trials": trials}, History(events))
    assert [(s["arm"], len(s["trials"])) for s in found] == [("lora-r1", 2), ("lora-r8", 1)]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_failed_settings_count_in_a_budget(metric: str) -> None:
    """With the best score they had, or with the worst of the others; one on its way counts once it has a score."""
    trials = [
        searched("a", "done", 0.6, 0.7, metric=metric), searched("b", "failed", 0.65, metric=metric),
        searched("c", "failed", metric=metric), searched("d", "unfinished", metric=metric),
    ]  # fmt: skip
    events = [proposed("lora", ["a"], ["b"], ["c"], ["d"], ["e"])]
    (found,) = search_facts({"trials": trials}, History(events))
    best = [0.7, 0.65, 0.65] if metric == "accuracy" else [0.6, 0.65, 0.65]
    assert [t["score"] for t in found["trials"]] == pytest.approx(best)
    assert [t["earned"] for t in found["trials"]] == [True, True, False]
    assert found["expected_best"]["expected"][0] == pytest.approx(sum(best) / 3)
    picture = budget([found], "budget")
    assert (
        isinstance(picture, Picture) and "1 setting failed before an epoch was over" in picture.note
    )
    nothing = search_facts({"trials": trials[2:]}, History([proposed("lora", ["c"], ["d"])]))
    assert nothing == []
