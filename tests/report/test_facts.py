"""The facts of a run made by hand: exact dictionaries, and a winner that never looks at test scores."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fleetune.durable import sha256, write_json
from fleetune.errors import DataError, SettingsError
from fleetune.report.facts import run_facts
from fleetune.report.trainings import groups
from fleetune.report.winner import winner
from fleetune.study import journal
from fleetune.study.journal import Journal
from tests.runs import run_cli

TRAINING = {
    "learning_rate": 1e-3,
    "num_train_epochs": 2.0,
    "max_steps": -1,
    "metric_for_best_model": "accuracy",
    "greater_is_better": True,
}
ENVIRONMENT = {
    "fleetune": "0",
    "commit": None,
    "python": "3.11",
    "packages": {"torch": "2"},
    "machine": {"processor": "one", "cores": 2},
    "data": {"task": "toy", "source": "toy", "checksum": "0", "rows": {"test": 5}, "truncated": {}},
    "backbone": {"name": "tiny", "source": "tiny", "revision": None, "checksum": "0"},
}
# Labels, and who says 1: head errs once, lora's two seeds err twice and thrice.
LABELS = [0, 1, 1, 0, 1]
SAID = {
    "head-s0": [0, 1, 1, 0, 0],
    "lora-s0": [1, 1, 1, 0, 0],
    "lora-s1": [1, 0, 1, 0, 0],
}
SELECTION = {"head-s0": (0.5, 0.6), "lora-s0": (0.9, 0.8), "lora-s1": (0.7, 0.75)}
BEST = {"head-s0": 2, "lora-s0": 1, "lora-s1": 2}
TEST = {"head-s0": 4 / 5, "lora-s0": 3 / 5, "lora-s1": 2 / 5}


def start(ident: str) -> dict[str, Any]:
    method, _, seed = ident.rpartition("-s")
    return {
        "id": ident,
        "task": "toy",
        "method": method,
        "hyperparameters": {"r": 2} if method == "lora" else {},
        "training": TRAINING,
        "seed": int(seed),
        "phase": "train",
        "trainable_parameters": {"encoder": 128 if method == "lora" else 0, "head": 34},
    }


def epoch(ident: str, number: int) -> dict[str, Any]:
    return {
        "epoch": number,
        "loss": 1.0 / number,
        "selection": {"accuracy": SELECTION[ident][number - 1], "loss": 0.5},
        "step": 10 * number,
        "seconds": 1.5 * number,
    }


def on_test(ident: str) -> dict[str, float]:
    return {"accuracy": TEST[ident], "n": 5}


# pytest takes functions of this name for tests; this one is a helper.


def write_predictions(folder: Path, ident: str) -> None:
    table = {
        "split": ["test"] * 5,
        "id": [str(i) for i in range(5)],
        "label": [float(label) for label in LABELS],
        "logits": [[0.0, 2.0 * said - 1.0] for said in SAID[ident]],
    }
    (folder / "trials" / ident).mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "trials" / ident / "predictions.parquet")


def make_run(folder: Path, *, done: tuple[str, ...] = tuple(SAID), end: str = "run-done") -> Path:
    """A run in which these trials have ended, full-s0 has failed, and the others are on their way."""
    folder.mkdir()
    (folder / "study.toml").write_text(
        'seeds = [0, 1]\n[data]\ntask = "toy"\nprotocol = "holdout"\n[backbone]\nname = "tiny"\n'
    )
    write_json(folder / "environment.json", ENVIRONMENT)
    book = Journal(folder / journal.NAME)
    book.append("run-started", trials=[*SAID, "full-s0", "never-s0"], waiting=5)
    # In another order than they were given: which of them begin first is up to the cohort.
    for ident in ("full-s0", *reversed(SAID)):
        book.append("trial-started", **start(ident), total_steps=20, step=0)
    book.append("trial-failed", id="full-s0", reason="loss is not finite")
    for ident in SAID:
        book.append("epoch", id=ident, **epoch(ident, 1))
        if ident not in done:
            continue
        book.append("epoch", id=ident, **epoch(ident, 2))
        book.append("epoch", id=ident, **epoch(ident, 2))  # written twice, around a cut
        book.append("test-opened", id=ident, sets=["test"])
        write_predictions(folder, ident)
        book.append(
            "trial-done",
            id=ident,
            best_epoch=BEST[ident],
            selection={},
            test=on_test(ident),
            tests={"test": on_test(ident)},
            optimistic=False,
            seconds=3.25,
            predictions=sha256(folder / "trials" / ident / "predictions.parquet"),
        )
    book.append(end, failed=1)
    book.close()
    return folder


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict[str, Any]:
    return run_facts(make_run(tmp_path_factory.mktemp("facts") / "run"))


def trial_facts(ident: str) -> dict[str, Any]:
    return {
        **start(ident),
        "status": "done",
        "reason": None,
        "epochs": [epoch(ident, 1), epoch(ident, 2)],
        "best_epoch": BEST[ident],
        "test": on_test(ident),
        "tests": {"test": on_test(ident)},
        "optimistic": False,
        "seconds": 3.25,
    }


def test_trials_exactly(facts: dict[str, Any]) -> None:
    failed = {
        **start("full-s0"),
        "status": "failed",
        "reason": "loss is not finite",
        "epochs": [],
        "best_epoch": None,
        "test": None,
        "tests": {},
        "optimistic": False,
        "seconds": 0.0,
    }
    expected = [*(trial_facts(ident) for ident in SAID), failed]
    found = [{k: t[k] for k in e} for t, e in zip(facts["trials"], expected, strict=True)]
    assert found == expected  # a trial that never began is none


def test_study_exactly(facts: dict[str, Any]) -> None:
    study = facts["study"]
    assert study["status"] == "done" and study["optimistic"] is False
    assert study["seeds"] == [0, 1] and study["backbone"] == {"name": "tiny"}
    assert (study["data"]["task"], study["data"]["protocol"]) == ("toy", "holdout")
    assert study["environment"] == ENVIRONMENT


def wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def test_estimates_exactly(facts: dict[str, Any]) -> None:
    head, lora, full = facts["estimates"]
    low, high = wilson(4 / 5, 5)
    expected = {
        "task": "toy",
        "set": "test",
        "method": "head",
        "hyperparameters": {},
        "training": {"learning_rate": 1e-3, "num_train_epochs": 2.0, "max_steps": -1},
        "metric": "accuracy",
        "value": 4 / 5,
        "low": pytest.approx(low),
        "high": pytest.approx(high),
        "n": 5,
        "seeds": 1,
        "how": "95% Wilson over examples, one seed",
        "optimistic": False,
        "failed_seeds": 0,
        "trainable_parameters": {"encoder": 0, "head": 34},
        "seconds": 3.25,
        "trials": ["head-s0"],
    }
    assert {k: head[k] for k in expected} == expected
    assert lora["value"] == pytest.approx((3 / 5 + 2 / 5) / 2)
    assert (lora["seeds"], lora["n"], lora["trials"]) == (2, 5, ["lora-s0", "lora-s1"])
    assert lora["seconds"] == 3.25, "of one training"
    assert lora["low"] < lora["value"] < lora["high"]
    # Three of the five labels are 1: so much earns who always says 1.
    assert (full["value"], full["failed_score"], full["seeds"], full["failed_seeds"]) == (
        0.6, 0.6, 1, 1,
    )  # fmt: skip
    assert (full["trials"], full["failed_trials"]) == ([], ["full-s0"])
    # Three of the five labels are 1: so much earns who always says 1.
    assert (full["value"], full["failed_score"], full["seeds"], full["failed_seeds"]) == (
        0.6,
        0.6,
        1,
        1,
    )
    assert (full["trials"], full["failed_trials"]) == ([], ["full-s0"])


def test_a_failed_seed_is_counted_beside_its_mates(tmp_path: Path) -> None:
    """full-s0 has failed; were it a seed of head, head's estimate would say so."""
    run = make_run(tmp_path / "run")
    book = Journal(run / journal.NAME)
    book.append("run-started", trials=["head-s1"], waiting=1)
    book.append("trial-started", **start("head-s1"), total_steps=20, step=0)
    book.append("trial-failed", id="head-s1", reason="out of memory")
    book.close()
    facts = run_facts(run)
    head, lora, _ = facts["estimates"]
    assert (head["failed_seeds"], lora["failed_seeds"]) == (1, 0)
    assert head["value"] == pytest.approx((4 / 5 + 3 / 5) / 2) and head["seeds"] == 2
    assert (head["trials"], head["failed_trials"]) == (["head-s0"], ["head-s1"])
    against = {v["method"].split()[0]: v for v in facts["verdicts"]}
    assert against["lora"]["difference"] == pytest.approx(0.5 - 0.7)
    assert (against["lora"]["seeds"], against["lora"]["failed_seeds"]) == (2, 1)


def test_the_winner_is_of_the_best_mean_on_the_selection_rows(facts: dict[str, Any]) -> None:
    best = winner(facts)
    assert best is not None
    # lora: mean of 0.9 and 0.75, against 0.6; head is far better on the test rows.
    assert best["id"] == "lora-s0" and TEST["head-s0"] > TEST["lora-s0"]


def test_the_winner_is_by_the_epochs_that_were_kept(facts: dict[str, Any]) -> None:
    """lora's mean of its best epochs is 0.825, of its last ones 0.775; head has 0.8 in its last, which is its best."""
    other = copy.deepcopy(facts)
    head = next(t for t in other["trials"] if t["id"] == "head-s0")
    head["epochs"][-1]["selection"]["accuracy"] = 0.8
    best = winner(other)
    assert best is not None and best["id"] == "lora-s0"


def test_other_settings_of_the_training_are_another_estimate(facts: dict[str, Any]) -> None:
    trials = copy.deepcopy(facts["trials"])
    (before,) = (g for g in groups(trials) if g.first["method"] == "lora")
    assert len(before.done) == 2
    before.done[1]["training"]["learning_rate"] = 1e-4
    assert [len(g.done) for g in groups(trials) if g.first["method"] == "lora"] == [1, 1]


@pytest.mark.parametrize("test", [0.0, 1.0, None])
def test_the_winner_never_looks_at_on_test(facts: dict[str, Any], test: float | None) -> None:
    """Whatever the test rows say of the winner, and were nothing known of them, it stays the winner."""
    expected = winner(facts)
    assert expected is not None
    other = copy.deepcopy(facts)
    for trial in other["trials"]:
        if trial["status"] == "done":
            mine = trial["id"] == expected["id"]
            score = None if test is None else test if mine else 1.0 - test
            trial["test"] = None if score is None else {"accuracy": score, "n": 5}
            trial["tests"] = {} if score is None else {"test": trial["test"]}
    other["estimates"] = []
    found = winner(other)
    assert found is not None and found["id"] == expected["id"]


def test_failing_never_makes_a_method_the_winner(facts: dict[str, Any]) -> None:
    """Correlations go below 0: a failed trial counts as -1 there, not as better than what was learned."""
    other = copy.deepcopy(facts)
    for trial in other["trials"]:
        trial["training"] = {**trial["training"], "metric_for_best_model": "pearson"}
        for e in trial["epochs"]:
            e["selection"]["pearson"] = -0.4 if trial["method"] == "head" else -0.2
    head = next(t for t in other["trials"] if t["method"] == "head")
    for seed in range(3):
        other["trials"].append({**head, "id": f"head-s{90 + seed}", "seed": 90 + seed, "status": "failed"})  # fmt: skip
    best = winner(other)
    assert best is not None and best["method"] == "lora"


def test_a_loss_is_better_when_lower(facts: dict[str, Any]) -> None:
    other = copy.deepcopy(facts)
    for trial in other["trials"]:
        trial["training"] = {
            **trial["training"],
            "metric_for_best_model": "loss",
            "greater_is_better": False,
        }
        for e in trial["epochs"]:
            e["selection"]["loss"] = 0.1 if trial["method"] == "head" else 0.2
    found = winner(other)
    assert found is not None and found["id"] == "head-s0"


def test_a_run_on_its_way(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", done=("head-s0",), end="stopped")
    found = run_facts(run)
    assert found["study"]["status"] == "stopped"
    status = {t["id"]: t["status"] for t in found["trials"]}
    assert status == {
        "head-s0": "done",
        "lora-s0": "unfinished",
        "lora-s1": "unfinished",
        "full-s0": "failed",
    }
    assert [e["method"] for e in found["estimates"]] == ["head", "full"]
    unfinished = next(t for t in found["trials"] if t["id"] == "lora-s0")
    assert unfinished["test"] is None and unfinished["seconds"] == 1.5
    best = winner(found)
    assert best is not None and best["id"] == "head-s0"
    nothing = run_facts(make_run(tmp_path / "none", done=(), end="stopped"))
    assert winner(nothing) is None and nothing["estimates"] == []


@pytest.mark.parametrize("state", ["missing", "damaged", "of another run"])
def test_lost_predictions_leave_out_their_method_and_no_other(tmp_path: Path, state: str) -> None:
    """lora-s1's file is gone: a mean over lora-s0 alone would be no estimate of lora. The journal's scores stay."""
    run = make_run(tmp_path / "run")
    path = run / "trials" / "lora-s1" / "predictions.parquet"
    whole = run_facts(run)
    if state == "missing":
        path.unlink()
        path.parent.rmdir()
    elif state == "of another run":
        shutil.copy(run / "trials" / "lora-s0" / path.name, path)
    else:
        path.write_bytes(path.read_bytes()[:-9])
    found = run_facts(run)
    assert whole["lost"] == []
    assert found["lost"] == [
        {
            "task": "toy",
            "method": "lora",
            "trials": ["lora-s0", "lora-s1"],
            "files": {"trials/lora-s1/predictions.parquet": state},
        }
    ]
    assert found["trials"] == whole["trials"]
    assert found["estimates"] == [e for e in whole["estimates"] if e["method"] != "lora"]
    assert {v["method"] for v in whole["verdicts"]} == {"lora r=2", "full"}
    assert {v["method"] for v in found["verdicts"]} == {"full"}
    best = winner(found)
    assert best is not None and best["id"] == "lora-s0"
    told = f"lora-s0, lora-s1, since trials/lora-s1/predictions.parquet is {state}"
    shown = run_cli("show", run)
    assert shown.code == 0 and told in shown.out and str(tmp_path) not in shown.out
    assert json.loads(run_cli("show", run, "--json").out)["lost"] == found["lost"]


def test_what_a_run_has_lost_is_named(tmp_path: Path) -> None:
    """Each with what it is, so that nobody looks for a run elsewhere that is right here."""
    for name, code, told in (
        ("study.toml", 4, "study.toml: 1 problem"),
        ("journal.jsonl", 6, "journal.jsonl: is missing or empty, but trials were trained here"),
        ("environment.json", 4, "environment.json: 1 problem"),
    ):
        run = make_run(tmp_path / f"without-{name}")
        (run / name).unlink()
        for words in (("show",), ("report",), ("predict", "--text", "a")):
            found = run_cli(words[0], run, *words[1:])
            assert found.code == code and told in found.err, found.err
            assert "copy" in found.err
        assert not (run / "report.html").exists()
    run = make_run(tmp_path / "emptied")
    (run / "journal.jsonl").write_bytes(b"")
    found = run_cli("report", run)
    assert found.code == 6 and not (run / "report.html").exists()


def test_what_a_run_has_lost_inside_a_file_is_named(tmp_path: Path) -> None:
    """A key that the facts do not need and the pages do."""
    run = make_run(tmp_path / "run")
    study, environment = (run / name for name in ("study.toml", "environment.json"))
    whole = study.read_text(), environment.read_text()
    study.write_text("".join(line for line in whole[0].splitlines(True) if "protocol" not in line))
    told = json.loads(whole[1])
    wrong = {"study.toml": "must name task and protocol", "environment.json": "machine: must have"}
    for name, words in wrong.items():
        for command in ("show", "report"):
            found = run_cli(command, run)
            assert found.code == 4 and name in found.err and words in found.err, found.err
        study.write_text(whole[0])
        environment.write_text(json.dumps({**told, "machine": {}}))
    assert not (run / "report.html").exists()


def test_a_run_that_lost_every_model_still_has_its_trials(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "trials")
    found = run_facts(run)
    assert [t["test"] for t in found["trials"] if t["status"] == "done"] == [
        on_test(ident) for ident in SAID
    ]
    assert found["estimates"] == [] and len(found["lost"]) == 2
    shown = run_cli("show", run)
    assert shown.code == 0 and "no trial has ended yet" not in shown.out
    assert "fleetune predict" not in shown.err
    told = run_cli("predict", run, "--text", "a")
    assert told.code == 4
    assert (
        "trials/lora-s0" in told.err and "saved model of this run's winner is missing" in told.err
    )


def test_no_run_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no run"):
        run_facts(tmp_path)
    run = make_run(tmp_path / "run")
    path = run / journal.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"lora", b"loga")
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="line 3: damaged"):
        run_facts(run)
