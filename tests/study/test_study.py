"""Studies end to end: search, confirm, the seal on the test rows, cuts in the middle of each phase."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from fleetune.cohort.events import EpochDone, Started
from fleetune.cohort.kernels import KEPT
from fleetune.errors import RefusedError
from fleetune.report.facts import run_facts
from fleetune.report.winner import winner
from fleetune.study.estimate import matrix_rate
from fleetune.study.folder import refuse_changes
from fleetune.study.prepare import Prepared
from fleetune.study.run import Run
from fleetune.study.seal import Seal
from tests.runs import Made, run_cli, tree
from tests.study import studies


@pytest.fixture(scope="module")
def ready(made: Made) -> Prepared:
    return studies.prepared(studies.text(made))


@pytest.fixture(scope="module")
def whole(ready: Prepared, tmp_path_factory) -> tuple[Path, list]:
    """A study that was never cut, and its events."""
    folder = tmp_path_factory.mktemp("study") / "run"
    seen: list = []
    outcome = studies.run(folder, ready, watch=seen.append)
    assert outcome.failed == 0
    return folder, seen


def test_every_method_has_the_same_budget(whole) -> None:
    folder, _ = whole
    chosen = {e["arm"]: e for e in studies.events(folder, "chosen")}
    assert set(chosen) == {"bitfit", "lora"}
    assert [chosen[a]["tried"] for a in chosen] == [4, 4]
    # Batches of 3 and 1: three epochs for each whole trial, and at epoch 1 the best of three goes on.
    assert [chosen[a]["epochs_trained"] for a in chosen] == [3 + 2 + 3] * 2
    assert [chosen[a]["stopped"] for a in chosen] == [2, 2]


def test_confirm_uses_fresh_seeds_that_are_the_same_for_every_method(whole) -> None:
    folder, _ = whole
    trials = run_facts(folder)["trials"]
    seeds = {
        phase: {m: {t["seed"] for t in trials if (t["phase"], t["method"]) == (phase, m)} for m in ("bitfit", "lora")}
        for phase in ("search", "confirm")
    }  # fmt: skip
    assert seeds["confirm"]["bitfit"] == seeds["confirm"]["lora"] == {1000, 1001}
    assert not seeds["search"]["bitfit"] & seeds["confirm"]["bitfit"]
    assert sorted(p.name for p in (folder / "trials").iterdir()) == [
        "bitfit-s1000", "bitfit-s1001", "lora-s1000", "lora-s1001",
    ]  # fmt: skip


def test_the_rule_holds_in_every_trial(whole) -> None:
    folder, _ = whole
    lora = [t for t in run_facts(folder)["trials"] if t["method"] == "lora"]
    assert {t["hyperparameters"]["r"] for t in lora} <= {1, 2}
    for t in lora:
        assert t["hyperparameters"]["lora_alpha"] == 4 * t["hyperparameters"]["r"]
        assert 1e-3 <= t["training"]["learning_rate"] <= 1e-1


def test_the_chosen_setting_is_the_best_that_trained_to_its_end(whole) -> None:
    folder, _ = whole
    trials = {t["id"]: t for t in run_facts(folder)["trials"]}
    for e in studies.events(folder, "chosen"):
        own = [t for t in trials.values() if t["phase"] == "search" and t["method"] == e["arm"]]
        done = [t for t in own if t["status"] == "done"]
        # A setting may be tried more than once, each time with another seed: then the mean counts.
        settings: dict[str, list[dict[str, Any]]] = {}
        for t in done:
            settings.setdefault(repr((t["hyperparameters"], t["training"])), []).append(t)
        losses = {
            tuple(t["id"] for t in tried): np.mean(
                [min(x["selection"]["loss"] for x in t["epochs"]) for t in tried]
            )
            for tried in settings.values()
        }
        assert e["score"] == pytest.approx(min(losses.values()))
        assert tuple(e["trials"]) == min(losses, key=losses.get)


def test_facts_have_verdicts_against_the_reference(whole) -> None:
    folder, _ = whole
    facts = run_facts(folder)
    (verdict,) = facts["verdicts"]
    assert verdict["reference"] == "bitfit" and verdict["method"].startswith("lora r=")
    assert verdict["seeds"] == 2 and verdict["n"] == 24
    assert verdict["verdict"] == "cannot tell"  # two seeds never give more
    value = {e["method"]: e["value"] for e in facts["estimates"] if e["metric"] == "accuracy"}
    a, b = value["bitfit"], value["lora"]
    assert verdict["difference"] == pytest.approx(b - a)
    best = winner(facts)
    scores = {
        t["id"]: min(e["selection"]["loss"] for e in t["epochs"])
        for t in facts["trials"]
        if t["phase"] == "confirm"
    }
    mean = {m: (scores[f"{m}-s1000"] + scores[f"{m}-s1001"]) / 2 for m in ("bitfit", "lora")}
    assert best["method"] == min(mean, key=mean.get)


def test_the_stored_study_holds_every_setting_and_reads_as_a_study(whole) -> None:
    from fleetune.study.file import parse_study

    folder, _ = whole
    stored = tomllib.loads((folder / "study.toml").read_text())
    lora = stored["methods"][1]
    assert lora["lora_alpha"] == "4r" and lora["r"] == [1, 2] and lora["weight_decay"] == 0.0
    assert stored["search"]["batch"] == 3 and stored["confirm"]["first_seed"] == 1000
    again = parse_study(stored)
    assert again.seeds == (1000, 1001) and again.search.trials_per_method == 4
    assert [m.method for m in again.methods] == ["bitfit", "lora"]


def test_the_same_command_again_trains_nothing(whole, ready: Prepared) -> None:
    folder, _ = whole
    before, seen = tree(folder), []
    studies.run(folder, ready, watch=seen.append)
    assert seen == []
    assert {k for k, v in tree(folder).items() if v != before.get(k)} == {"journal.jsonl"}


def cut(folder: Path, ready: Prepared, at: int) -> None:
    """Run until so many events have been seen."""
    left = iter(range(at))

    def watch(event) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.run(folder, ready, watch=watch)


@pytest.mark.parametrize("place", ["search", "parked", "confirm"])
def test_cut_and_resumed_gives_the_same_journal_facts(
    whole, ready: Prepared, tmp_path: Path, place: str
) -> None:
    folder, seen = whole
    phase = [getattr(getattr(e, "trial", None), "given", None) for e in seen]
    first_confirm = next(
        i for i, g in enumerate(phase) if g is not None and g.spec.phase == "confirm"
    )
    ends = [i for i, e in enumerate(seen) if isinstance(e, EpochDone)]
    searching = [i for i in ends if i < first_confirm]
    at = {
        "search": searching[1] + 2,
        "parked": searching[len(searching) // 2] + 3,
        "confirm": next(i for i in ends if i > first_confirm) + 1,
    }[place]
    cut(tmp_path / "run", ready, at)
    studies.run(tmp_path / "run", ready)
    assert studies.facts(tmp_path / "run") == studies.facts(folder)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_cut_again_and_again(whole, ready: Prepared, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("fleetune.study.run.SAVE_SECONDS", 0.0)
    folder, seen = whole
    for _ in range(len(seen) // 5):
        try:
            cut(tmp_path / "run", ready, 8)
        except pytest.fail.Exception:
            break
    studies.run(tmp_path / "run", ready)
    assert studies.facts(tmp_path / "run") == studies.facts(folder)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_trials_do_not_depend_on_the_cohort_size(
    whole, ready: Prepared, tmp_path: Path, size: int
) -> None:
    """The fixture's cohort holds all trials at once."""
    folder, _ = whole
    most = 0
    active: set[str] = set()

    def watch(event) -> None:
        nonlocal most
        if isinstance(event, Started):
            active.add(event.trial.id)
        elif hasattr(event, "trial") and type(event).__name__ in ("TrialDone", "TrialParked"):
            active.discard(event.trial.id)
        most = max(most, len(active))

    studies.run(tmp_path / "run", ready, trials=size, watch=watch)
    assert most == size
    assert studies.proposals(tmp_path / "run") == studies.proposals(folder)
    mine, theirs = (
        {(e["kind"], e["id"]) for e in studies.events(f, "trial-done", "trial-stopped")}
        for f in (tmp_path / "run", folder)
    )
    assert mine == theirs
    picks = [
        {e["arm"]: e["picks"] for e in studies.events(f, "chosen")}
        for f in (tmp_path / "run", folder)
    ]
    assert picks[0] == picks[1]


# --- the seal


def test_the_test_rows_are_opened_after_the_search_and_once_a_trial(whole) -> None:
    folder, _ = whole
    order = [
        (e["kind"], e.get("id"))
        for e in studies.events(folder, "chosen", "test-declared", "test-opened", "trial-done")
    ]
    opened = [i for i, (kind, _) in enumerate(order) if kind == "test-opened"]
    declared = order.index(("test-declared", None))
    assert max(i for i, (kind, _) in enumerate(order) if kind == "chosen") < declared < min(opened)
    assert len(opened) == len({order[i][1] for i in opened}) == 4
    for i in opened:
        assert order.index(("trial-done", order[i][1])) > i


def test_a_search_has_no_way_to_the_test_rows(ready: Prepared, tmp_path: Path) -> None:
    """Everything that can be reached from a search, followed through attributes, holds no test row and no test token."""
    from fleetune.study import plan
    from fleetune.study.journal import Journal

    journal = Journal(tmp_path / "journal.jsonl")
    task = ready.tasks[0]
    search = plan.search(ready, task, ready.arms, journal)
    for _ in range(8):
        search.next()
    journal.close()
    forbidden = {id(task), id(task.dataset), id(ready)}
    forbidden |= {id(x) for x in (*task.dataset.tests.values(), *task.test_tables.values())}
    forbidden |= {id(task.test_tables), id(task.dataset.tests)}
    seen = reachable(search)
    assert id(task.rows.table) in seen  # it does follow what is there
    assert not forbidden & seen


def reachable(start: object) -> set[int]:
    """Everything that data and closures of an object lead to; modules, classes and functions' globals are not data."""
    import functools
    import types

    seen: dict[int, object] = {}
    todo = [start]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType | str | bytes | int | float):
            continue
        seen[id(one)] = one
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset) or hasattr(one, "popleft"):
            todo += list(one)
        elif isinstance(one, functools.partial):
            todo += [*one.args, *one.keywords.values()]
        else:
            todo += [getattr(one, s, None) for s in _slots(one)]
            todo += list(getattr(one, "__dict__", {}).values())
            todo += [c.cell_contents for c in getattr(one, "__closure__", None) or ()]
            todo += [getattr(one, "__self__", None)]
    return set(seen)


def _slots(one: object) -> list[str]:
    return [s for c in type(one).__mro__ for s in getattr(c, "__slots__", ())]


def test_other_settings_cannot_open_the_test_rows_again(whole, ready: Prepared) -> None:
    from dataclasses import replace

    from fleetune.study.journal import Journal
    from fleetune.study.plan import confirm_trials
    from fleetune.study.search import Chosen

    folder, _ = whole
    task = ready.tasks[0]
    other = {
        "bitfit": Chosen("bitfit", {"learning_rate": 3.14e-3}, None, None),
        "lora": Chosen("lora", {"learning_rate": 2e-3, "r": 1}, None, None),
    }
    inputs = confirm_trials(replace(ready), task, other)
    before = tree(folder)
    journal = Journal(folder / "journal.jsonl")
    try:
        seal = Seal(journal, task)
        with pytest.raises(RefusedError, match="sealed for 4 other trials"):
            seal.declare(inputs)
        with pytest.raises(RefusedError, match="sealed for other settings"):
            seal.open(inputs[0])
    finally:
        journal.close()
    assert tree(folder) == before


def test_a_method_more_is_one_difference(whole) -> None:
    """And not one for each of its settings, nor for each of those that changed places with it."""
    folder, _ = whole
    changed = tomllib.loads((folder / "study.toml").read_text())
    changed["methods"] = [{**changed["methods"][0], "method": "head"}, *changed["methods"]]
    with pytest.raises(RefusedError) as caught:
        refuse_changes(folder / "study.toml", tomli_w.dumps(changed))
    told = str(caught.value).splitlines()[1:]
    assert told == ["  methods: ['bitfit', 'lora'] there, ['head', 'bitfit', 'lora'] now"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("seeds = 2", "seeds = 3"), "confirm.seeds: 2 there, 3 now"),
        (("trials_per_method = 4", "trials_per_method = 5"), "search.trials_per_method"),
        (("r = [1, 2]", "r = [1, 4]"), "methods.lora.r"),
        (
            ("lora_dropout = 0.1", "lora_dropout = 0.2"),
            "methods.lora.lora_dropout: 0.1 there, 0.2 now",
        ),
        (('"holdout"', '"cv"'), "data.protocol"),
    ],
)
def test_a_changed_study_is_refused_with_the_difference(whole, made: Made, change, named) -> None:
    folder, _ = whole
    before = tree(folder)
    with pytest.raises(RefusedError) as error:
        studies.run(folder, studies.text(made).replace(*change))
    assert named in str(error.value)
    assert tree(folder) == before


# --- the command


def test_a_dry_run_writes_nothing(made: Made, tmp_path: Path, own_environment: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(studies.text(made))
    before = tree(tmp_path), tree(own_environment)
    told = run_cli(
        "study", study, "--dry-run", "--output-dir", tmp_path / "run", "--set", "confirm.seeds=3"
    )
    assert told.code == 0, told.err
    assert "first proposals" in told.out and "bitfit, lora" in told.out
    assert (tree(tmp_path), tree(own_environment)) == before
    found = json.loads(run_cli("study", study, "--dry-run", "--json").out)
    arms = {a["arm"]: a for a in found["arms"]}
    assert arms["lora"]["search"] == {**arms["lora"]["search"], "trials": 4, "epochs": 8}
    assert arms["lora"]["confirm"]["trials"] == 2 and arms["lora"]["confirm"]["epochs"] == 6
    assert found["totals"]["trials"] == 12 and found["totals"]["epochs"] == 28
    assert all(found["totals"][k] > 0 for k in ("seconds", "memory_bytes", "disk_bytes"))
    assert (tree(tmp_path), tree(own_environment)) == before


def test_a_dry_run_counts_the_steps_that_are_asked_for(made: Made, tmp_path: Path) -> None:
    """Two steps are a part of an epoch, and cost as much of it."""
    study = tmp_path / "study.toml"
    study.write_text(studies.text(made))
    asked = ("study", study, "--dry-run", "--json")
    epoch = json.loads(run_cli(*asked, "--set", "training.num_train_epochs=1").out)
    steps = json.loads(run_cli(*asked, "--set", "training.max_steps=2").out)
    share = 2 * 8 / 54  # rows of two steps, and rows of an epoch: of 60 a tenth selects
    for one, other in zip(epoch["arms"], steps["arms"], strict=True):
        assert one["search"]["epochs"] == other["search"]["epochs"]
        for phase in ("search", "confirm"):
            assert other[phase]["tokens"] == pytest.approx(share * one[phase]["tokens"], rel=1e-3)


def test_an_estimate_leaves_few_kernels_to_the_run_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The libraries read their limits when the first kernel of the process is compiled, which is the estimate's."""
    for name in KEPT:
        monkeypatch.delenv(name, raising=False)
    limits: list[dict[str, str | None]] = []
    draw = torch.randn

    def drawn(*words: Any, **named: Any) -> torch.Tensor:
        limits.append({name: os.environ.get(name) for name in KEPT})
        return draw(*words, **named)

    monkeypatch.setattr(torch, "randn", drawn)
    assert matrix_rate("float32", "cpu") > 0
    assert limits == [{name: str(count) for name, count in KEPT.items()}] * 2


def test_the_dry_run_says_what_the_run_does(whole, ready: Prepared) -> None:
    from fleetune.study.estimate import estimate

    folder, _ = whole
    planned = estimate(ready)
    trials = run_facts(folder)["trials"]
    assert planned["totals"]["trials"] == len(trials)
    assert planned["totals"]["epochs"] == sum(len(t["epochs"]) for t in trials)
    for arm in planned["arms"]:
        assert arm["first_proposals"] == studies.proposals(folder)[arm["arm"], 0]
        counted = {json.dumps(t["trainable_parameters"]) for t in trials if t["method"] == "bitfit"}
        if arm["arm"] == "bitfit":
            assert counted == {json.dumps(arm["trainable_parameters"])}


def test_the_command_prints_verdicts_and_show_reads_it(whole, made: Made, tmp_path: Path) -> None:
    folder, _ = whole
    study = tmp_path / "study.toml"
    study.write_text(studies.text(made))
    told = run_cli("study", study, "--output-dir", folder)
    assert told.code == 0, told.err
    assert "cannot tell" in told.out and "winner by selection rows" in told.err
    shown = json.loads(run_cli("show", folder, "--json").out)
    assert {t["status"] for t in shown["trials"]} == {"done", "stopped"}
    assert {t["phase"] for t in shown["trials"]} == {"search", "confirm"}
    assert run_cli("show", folder).code == 0


def test_a_lost_model_does_not_end_its_run(whole, made: Made, tmp_path: Path) -> None:
    """The same command goes on and prints what is left; a person who asks for the lost model is told what to do."""
    folder, _ = whole
    run, study = tmp_path / "run", tmp_path / "study.toml"
    shutil.copytree(folder, run)
    study.write_text(studies.text(made))
    lost = winner(run_facts(run))["id"]
    shutil.rmtree(run / "trials" / lost)
    told = run_cli("study", study, "--output-dir", run)
    assert told.code == 0, told.err
    assert f"the saved models of {lost} are missing; their scores are kept" in told.err
    assert f"since trials/{lost}/predictions.parquet is missing" in told.out
    assert run_cli("report", run).code == 0
    told = run_cli("predict", run, "--text", "a")
    assert told.code == 4 and f"trials/{lost}" in told.err
    other = told.err.partition("such as ")[2].split()[0]
    assert run_cli("predict", other, "--text", "a").code == 0


def test_a_run_of_a_study_has_no_trials_before_its_search(ready: Prepared, tmp_path: Path) -> None:
    assert Run(tmp_path, ready).prepared.inputs == ()
