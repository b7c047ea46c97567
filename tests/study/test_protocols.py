"""Protocols of a study: folds and a refit, the paper's way and its optimism, rank studies, several tasks, failures, Optuna."""

from __future__ import annotations

import json
import shutil
import tomllib
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.cohort.events import Advanced
from fleetune.data.base import Split
from fleetune.data.splits import folds
from fleetune.errors import RefusedError, SettingsError
from fleetune.report import study_tables
from fleetune.report.facts import run_facts
from fleetune.report.page_facts import page_facts
from fleetune.report.winner import winner
from fleetune.study import journal
from fleetune.study import run as study_run
from fleetune.study.estimate import estimate
from fleetune.study.file import parse_study
from fleetune.study.journal import Journal
from fleetune.study.keep import Workbench
from fleetune.study.optuna_file import export_optuna
from fleetune.study.rows import FOLDS
from tests.runs import Made, run_cli, texts, write_csv
from tests.study import studies

SMALL = """
[data]
file = "{folder}/train.csv"
test_file = "{folder}/test.csv"
protocol = "{protocol}"

[backbone]
name = "{backbone}"
dtype = "float32"

[training]
num_train_epochs = {epochs}
per_device_train_batch_size = 16
learning_rate = 1e-2

{methods}
"""


def small(
    made: Made,
    methods: str,
    *,
    protocol: str = "holdout",
    epochs: int = 2,
    folder: Path | None = None,
) -> str:
    where = folder or made.folder
    return SMALL.format(
        folder=where, backbone=made.backbone, protocol=protocol, epochs=epochs, methods=methods
    )


# --- cv


@pytest.fixture(scope="module")
def cv(made: Made, tmp_path_factory) -> tuple[str, Path]:
    methods = """
[[methods]]
method = "head"

[[methods]]
method = "lora"
r = [1, 2]

[search]
trials_per_method = 2
sampler = "grid"
pruner = "none"

[confirm]
seeds = 2
reference = "head"
"""
    text = small(made, methods, protocol="cv", epochs=3)
    folder = tmp_path_factory.mktemp("cv") / "run"
    studies.run(folder, text)
    return text, folder


def test_folds_cover_train_once_and_keep_units_whole() -> None:
    labels = np.array([i % 2 for i in range(53)], dtype=np.int64)
    groups = tuple(str(i // 3) for i in range(53))
    split = Split(
        tuple(map(str, range(53))), tuple(f"t{i}" for i in range(53)), None, labels, groups
    )
    found = folds(split, False, 5, seed=3)
    assert sorted(np.concatenate([held for _, held in found]).tolist()) == list(range(53))
    for kept, held in found:
        assert sorted([*kept, *held]) == list(range(53))
        assert not {groups[i] for i in kept} & {groups[i] for i in held}
        assert 9 <= len(held) <= 12 and 0.3 < labels[held].mean() < 0.7
    again = folds(split, False, 5, seed=4)
    assert [h.tolist() for _, h in again] != [h.tolist() for _, h in found]


def test_cv_searches_by_five_folds_and_refits_on_all_of_train(cv) -> None:
    _, folder = cv
    facts = run_facts(folder)
    trials = {t["id"]: t for t in facts["trials"]}
    searched = [t for t in trials.values() if t["phase"] == "search"]
    # A method with nothing to choose tries its one setting, since the folds choose its epochs.
    assert len([t for t in searched if t["method"] == "head"]) == FOLDS
    assert len([t for t in searched if t["method"] == "lora"]) == 2 * FOLDS
    for arm in facts["arms"]:
        own = [trials[i] for i in arm["search"]["trials"]]
        assert len(own) == FOLDS
        curves = [[e["selection"]["accuracy"] for e in t["epochs"]] for t in own]
        mean = np.mean(curves, axis=0)
        assert arm["score"] == pytest.approx(mean.max())
        assert arm["epochs"] == int(mean.argmax()) + 1
        for ident in arm["confirm"]["trials"]:
            confirmed = trials[ident]
            assert len(confirmed["epochs"]) == arm["epochs"] == confirmed["best_epoch"]
            assert all(e["selection"] == {} for e in confirmed["epochs"])
            assert confirmed["train"]["n"] == 60  # all of train
    best = winner(facts)
    scores = {a["arm"]: a["score"] for a in facts["arms"]}
    assert best["method"] == max(scores, key=scores.get)


def test_a_cv_study_is_foreseen_as_it_trains(cv) -> None:
    """Each fold trains on four fifths of train, a refit on all of it, for as many epochs as the folds say: three at the most."""
    text, folder = cv
    planned = {a["arm"]: a for a in estimate(studies.prepared(text))["arms"]}
    facts = run_facts(folder)
    for arm in facts["arms"]:
        own = [t for t in facts["trials"] if t["id"] in arm["confirm"]["trials"]]
        whole = sum(t["tokens"] for t in own) / arm["epochs"] * 3
        found = planned[arm["arm"]]["confirm"]
        assert (found["trials"], found["epochs"]) == (2, 6)
        assert found["tokens"] == pytest.approx(whole)
        searched = planned[arm["arm"]]["search"]
        assert searched["tokens"] == pytest.approx(searched["epochs"] * 0.8 * whole / 6, rel=0.1)


def test_a_cv_study_can_be_shown_and_reported(cv) -> None:
    _, folder = cv
    shown = run_cli("show", folder)
    assert shown.code == 0 and "lora-t01-f1" in shown.out
    facts = run_facts(folder)
    assert "lora r=" in study_tables.found(facts)
    found = page_facts(folder, facts)
    assert found["winner"]["id"] == winner(facts)["id"]


def test_cut_in_the_folds_and_resumed(cv, tmp_path: Path) -> None:
    text, folder = cv
    left = iter(range(40))

    def watch(event) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.run(tmp_path / "run", text, watch=watch)
    studies.run(tmp_path / "run", text)
    assert studies.facts(tmp_path / "run").keys() == studies.facts(folder).keys()
    mine, theirs = (
        {e["arm"]: (e["picks"], e["epochs"]) for e in studies.events(f, "chosen")}
        for f in (tmp_path / "run", folder)
    )
    assert mine == theirs


# --- labels that mean nothing


def shuffled(folder: Path, name: str, n: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(n) % 2)
    lines = [
        f"{text},{'good' if label else 'bad'}"
        for text, label in zip(texts(n, seed), labels, strict=True)
    ]
    (folder / name).write_text("\n".join(["text,label", *lines]) + "\n")


@pytest.mark.slow
def test_shuffled_labels_stay_at_chance_and_the_papers_way_shows_its_optimism(
    made: Made, tmp_path: Path
) -> None:
    shuffled(tmp_path, "train.csv", 120, 1)
    shuffled(tmp_path, "test.csv", 60, 2)
    methods = """
[[methods]]
method = "bitfit"
learning_rate = [3e-3, 1e-2, 3e-2]

[search]
trials_per_method = 3
sampler = "grid"
pruner = "none"

[confirm]
seeds = 5
"""
    value = {}
    for protocol in ("holdout", "paper"):
        text = small(made, methods, protocol=protocol, epochs=10, folder=tmp_path)
        studies.run(tmp_path / protocol, text)
        facts = run_facts(tmp_path / protocol)
        (estimate,) = (e for e in facts["estimates"] if e["metric"] == "accuracy")
        assert estimate["optimistic"] == (protocol == "paper")
        value[protocol] = estimate["value"]
        assert ("OPTIMISTIC" in study_tables.found(facts)) == (protocol == "paper")
    # Three standard errors of an accuracy on 60 examples; more seeds on the same examples hardly narrow it.
    assert abs(value["holdout"] - 0.5) < 3 * (0.25 / 60) ** 0.5
    # Choosing the best of many equal candidates on 277 test rows adds 2 to 4 points by luck alone; on 60 rows it adds more.
    assert value["paper"] - value["holdout"] > 0.02


# --- rank


RANKS = """
[[methods]]
method = "lora"
name = "small"
r = [1, 2, 4]
rank_study = true
reference_rank = 2
lora_alpha = "2r"
learning_rate = [1e-3, 1e-2]

[[methods]]
method = "head"

[search]
trials_per_method = 2
sampler = "grid"
pruner = "none"

[confirm]
seeds = 5
reference = "small-r2"
"""


@pytest.fixture(scope="module")
def ranks(made: Made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "run"
    studies.run(folder, small(made, RANKS))
    return folder


def test_a_rank_study_tunes_and_confirms_each_rank(ranks: Path) -> None:
    facts = run_facts(ranks)
    assert [a["arm"] for a in facts["arms"]] == ["small-r1", "small-r2", "small-r4", "head"] or {
        a["arm"] for a in facts["arms"]
    } == {"small-r1", "small-r2", "small-r4", "head"}
    for arm in facts["arms"]:
        searching = arm["arm"] != "head"
        assert arm["search"]["tried"] == (2 if searching else 0)
        assert set(arm["chosen"]) == ({"learning_rate"} if searching else set())
        assert arm["confirm"]["done"] == 5
    (study,) = facts["rank"]
    assert (study["reference"], study["rule"], study["method"], study["name"]) == (
        2,
        "2r",
        "lora",
        "small",
    )
    assert [r["r"] for r in study["ranks"]] == [1, 2, 4]
    estimates = {
        e["hyperparameters"].get("r"): e for e in facts["estimates"] if e["metric"] == "accuracy"
    }
    for rank in study["ranks"]:
        assert rank["value"] == estimates[rank["r"]]["value"] and rank["seeds"] == 5
        assert rank["lora_alpha"] == 2 * rank["r"]
        assert rank["tokens_per_second"] > 0 and rank["training_bytes"] > 0
        trials = [
            t
            for t in facts["trials"]
            if t["phase"] == "confirm" and t["hyperparameters"].get("r") == rank["r"]
        ]
        gaps = [
            t["train"]["accuracy"] - t["epochs"][t["best_epoch"] - 1]["selection"]["accuracy"]
            for t in trials
        ]
        assert rank["gap"] == pytest.approx(np.mean(gaps))
    counted = [r["trainable_parameters"]["encoder"] for r in study["ranks"]]
    assert counted == [counted[0], 2 * counted[0], 4 * counted[0]]


def test_a_range_of_ranks_is_kept_as_the_list_that_it_stands_for(made: Made) -> None:
    """What reads the run looks the ranks up there."""
    text = small(made, RANKS.replace("r = [1, 2, 4]", "r = { low = 1, high = 4, steps = 4 }"))
    prepared = studies.prepared(text)
    assert prepared.settings.methods[0].hyperparameters["r"] == [1, 2, 3, 4]
    # And the study's reference, where it is a rank, is that of the ranks.
    text = text.replace("reference_rank = 2\n", "").replace("small-r2", "small-r3")
    assert studies.prepared(text).settings.methods[0].reference_rank == 3
    assert [arm.rank for arm in prepared.arms if arm.rank] == [1, 2, 3, 4]


def test_a_rank_study_has_a_slope_and_contrasts_with_holm(ranks: Path) -> None:
    facts = run_facts(ranks)
    trend = facts["rank"][0]["trend"]
    values = {r["r"]: r["value"] for r in facts["rank"][0]["ranks"]}
    assert trend["slope"] == pytest.approx(
        np.polyfit([0, 1, 2], [values[r] for r in (1, 2, 4)], 1)[0]
    )
    assert [c["difference"] for c in trend["contrasts"]] == pytest.approx(
        [values[1] - values[2], values[4] - values[2]]
    )
    assert all(c["p_adjusted"] >= c["p_value"] for c in trend["contrasts"])
    assert len(facts["verdicts"]) == 3 and {v["reference"] for v in facts["verdicts"]} == {
        c["reference"] for c in trend["contrasts"]
    }
    printed = study_tables.found(facts)
    assert "ranks of small on train" in printed and "slope for each doubling of r" in printed
    assert "  r=1 against r=2: " in printed and "  r=4 against r=2: " in printed
    json.dumps(facts, allow_nan=False)


# --- several tasks, failures, Optuna


def test_two_tasks_in_one_study(made: Made, tmp_path: Path) -> None:
    write_csv(tmp_path / "other.csv", 60, seed=3, labels=("a", "b", "c"))
    text = small(
        made,
        '[[methods]]\nmethod = "head"\n[[methods]]\nmethod = "bitfit"\n[confirm]\nseeds = 2\n',
        epochs=1,
    )
    text = text.replace("[data]", f'[[data]]\nfile = "{tmp_path}/other.csv"\n\n[[data]]')
    studies.run(tmp_path / "run", text)
    facts = run_facts(tmp_path / "run")
    assert facts["study"]["data"]["task"] == "other, train"
    assert {t["id"] for t in facts["trials"]} >= {"other-head-s1000", "train-bitfit-s1001"}
    assert {(v["task"], v["n"]) for v in facts["verdicts"]} == {("other", 6), ("train", 24)}
    assert all("Holm over 2 comparisons" in v["how"] for v in facts["verdicts"])
    assert not [t for t in facts["trials"] if t["phase"] == "search"]
    shown = run_cli("show", tmp_path / "run")
    assert shown.code == 0
    table = shown.out[shown.out.index("95% interval") - 60 :].splitlines()
    said = {tuple(line.split()[:3]) for line in table if "accuracy" in line}
    assert said >= {
        (task, m, "accuracy") for task in ("other", "train") for m in ("head", "bitfit")
    }
    write_csv(tmp_path / "other.csv", 60, seed=4, labels=("a", "b", "c"))
    with pytest.raises(RefusedError, match="data of other"):
        studies.run(tmp_path / "run", text)


def test_a_tasks_backbone_is_gone_before_the_next_is_loaded(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next one is planned with less memory than there is, and several are held."""
    opened: list[weakref.ref[Any]] = []
    alive: list[int] = []
    open_workbench = study_run.open_workbench

    def opening(*given: Any) -> Workbench:
        alive.append(sum(model() is not None for model in opened))
        bench = open_workbench(*given)
        opened.append(weakref.ref(bench.engine.backbone.model))
        return bench

    monkeypatch.setattr(study_run, "open_workbench", opening)
    for name in ("other", "third"):
        write_csv(tmp_path / f"{name}.csv", 60, seed=3)
    more = "".join(f'[[data]]\nfile = "{tmp_path}/{n}.csv"\n\n' for n in ("other", "third"))
    text = small(made, '[[methods]]\nmethod = "lora"\n[confirm]\nseeds = 1\n', epochs=1)
    studies.run(tmp_path / "run", text.replace("[data]", f"{more}[[data]]"))
    assert alive == [0, 0, 0]


def test_what_cannot_share_a_backbone_searches_one_trial_at_a_time(
    made: Made, tmp_path: Path
) -> None:
    methods = """
[[methods]]
method = "full"
learning_rate = [1e-4, 1e-3, 1e-2]

[[methods]]
method = "head"

[search]
trials_per_method = 3
sampler = "grid"

[confirm]
seeds = 1
"""
    most: dict[str, int] = {}

    def watch(event) -> None:
        if isinstance(event, Advanced):
            for trial in event.trials:
                name = f"{trial.given.spec.method} {trial.given.spec.phase}"
                most[name] = max(most.get(name, 0), len(event.trials))

    studies.run(tmp_path / "run", small(made, methods, epochs=3), watch=watch)
    assert most == {"full search": 1, "full confirm": 1, "head confirm": 1}
    facts = run_facts(tmp_path / "run")
    arms = {a["arm"]: a for a in facts["arms"]}
    assert arms["full"]["search"]["stopped"] == 2 and arms["head"]["search"]["tried"] == 0
    assert arms["full"]["search"]["epochs_trained"] == 3 + 2


def test_failed_trials_are_counted_and_a_method_without_a_setting_is_left_out(
    made: Made, tmp_path: Path
) -> None:
    methods = """
[[methods]]
method = "head"
learning_rate = [1e-2, 1e30]

[[methods]]
method = "lora"
learning_rate = [1e28, 1e30]

[search]
trials_per_method = 2
sampler = "grid"

[confirm]
seeds = 1
"""
    study = tmp_path / "study.toml"
    study.write_text(small(made, methods))
    told = run_cli("study", study, "--output-dir", tmp_path / "run")
    assert told.code == 3, told.err
    arms = {a["arm"]: a for a in run_facts(tmp_path / "run")["arms"]}
    assert arms["head"]["chosen"] == {"learning_rate": 1e-2}
    assert arms["lora"]["chosen"] is None and arms["lora"]["search"]["failed"] == 2
    assert "none: every trial failed" in told.out
    failed = arms["head"]["search"]["failed"]
    assert failed in (0, 1)
    assert f"{failed + 2} trials failed" in told.err
    # The same command again does not try them a second time.
    before = len(studies.events(tmp_path / "run", "trial-started"))
    assert run_cli("study", study, "--output-dir", tmp_path / "run").code == 3
    assert len(studies.events(tmp_path / "run", "trial-started")) == before


def test_export_to_optuna(ranks: Path, cv, tmp_path: Path) -> None:
    import optuna

    for run, expected in ((ranks, {"train/small-r1": 2, "train/small-r2": 2, "train/small-r4": 2}),
                          (cv[1], {"train/lora": 2, "train/head": 1})):  # fmt: skip
        output = tmp_path / f"50%3F & ?{len(expected)}.db"
        told = run_cli("export", run, "--format", "optuna", "--output", output)
        assert told.code == 0, told.err
        assert f"sqlite:///{tmp_path}/50%253F" in told.err  # a URL that leads to it
        # What Optuna reads has no path of a URL's own signs.
        url = f"sqlite:///{shutil.copy(output, tmp_path / f'{len(expected)}.db')}"
        assert dict.fromkeys(optuna.get_all_study_names(url)) == dict.fromkeys(sorted(expected))
        facts = run_facts(run)
        for name, count in expected.items():
            study = optuna.load_study(study_name=name, storage=url)
            assert len(study.trials) == count
            (arm,) = (a for a in facts["arms"] if f"train/{a['arm']}" == name)
            assert study.best_value == pytest.approx(arm["score"])
            assert study.best_trial.user_attrs["trials"] == arm["search"]["trials"]
            assert study.best_params == arm["chosen"]
        assert not list(tmp_path.glob(".tmp-*"))
    with pytest.raises(RefusedError, match="is there already"):
        export_optuna(ranks, tmp_path / "3.db")


def test_a_search_under_loss_is_minimised_before_a_trial_has_ended(
    ranks: Path, tmp_path: Path
) -> None:
    """The direction is the metric's, and an Optuna study keeps what it was made with."""
    import optuna

    run = shutil.copytree(ranks, tmp_path / "run")
    events = journal.read(run / journal.NAME)
    (run / journal.NAME).unlink()
    with closing(Journal(run / journal.NAME)) as book:
        for e in events:
            if e["kind"] in ("trial-done", "trial-stopped", "epoch"):
                continue
            told = {k: v for k, v in e.items() if k not in ("kind", "time")}
            if e["kind"] == "trial-started":
                told["training"] |= {"metric_for_best_model": "loss", "greater_is_better": False}
            book.append(e["kind"], **told)
    export_optuna(run, tmp_path / "early.db")
    url = f"sqlite:///{tmp_path / 'early.db'}"
    for name in optuna.get_all_study_names(url):
        study = optuna.load_study(study_name=name, storage=url)
        assert study.direction == optuna.study.StudyDirection.MINIMIZE and study.trials == []


def test_a_search_with_nothing_to_search_is_told(made: Made, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(
        small(made, '[[methods]]\nmethod = "head"\n\n[search]\n\n[confirm]\nseeds = 1\n')
    )
    told = run_cli("study", study, "--dry-run")
    assert told.code == 0 and "nothing is searched, since no method gives a list" in told.err
    study.write_text(
        study.read_text().replace('"head"\n', '"head"\nlearning_rate = [1e-3, 1e-2]\n')
    )
    assert "nothing is searched" not in run_cli("study", study, "--dry-run").err


def test_nothing_to_export_is_said(made: Made, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing was searched"):
        export_optuna(made.run, tmp_path / "study.db")
    assert not list(tmp_path.iterdir())


def test_train_refuses_what_only_a_study_can_do(made: Made, tmp_path: Path) -> None:
    words = ("train", "--data", made.folder / "train.csv", "--backbone", made.backbone)
    words = (*words, "--output-dir", tmp_path / "run")
    told = run_cli(*words, "--set", "r=[1, 2]")
    assert told.code == 2 and "use fleetune study" in told.err
    told = run_cli(*words, "--protocol", "cv")
    assert told.code == 2 and "it is for fleetune study" in told.err
    assert not (tmp_path / "run").exists()


def test_stored_studies_read_again(ranks: Path, cv) -> None:
    from fleetune.study.settings import as_toml

    for folder in (ranks, cv[1]):
        stored = tomllib.loads((folder / "study.toml").read_text())
        assert as_toml(studies.prepare(parse_study(stored)).settings) == stored


def test_a_study_of_steps_that_an_earlier_version_began_goes_on(made: Made, tmp_path: Path) -> None:
    """Six steps are one epoch of batches of 8 and six of batches of 64, and the rung lies between; a new study is refused."""
    methods = """
[[methods]]
method = "head"
per_device_train_batch_size = [64, 8]
learning_rate = [1e-3, 1e-2, 3e-2]

[search]
trials_per_method = 6
sampler = "grid"

[confirm]
seeds = 1
"""
    text = small(made, methods).replace("num_train_epochs = 2", "max_steps = 6")
    study, run = tmp_path / "study.toml", tmp_path / "run"
    study.write_text(text)
    told = run_cli("study", study, "--output-dir", run)
    assert told.code == 2 and "cannot be searched where max_steps=6" in told.err
    assert not run.exists()
    began = studies.prepare(parse_study(tomllib.loads(text), begun=True))

    def cut(event) -> None:
        if isinstance(event, Advanced) and len(studies.events(run, "trial-started")) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.run(run, began, watch=cut, trials=1)
    told = run_cli("study", study, "--output-dir", run)
    assert told.code == 0, told.err
    (arm,) = run_facts(run)["arms"]
    assert (arm["search"]["tried"], arm["search"]["failed"], arm["confirm"]["done"]) == (6, 0, 1)
    assert run_cli("export", run, "--format", "optuna", "--output", tmp_path / "s.db").code == 0
