"""Runs end to end: folders, resuming at any moment, refusals, protocols, failures, other layouts."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from fleetune import durable
from fleetune.artifact import layout
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, EpochDone, TrialDone, TrialFailed
from fleetune.errors import DataError, RefusedError, SettingsError
from fleetune.report import tables
from fleetune.report.facts import run_facts
from fleetune.report.model_facts import model_facts
from fleetune.serve.predictor import model_folder
from fleetune.study import checkpoints, journal, seal
from fleetune.study import run as study_run
from fleetune.study.folder import locked
from fleetune.study.journal import Journal
from fleetune.study.machine import refuse_changes
from fleetune.study.prepare import MethodSettings, Prepared, prepare
from fleetune.study.run import Run
from fleetune.study.seal import Seal
from tests.backbone.hub import LocalHub
from tests.runs import (
    METHODS,
    Made,
    on_task,
    run_cli,
    settings,
    train,
    tree,
    write_csv,
    write_glue,
)

IDS = [f"{method}-s{seed}" for method in METHODS for seed in (0, 1)]
EXACT = (layout.WEIGHTS, layout.PREDICTIONS, layout.CONFIG, layout.CARD)


def kinds(run: Path) -> Counter[tuple[str, str]]:
    return Counter((e["kind"], e.get("id", "")) for e in journal.read(run / journal.NAME))


def without_time(value):
    """The same JSON value without its times, and without checksums of files that hold times."""
    if isinstance(value, dict):
        left = (k for k in value if k not in ("seconds", "time", "metrics.json"))
        return {k: without_time(value[k]) for k in left}
    return [without_time(v) for v in value] if isinstance(value, list) else value


def assert_same_run(found: Path, expected: Path) -> None:
    """The same models, predictions and numbers, byte by byte; only times may differ."""
    assert sorted(p.name for p in (found / "trials").iterdir()) == sorted(
        p.name for p in (expected / "trials").iterdir()
    )
    for trial in sorted((expected / "trials").iterdir()):
        mine = found / "trials" / trial.name
        for name in EXACT:
            assert (mine / name).read_bytes() == (trial / name).read_bytes(), (trial.name, name)
        for name in (layout.METRICS, layout.RECORD):
            a, b = (json.loads((f / name).read_bytes()) for f in (mine, trial))
            assert without_time(a) == without_time(b), (trial.name, name)
    a, b = (pq.read_table(f / "results.parquet").drop(["seconds"]) for f in (found, expected))
    assert a.equals(b)
    assert without_time(run_facts(found)["trials"]) == without_time(run_facts(expected)["trials"])
    counted = kinds(found)
    for ident in (p.name for p in (expected / "trials").iterdir()):
        assert counted["test-opened", ident] == counted["trial-done", ident] == 1
    assert not list((found / "checkpoints").iterdir())
    assert not list(found.rglob(".tmp-*"))


def stop_after(events: int):
    left = iter(range(events))

    def watch(event) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return watch


def resume(folder: Path, prepared: Prepared, *stops: int) -> None:
    """Stop after so many events, again and again, and then run to the end."""
    for stop in stops:
        try:
            train(folder, prepared, stop_after(stop))
        except KeyboardInterrupt:
            assert run_facts(folder)["study"]["status"] == "stopped"
    train(folder, prepared)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> tuple[Prepared, Path, list]:
    """A run wide enough that the rounding of a product depends on who shares it, and its events."""
    from tests.backbone.hub import save_tiny

    folder = tmp_path_factory.mktemp("wide")
    save_tiny(folder / "backbone", hidden_size=64, intermediate_size=128)
    write_csv(folder / "train.csv", 60)
    write_csv(folder / "test.csv", 24, seed=7)
    methods = ("bitfit", MethodSettings("lora", {"lora_dropout": 0.1}), "full")
    prepared = prepare(
        replace(
            settings(folder, folder / "backbone", methods),
            # Trials of unequal length: one leaves early, the others go on.
            methods=(
                MethodSettings("bitfit", training={"num_train_epochs": 3}),
                MethodSettings("lora", {"lora_dropout": 0.1}),
                MethodSettings("full", training={"num_train_epochs": 1}),
            ),
        )
    )
    events: list = []
    train(folder / "whole", prepared, events.append)
    return prepared, folder / "whole", events


def test_folder_is_as_the_design_says(made: Made) -> None:
    names = {p.name for p in made.run.iterdir()} - {".lock"}
    assert names == {
        "study.toml",
        "environment.json",
        "journal.jsonl",
        "results.parquet",
        "trials",
        "checkpoints",
    }
    assert sorted(p.name for p in (made.run / "trials").iterdir()) == sorted(IDS)
    for ident in IDS:
        assert {p.name for p in (made.run / "trials" / ident).iterdir()} == {
            layout.CONFIG,
            layout.WEIGHTS,
            layout.CARD,
            layout.METRICS,
            layout.PREDICTIONS,
            layout.RECORD,
        }
    stored = tomllib.loads((made.run / "study.toml").read_text())
    assert [m["method"] for m in stored["methods"]] == list(METHODS)
    assert stored["seeds"] == [0, 1]
    for method in stored["methods"]:
        assert method["learning_rate"] == 1e-2
        assert method["adam_epsilon"] == 1e-8  # a default, resolved
    environment = json.loads((made.run / "environment.json").read_bytes())
    assert environment["data"]["rows"] == {"train": 60, "test": 24}
    assert len(environment["backbone"]["checksum"]) == 64
    results = pq.read_table(made.run / "results.parquet").to_pylist()
    assert [(r["id"], r["epoch"]) for r in results] == [(i, e) for i in IDS for e in (1, 2)]
    predictions = pq.read_table(made.run / "trials/lora-s0/predictions.parquet").to_pydict()
    assert len(predictions["id"]) == 24 and len(predictions["logits"][0]) == 2
    metrics = json.loads((made.run / "trials/lora-s0/metrics.json").read_bytes())
    right = [
        int(np.argmax(logits)) == int(label)
        for logits, label in zip(predictions["logits"], predictions["label"], strict=True)
    ]
    assert metrics["test"] == metrics["tests"]["test"]
    assert metrics["test"]["accuracy"] == np.mean(right) and metrics["test"]["n"] == 24


def test_seeds_and_methods_give_different_models(made: Made) -> None:
    weights = {(made.run / "trials" / i / layout.WEIGHTS).read_bytes() for i in IDS}
    assert len(weights) == len(IDS)


def test_the_same_command_again_changes_nothing(made: Made) -> None:
    before, seen = tree(made.run), []
    outcome = train(made.run, settings(made.folder, made.backbone), seen.append)
    assert (outcome.done, outcome.failed, outcome.skipped) == (8, 0, 8)
    assert seen == []
    after = tree(made.run)
    assert {k for k in after if after[k] != before.get(k)} == {"journal.jsonl"}
    assert after["journal.jsonl"].startswith(before["journal.jsonl"])


def test_the_test_set_is_opened_once_a_trial(made: Made) -> None:
    counted = kinds(made.run)
    assert {i: counted["test-opened", i] for i in IDS} == dict.fromkeys(IDS, 1)
    order = [(e["kind"], e.get("id")) for e in journal.read(made.run / journal.NAME)]
    for ident in IDS:
        assert order.index(("test-opened", ident)) > max(
            i for i, found in enumerate(order) if found == ("epoch", ident)
        )


def interesting(events: list) -> list[int]:
    """An early round, the end of an epoch, and the end of a trial whose mates go on."""
    epoch = next(i for i, e in enumerate(events) if isinstance(e, EpochDone))
    trial = next(i for i, e in enumerate(events) if isinstance(e, TrialDone))
    return [5, epoch, trial]


def test_resumed_at_many_events_is_the_uninterrupted_run(wide, tmp_path: Path) -> None:
    prepared, whole, events = wide
    for stop in interesting(events):
        resume(tmp_path / str(stop), prepared, stop)
        assert_same_run(tmp_path / str(stop), whole)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [300.0, 0.0])
def test_resumed_at_every_event_is_the_uninterrupted_run(
    wide, tmp_path: Path, monkeypatch, seconds: float
) -> None:
    monkeypatch.setattr(study_run, "SAVE_SECONDS", seconds)
    prepared, whole, events = wide
    for stop in range(len(events)):
        resume(tmp_path / str(stop), prepared, stop)
        assert_same_run(tmp_path / str(stop), whole)


def test_stopped_again_and_again_with_saving_within_epochs(
    wide, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(study_run, "SAVE_SECONDS", 0.0)
    prepared, whole, _ = wide
    resume(tmp_path / "run", prepared, *[11] * 3)
    assert_same_run(tmp_path / "run", whole)


def test_an_epoch_boundary_survives_a_cut_in_the_journal(wide, tmp_path: Path) -> None:
    """The journal may have lost what the checkpoint knows, and the other way round."""
    prepared, whole, events = wide
    ends = [i for i, e in enumerate(events) if isinstance(e, EpochDone)]
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(folder, prepared, stop_after(ends[1] + 1))
    path = folder / journal.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"stopped"' in lines[-1] and b'"epoch"' in lines[-2]
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
    train(folder, prepared)
    assert_same_run(folder, whole)


def stopped_after_two_snapshots(prepared: Prepared, events: list, folder: Path) -> list[Path]:
    """A run that was stopped when both snapshots that are kept were there; the files of the newer one."""
    ends = [i for i, e in enumerate(events) if isinstance(e, EpochDone)]
    boundary = next(i for i in ends if events[i].result.epoch == 2)
    with pytest.raises(KeyboardInterrupt):
        train(folder, prepared, stop_after(boundary + 1))
    newer, older = checkpoints.snapshots(folder / "checkpoints")
    assert newer.number > older.number and len(newer.files) == 4
    names = [file["name"] for file in newer.files.values()]
    return [folder / "checkpoints" / n for n in (*names, f"snapshot-{newer.number}.json")]


@pytest.mark.parametrize("which", [0, 4], ids=["file", "manifest"])
def test_a_damaged_snapshot_is_set_aside_and_the_one_before_is_used(
    wide, tmp_path, capsys, which: int
) -> None:
    prepared, whole, events = wide
    folder = tmp_path / "run"
    damaged = stopped_after_two_snapshots(prepared, events, folder)[which]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    train(folder, prepared)
    aside = damaged.with_name(f"{damaged.name}.damaged")
    assert aside.read_bytes() == content and f"{damaged.name} is damaged" in capsys.readouterr().err
    told = [e for e in journal.read(folder / journal.NAME) if e["kind"] == "checkpoint-damaged"]
    assert damaged.name in told[0]["told"]
    for path in (folder / "checkpoints").iterdir():
        assert path.name.endswith(".damaged")
        path.unlink()
    assert_same_run(folder, whole)


def _forget_best(tensors, numbers) -> None:
    del tensors["best.0"]


def _narrow(tensors, numbers) -> None:
    tensors["flat.0"] = tensors["flat.0"][:1].clone()  # copying it would fill the whole tensor


def _half(tensors, numbers) -> None:
    tensors["adam.exp_avg.0"] = tensors["adam.exp_avg.0"].half()


def _foreign(tensors, numbers) -> None:
    tensors["of.another.program"] = tensors["flat.0"].clone()


def _no_step(tensors, numbers) -> None:
    del numbers["micro_step"]


@pytest.mark.parametrize("forge", [_forget_best, _narrow, _half, _foreign, _no_step])
def test_a_snapshot_of_other_trials_is_refused_though_its_sums_hold(wide, tmp_path, forge) -> None:
    prepared, _, events = wide
    folder = tmp_path / "run"
    stopped_after_two_snapshots(prepared, events, folder)
    newest = checkpoints.snapshots(folder / "checkpoints")[0]
    states = {ident: newest.state(ident) for ident in newest.files}
    forge(*states[min(states)])
    checkpoints.write_all(folder / "checkpoints", states, note=newest.note)
    with pytest.raises(DataError, match="no snapshot of these trials"):
        train(folder, prepared)


def test_without_any_whole_snapshot_trials_start_again_and_that_is_told(
    wide, tmp_path, capsys
) -> None:
    prepared, whole, events = wide
    folder = tmp_path / "run"
    stopped_after_two_snapshots(prepared, events, folder)
    for path in (folder / "checkpoints").glob("snapshot-*"):
        path.unlink()
    train(folder, prepared)
    assert (
        "no whole snapshot is left; the trials that had not ended start again"
        in capsys.readouterr().err
    )
    assert_same_run(folder, whole)


def test_a_cut_while_the_folder_is_being_made_can_go_on(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "trials").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / ".lock").touch()
    (folder / "environment.json").write_text("{}")
    (folder / ".tmp-ffffff0123ab-study.toml").write_text("half")
    outcome = train(folder, settings(made.folder, made.backbone, ["head"], seeds=[0]))
    assert outcome.done == 1
    assert not list(folder.glob(".tmp-*"))
    assert json.loads((folder / "environment.json").read_bytes())["fleetune"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: replace(s, training={**s.training, "weight_decay": 0.5}), "weight_decay"),
        (lambda s: replace(s, seeds=(0, 2)), "seeds"),
        (lambda s: replace(s, dtype="float64"), "dtype"),
        (lambda s: replace(s, max_length=12), "max_length"),
        (lambda s: replace(s, methods=s.methods[:2]), "method"),
        (lambda s: replace(s, data=replace(s.data, protocol="paper")), "protocol"),
    ],
)
def test_other_settings_are_refused_with_the_difference(made: Made, change, named: str) -> None:
    before = tree(made.run)
    with pytest.raises(RefusedError, match=named) as error:
        train(made.run, change(settings(made.folder, made.backbone)))
    assert " there, " in str(error.value) and " now" in str(error.value)
    assert tree(made.run) == before


def test_the_same_rows_in_another_place_are_the_same_run(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved files, and paths as they read from another folder; other rows under such a path are refused all the same."""
    before = tree(made.run)
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "test.csv"):
        shutil.copy(made.folder / name, name)
    moved = replace(
        settings(made.folder, made.backbone).data, file="train.csv", test_file="test.csv"
    )
    given = replace(settings(made.folder, made.backbone), data=moved)
    assert train(made.run, given).skipped == len(IDS)
    assert (made.run / "study.toml").read_bytes() == before["study.toml"]
    write_csv(tmp_path / "test.csv", 24, seed=8)
    with pytest.raises(RefusedError, match="data: "):
        train(made.run, given)


def test_other_data_and_another_backbone_are_refused(made: Made, tmp_path: Path) -> None:
    from tests.backbone.hub import save_tiny

    for name in ("train.csv", "test.csv"):
        shutil.copy(made.folder / name, tmp_path / name)
    shutil.copytree(made.backbone, tmp_path / "backbone")
    given = settings(tmp_path, tmp_path / "backbone", ["head"], seeds=[0])
    train(tmp_path / "run", given)
    before = tree(tmp_path / "run")

    write_csv(tmp_path / "test.csv", 24, seed=8)
    with pytest.raises(RefusedError, match="data: "):
        train(tmp_path / "run", given)
    shutil.copy(made.folder / "test.csv", tmp_path / "test.csv")
    shutil.rmtree(tmp_path / "backbone")
    save_tiny(tmp_path / "backbone", initializer_range=0.03)
    with pytest.raises(RefusedError, match="backbone: "):
        train(tmp_path / "run", given)
    assert tree(tmp_path / "run") == before


def test_another_config_of_the_backbone_is_refused(made: Made, tmp_path: Path) -> None:
    """Beside the same weights; a run of an earlier version, which said nothing of it, goes on."""
    backbone = Path(shutil.copytree(made.backbone, tmp_path / "backbone"))
    given = settings(made.folder, backbone, ["head"], seeds=[0], num_train_epochs=1)
    train(tmp_path / "run", given)
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    with pytest.raises(RefusedError, match=r"the backbone's config\.json: "):
        train(tmp_path / "run", given)
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    found = copy.deepcopy(environment)
    found["backbone"]["config"] = "another"
    del (
        environment["backbone"]["config"],
        environment["backbone"]["tokenizer"],
        environment["numerics"],
    )
    (tmp_path / "earlier.json").write_text(json.dumps(environment))
    assert refuse_changes(tmp_path / "earlier.json", found) == []


def test_another_major_version_is_refused(made: Made, tmp_path: Path) -> None:
    given = settings(made.folder, made.backbone, ["head"], seeds=[0])
    train(tmp_path / "run", given)
    path = tmp_path / "run/environment.json"
    found = json.loads(path.read_bytes())
    found["packages"]["torch"] = "1.13.1"
    path.write_text(json.dumps(found))
    with pytest.raises(RefusedError, match=r"torch \(major version\): 1 there"):
        train(tmp_path / "run", given)


def test_a_run_whose_seeds_meant_other_numbers_is_refused(made: Made, tmp_path: Path) -> None:
    given = settings(made.folder, made.backbone, ["head"], seeds=[0])
    train(tmp_path / "run", given)
    path = tmp_path / "run/environment.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"numerics": 0}))
    with pytest.raises(RefusedError, match="what a seed means: 0 there, 1 now"):
        train(tmp_path / "run", given)


def test_a_run_from_before_a_setting_was_there_goes_on(made: Made, tmp_path: Path) -> None:
    """Its test rows were sealed for the same trials, whatever has no value counting for nothing."""
    given = settings(made.folder, made.backbone, ["lora"], seeds=[0, 1])
    prepared = prepare(given)
    (task,) = prepared.tasks
    earlier = [
        replace(
            one, spec=replace(one.spec, hyperparameters=without_unset(one.spec.hyperparameters))
        )
        for one in prepared.inputs
    ]
    opened = Journal(tmp_path / "journal.jsonl")
    opened.append(
        "test-declared",
        task=task.dataset.task.name,
        settings=sorted(seal._with_unset(one) for one in earlier),
    )
    before = opened.path.read_bytes()
    Seal(opened, task).declare(prepared.inputs)
    assert Seal(opened, task).open(prepared.inputs[0]).keys() == task.test_tables.keys()
    with pytest.raises(RefusedError, match="sealed for 2 other trials"):
        Seal(opened, task).check(prepared.inputs[:1])
    assert opened.path.read_bytes().startswith(before)
    opened.close()


def without_unset(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def test_a_refused_run_is_left_as_it_is(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even that the command began is written down: what was done would no longer look so."""
    given = settings(made.folder, made.backbone, ["head"], seeds=[0])
    train(tmp_path / "run", given)
    before = (tmp_path / "run/journal.jsonl").read_bytes()
    monkeypatch.setattr(seal, "_hashed", lambda *_: "another")
    with pytest.raises(RefusedError, match="sealed for 1 other trials"):
        train(tmp_path / "run", given)
    assert (tmp_path / "run/journal.jsonl").read_bytes() == before


def test_a_foreign_folder_is_refused_and_left_as_it_is(made: Made, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RefusedError, match="not empty"):
        train(tmp_path, settings(made.folder, made.backbone))
    assert tree(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(RefusedError, match="is a file"):
        train(tmp_path / "thesis.tex", settings(made.folder, made.backbone))


def test_a_place_where_no_folder_can_be_is_refused_at_once(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    places = [
        tmp_path / "file/run",
        tmp_path / "link",
        Path(os.fsdecode(bytes(tmp_path) + b"/b\xff")),
    ]
    words = ("train", made.folder / "train.csv", "--backbone", made.backbone, "--output-dir")
    ends = ((5, "is no folder"), (6, "link to nothing"), (6, "not UTF-8"))
    for place, (code, told) in zip(places, ends, strict=True):
        found = run_cli(*words, place)
        assert found.code == code and told in found.err
        assert "train," not in found.err  # no rows were read
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_backbone_by_another_path_is_the_same(made: Made, tmp_path: Path) -> None:
    given = settings(made.folder, made.backbone, ("head",), seeds=[0])
    train(tmp_path / "run", given)
    other = tmp_path / "elsewhere" / made.backbone.name
    shutil.copytree(made.backbone, other)
    assert train(tmp_path / "run", replace(given, backbone=str(other))).skipped == 1
    renamed = tmp_path / "other-name"
    shutil.copytree(made.backbone, renamed)
    with pytest.raises(RefusedError, match=r"backbone\.name"):
        train(tmp_path / "run", replace(given, backbone=str(renamed)))
    moved = tmp_path / "renamed.csv"
    shutil.copy(made.folder / "train.csv", moved)
    with pytest.raises(RefusedError, match=r"own rows are called after their file"):
        train(tmp_path / "run", replace(given, data=replace(given.data, file=str(moved))))


def test_a_folder_in_use_is_refused(made: Made, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RefusedError, match="another fleetune command"):
        train(tmp_path, settings(made.folder, made.backbone))


@pytest.mark.parametrize("at", ["model", "snapshot", "event"])
@pytest.mark.parametrize("how", ["moved", "begun anew"])
def test_a_folder_that_is_gone_is_written_no_more(
    made: Made, tmp_path: Path, monkeypatch, how: str, at: str
) -> None:
    """Its lock went with it, and a command that began anew under the name has a lock of its own."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    given = settings(made.folder, made.backbone, ("head", "bitfit"), seeds=[0])
    others = replace(given, seeds=(7,))
    after = {"model": TrialDone, "snapshot": Advanced, "event": EpochDone}[at]
    seen: list[type] = []

    def watch(event: object) -> None:
        seen.append(type(event))
        if isinstance(event, after) and seen.count(after) == 1:
            run.rename(moved)
            if how == "begun anew":
                train(run, others)

    with pytest.raises(RefusedError, match="moved, deleted or begun anew"):
        train(run, given, watch)
    if how == "moved":
        assert not run.exists()
    else:
        alone = tmp_path / "alone"
        train(alone, others)
        assert_same_run(run, alone)
    train(moved, given)
    whole = tmp_path / "whole"
    train(whole, given)
    assert_same_run(moved, whole)


def test_predictions_of_another_run_are_no_answer(made: Made, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    given = settings(made.folder, made.backbone, ("head", "bitfit"), seeds=[0])
    train(run, given)
    train(other, replace(given, training={**given.training, "learning_rate": 0.3}))
    shutil.rmtree(run / "trials/bitfit-s0")
    shutil.copytree(other / "trials/bitfit-s0", run / "trials/bitfit-s0")
    facts = run_facts(run)
    assert {e["method"] for e in facts["estimates"]} == {"head"}
    assert "predictions.parquet is of another run" in tables.comparison(facts)
    trial = next(t for t in facts["trials"] if t["method"] == "bitfit")
    with pytest.raises(DataError, match="is of another run"):
        model_facts(run, facts, trial)


def test_the_model_of_another_run_is_no_winner(made: Made, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    given = settings(made.folder, made.backbone, ("head",), seeds=[0])
    train(run, given)
    train(other, replace(given, training={**given.training, "learning_rate": 0.3}))
    assert model_folder(run) == run / "trials/head-s0"
    shutil.rmtree(run / "trials/head-s0")
    shutil.copytree(other / "trials/head-s0", run / "trials/head-s0")
    with pytest.raises(DataError, match="is of another run than the one that it lies in"):
        model_folder(run)


def test_a_snapshot_of_another_run_is_set_aside(wide, tmp_path, capsys) -> None:
    """Its trials have the same names, and other settings."""
    prepared, whole, events = wide
    run, other = tmp_path / "run", tmp_path / "other"
    stopped_after_two_snapshots(prepared, events, run)
    shutil.copytree(run, other)
    # As a run that began with something else would have it.
    for manifest in sorted((other / "checkpoints").glob("snapshot-*.json")):
        body = json.loads(manifest.read_bytes())
        del body["sha256"]
        body["note"]["run"] = "0" * 64
        digest = checkpoints._digest(body)
        manifest.write_bytes(durable.as_json({**body, "sha256": digest}))
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    train(run, prepared)
    assert "is of another run; it was set aside" in capsys.readouterr().err
    for path in (run / "checkpoints").iterdir():
        assert path.name.endswith(".damaged")
        path.unlink()
    assert_same_run(run, whole)


def test_a_run_goes_on_with_the_commit_of_its_backbone(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch that it was found by moves on between two commands."""
    other = Path(shutil.copytree(made.backbone, tmp_path / "moved"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    run, whole = tmp_path / "run", tmp_path / "whole"
    with LocalHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        first = hub.add("someone/tiny", Path(made.backbone))
        given = replace(settings(made.folder, made.backbone, ("head",)), backbone="someone/tiny")
        train(whole, prepare(given))
        with pytest.raises(KeyboardInterrupt):
            train(run, prepare(given, run=run), stop_after(3))
        assert hub.add("someone/tiny", other) != first
        assert prepare(given).backbone.revision != first
        again = prepare(given, run=run)
        assert again.backbone.revision == first
        train(run, again)
    assert_same_run(run, whole)


def test_holdout_never_mixes_rows(made: Made) -> None:
    prepared = prepare(settings(made.folder, made.backbone, ["head", "lora"], seeds=range(5)))
    test = set(prepared.dataset.tests["test"].first)
    divisions = set()
    for given in prepared.inputs:
        assert given.train.table is given.selection.table
        assert not set(given.train.rows) & set(given.selection.rows)
        assert len(given.train) + len(given.selection) == 60
        held = {prepared.dataset.train.first[i] for i in given.selection.rows}
        kept = {prepared.dataset.train.first[i] for i in given.train.rows}
        assert not held & kept and not (held | kept) & test
        divisions.add(tuple(given.selection.rows))
    assert len(divisions) == 5  # a seed has its own, the same for every method
    assert not prepared.optimistic


def test_own_data_without_a_test_file_gives_three_disjoint_parts(made: Made) -> None:
    given = settings(made.folder, made.backbone, ["head"], seeds=[0, 1])
    prepared = prepare(replace(given, data=replace(given.data, test_file=None)))
    test = set(prepared.dataset.tests["test"].first)
    assert len(prepared.dataset.train) + len(prepared.dataset.tests["test"]) == 60
    assert not test & set(prepared.dataset.train.first)


@pytest.fixture(scope="module")
def paper(made: Made, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("paper") / "run"
    train(run, settings(made.folder, made.backbone, ["lora", "head"], seeds=[0], protocol="paper"))
    return run


def test_the_paper_protocol_selects_on_the_test_rows(made: Made) -> None:
    prepared = prepare(settings(made.folder, made.backbone, ["head"], seeds=[0], protocol="paper"))
    (given,) = prepared.inputs
    assert len(given.train) == 60 and len(given.selection) == 24
    assert given.selection.table is prepared.test_tables["test"]
    assert prepared.optimistic


def test_the_paper_protocol_is_stamped_everywhere(paper: Path, made: Made) -> None:
    facts = run_facts(paper)
    assert facts["study"]["optimistic"] and all(t["optimistic"] for t in facts["trials"])
    assert all(e["optimistic"] for e in facts["estimates"])
    table = tables.comparison(facts)
    assert "OPTIMISTIC" in table and "accuracy (optimistic)" in table
    assert tables.trials(facts).count("(optimistic)") == 2
    for trial in (paper / "trials").iterdir():
        metrics = json.loads((trial / "metrics.json").read_bytes())
        assert metrics["optimistic"] is True
        assert metrics["test"]["accuracy"] == metrics["selection"]["accuracy"]
        assert "optimistic" in (trial / "README.md").read_text()
    honest = run_facts(made.run)
    assert "ptimistic" not in tables.comparison(honest) + tables.trials(honest)
    assert "ptimistic" not in (made.run / "trials/lora-s0/README.md").read_text()


@pytest.fixture(scope="module")
def failing(made: Made, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("failing") / "run"
    methods = ("head", MethodSettings("lora", training={"learning_rate": 1e30}), "bitfit")
    outcome = train(run, settings(made.folder, made.backbone, methods, seeds=[0]))
    assert (outcome.done, outcome.failed) == (2, 1)
    return run


def test_a_failed_trial_leaves_the_others_alone(failing: Path, made: Made) -> None:
    facts = run_facts(failing)
    assert [t["status"] for t in facts["trials"]] == ["done", "failed", "done"]
    (failed,) = (t for t in facts["trials"] if t["status"] == "failed")
    assert "learning_rate" in failed["reason"] or "finite" in failed["reason"]
    assert sorted(p.name for p in (failing / "trials").iterdir()) == ["bitfit-s0", "head-s0"]
    for ident in ("bitfit-s0", "head-s0"):
        a, b = (
            np.asarray(
                pq.read_table(r / "trials" / ident / layout.PREDICTIONS)["logits"].to_pylist()
            )
            for r in (failing, made.run)
        )
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert failed["reason"] in tables.trials(facts)


def test_a_failed_trial_stays_failed_and_gives_exit_code_3(failing: Path, made: Made) -> None:
    words = (
        *("train", "--data", made.folder / "train.csv", "--test-data", made.folder / "test.csv"),
        *("--backbone", made.backbone, "--method", "lora", "--dtype", "float32"),
        *("--learning-rate", "1e30", "--num-train-epochs", 2),
    )
    folder = failing.parent / "command"
    for _ in range(2):
        found = run_cli(*words, "--output-dir", folder)
        assert found.code == 3
        assert "lora-s42 failed" in found.err
        assert "all that went on failed (the loss became nan" in found.out
    assert kinds(folder)["trial-failed", "lora-s42"] == 1
    # The same command again would change nothing, so nobody is sent there.
    told = run_cli("predict", folder, "--text", "w1")
    assert told.code == 2 and "give other settings, and another --output-dir" in told.err
    assert "same command" not in told.err
    assert pq.read_table(folder / "results.parquet").num_rows == kinds(folder)["epoch", "lora-s42"]


def test_a_trial_whose_outputs_at_its_end_are_no_numbers_has_failed(
    made: Made, tmp_path: Path, monkeypatch
) -> None:
    """The selection rows need not show it, and a refit has none: the others are done, and the same command ends there too."""
    measured = Engine.predict_in_room
    calls: list[int] = []

    def overflowing(self: Engine, *given: Any) -> list[Any]:
        (logits,) = measured(self, *given)
        if not calls:
            logits[-1] = np.inf
        calls.append(len(logits))
        return [logits]

    monkeypatch.setattr(Engine, "predict_in_room", overflowing)
    given = settings(made.folder, made.backbone, ("head",), seeds=[0, 1])
    told: list[object] = []
    outcome = train(tmp_path / "run", given, told.append)
    assert (outcome.done, outcome.failed) == (1, 1)
    (failed,) = (t for t in run_facts(tmp_path / "run")["trials"] if t["status"] == "failed")
    assert failed["reason"] == "its predictions of test set test are not finite"
    assert [e.trial.id for e in told if isinstance(e, TrialFailed)] == [failed["id"]]
    assert len([e for e in told if isinstance(e, TrialDone)]) == 1
    assert len(list((tmp_path / "run/trials").iterdir())) == 1
    again = train(tmp_path / "run", given)
    assert (again.done, again.failed) == (1, 1)
    assert kinds(tmp_path / "run")["trial-failed", failed["id"]] == 1


def test_a_float64_trial_beyond_what_is_saved_has_failed(made: Made, tmp_path: Path) -> None:
    """Models are tried in float32 before they count as saved: weights of 1e30 are finite there, and their products are not."""
    given = settings(
        made.folder, made.backbone, ("bitfit", "head"), seeds=[0], learning_rate=1e30, num_train_epochs=3
    )  # fmt: skip
    outcome = train(tmp_path / "run", replace(given, dtype="float64"))
    assert outcome.failed >= 1
    reasons = {t["id"]: t["reason"] for t in run_facts(tmp_path / "run")["trials"]}
    assert "not finite" in (reasons["bitfit-s0"] or "")
    left = list((tmp_path / "run/trials").iterdir())
    assert len(left) == outcome.done


def test_a_failure_is_the_same_after_a_resume(made: Made, tmp_path: Path) -> None:
    methods = (
        MethodSettings("bitfit", training={"num_train_epochs": 3}),
        MethodSettings("lora", training={"learning_rate": 1e25}),
        MethodSettings("head"),
    )
    prepared = prepare(settings(made.folder, made.backbone, methods, seeds=[0]))
    events: list = []
    train(tmp_path / "whole", prepared, events.append)
    for stop in (3, len(events) - 8):
        folder = tmp_path / str(stop)
        resume(folder, prepared, stop)
        assert_same_run(folder, tmp_path / "whole")
        assert kinds(folder)["trial-failed", "lora-s0"] == 1


def test_regression_in_the_layout_of_stsb(made: Made, tmp_path: Path) -> None:
    write_glue(tmp_path, "STS-B")
    given = on_task(settings(made.folder, made.backbone), "stsb", tmp_path)
    train(tmp_path / "run", replace(given, seeds=(0,)))
    facts = run_facts(tmp_path / "run")
    assert {t["status"] for t in facts["trials"]} == {"done"}
    assert {e["metric"] for e in facts["estimates"]} == {"pearson", "spearmanr"}
    assert all(-1 <= e["low"] <= e["value"] <= e["high"] <= 1 for e in facts["estimates"])
    record = json.loads((tmp_path / "run/trials/lora-s0/fleetune.json").read_bytes())
    assert record["regression"] and record["label_names"] == []
    predicted = run_cli("predict", tmp_path / "run", "--text", "w1 w2", "--text", "w3", "--json")
    (one,) = json.loads(predicted.out)
    assert one["probabilities"] == {} and np.isfinite(float(one["label"]))
    evaluated = run_cli(
        "evaluate",
        tmp_path / "run/trials/lora-s0",
        "--task",
        "stsb",
        "--data-dir",
        tmp_path,
        "--json",
    )
    metrics = json.loads((tmp_path / "run/trials/lora-s0/metrics.json").read_bytes())
    found = json.loads(evaluated.out)["sets"][0]["metrics"]["pearson"]
    assert found["value"] == pytest.approx(metrics["test"]["pearson"], abs=1e-6)
    # Own rows with decimal targets, in every form of file.
    (split,) = prepare(given).dataset.tests.values()
    assert split.second is not None and split.labels is not None
    frame = pd.DataFrame(
        {"sentence1": split.first, "sentence2": split.second, "label": split.labels}
    )
    frame.to_csv(tmp_path / "own.csv", index=False)
    frame.to_json(tmp_path / "own.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "own.parquet")
    for name in ("own.csv", "own.jsonl", "own.parquet"):
        told = run_cli("evaluate", tmp_path / "run/trials/lora-s0", tmp_path / name, "--json")
        assert told.code == 0, told.err
        own = json.loads(told.out)["sets"][0]["metrics"]["pearson"]
        assert own["value"] == pytest.approx(found["value"], abs=1e-6)
    (tmp_path / "bad.csv").write_text(
        "sentence1,sentence2,label\na,b,1_0\na,b,x\na,b,nan\na,b,2.5\n"
    )
    told = run_cli("evaluate", tmp_path / "run/trials/lora-s0", tmp_path / "bad.csv")
    assert told.code == 4 and told.err.count("is not a number") == 3


def test_two_test_sets_in_the_layout_of_mnli(made: Made, tmp_path: Path) -> None:
    write_glue(tmp_path, "MNLI")
    given = on_task(settings(made.folder, made.backbone, ["lora", "head"]), "mnli", tmp_path)
    train(tmp_path / "run", given)
    facts = run_facts(tmp_path / "run")
    assert [(e["method"], e["set"], e["n"]) for e in facts["estimates"]] == [
        ("lora", "test_matched", 21),
        ("lora", "test_mismatched", 22),
        ("head", "test_matched", 21),
        ("head", "test_mismatched", 22),
    ]
    assert all(e["seeds"] == 2 for e in facts["estimates"])
    trial = facts["trials"][0]
    assert trial["test"] == trial["tests"]["test_matched"]
    predictions = pq.read_table(tmp_path / "run/trials/lora-s0/predictions.parquet").to_pydict()
    assert Counter(predictions["split"]) == {"test_matched": 21, "test_mismatched": 22}
    assert len(predictions["logits"][0]) == 3
    table = tables.comparison(facts)
    assert "lora r=8 on test_matched" in table and "on test_mismatched" in table


def test_the_global_generators_are_left_alone(made: Made, tmp_path: Path) -> None:
    """A user's own seeds keep their meaning; torch's and numpy's are watched in every test (guards.py)."""
    before = random.getstate()
    train(tmp_path / "run", settings(made.folder, made.backbone, ["lora"], seeds=[0]))
    assert random.getstate() == before


def test_a_snapshot_holds_the_whole_cohort_at_one_round(wide, tmp_path: Path) -> None:
    prepared, _, events = wide
    stop = next(i for i, e in enumerate(events) if isinstance(e, EpochDone)) + 1
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", prepared, stop_after(stop))
    newest = checkpoints.snapshots(tmp_path / "run/checkpoints")[0]
    states = {ident: newest.state(ident) for ident in newest.files}
    assert set(states) == {"bitfit-s0", "bitfit-s1", "lora-s0", "lora-s1"}
    (steps,) = {numbers["micro_step"] for _, numbers in states.values()}
    given = prepared.inputs[0]
    assert steps == math.ceil(len(given.train) / given.settings.per_device_train_batch_size)
    assert sum(e.rows for e in events[:stop] if isinstance(e, Advanced)) == 4 * len(given.train)


def command(made: Made, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "fleetune.cli.main", "train", "--output-dir", str(folder)),
        *("--data", str(made.folder / "train.csv"), "--test-data", str(made.folder / "test.csv")),
        *("--backbone", str(made.backbone), "--methods", "bitfit,lora", "--seeds", "2"),
        *("--num-train-epochs", "12", "--per-device-train-batch-size", "4", "--dtype", "float32"),
        *("--learning-rate", "1e-2"),
    ]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(made: Made, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole"
    subprocess.run(command(made, whole), check=True, capture_output=True, env=environment)
    draw = random.Random(11)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        started = subprocess.Popen(
            command(made, folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        path = folder / journal.NAME
        while not path.exists() and started.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 2.5))
        started.send_signal(signal.SIGKILL)
        started.wait()
        journal.read(path)  # a torn tail at most
        again = subprocess.run(command(made, folder), capture_output=True, env=environment)
        assert again.returncode == 0, again.stderr.decode()
        assert_same_run(folder, whole)


def test_a_run_is_its_prepared_trials(made: Made) -> None:
    run = Run(made.run, prepare(settings(made.folder, made.backbone)))
    assert [given.spec.id for given in run.prepared.inputs] == IDS


def test_a_saved_model_that_is_missing_is_told(made: Made, tmp_path: Path, capsys) -> None:
    given = settings(made.folder, made.backbone, ["head"], seeds=[0, 1])
    train(tmp_path / "run", given)
    shutil.rmtree(tmp_path / "run/trials/head-s1")
    train(tmp_path / "run", given)
    assert "the saved models of head-s1 are missing" in capsys.readouterr().err
    assert not (tmp_path / "run/trials/head-s1").exists()


def test_methods_are_not_compared_on_one_row(made: Made, tmp_path: Path) -> None:
    """Refused before anything is trained; a single method may be tried on it."""
    write_csv(tmp_path / "train.csv", 60)
    write_csv(tmp_path / "test.csv", 1)
    with pytest.raises(DataError, match="2 test rows or more, but there is 1"):
        prepare(settings(tmp_path, made.backbone, ["head", "bitfit"]))
    assert len(prepare(settings(tmp_path, made.backbone, ["head"])).inputs) == 2


def test_fewer_rows_of_train_for_every_trial_alike(made: Made, tmp_path: Path) -> None:
    """The test rows stay, and another number of rows is another run."""
    given = settings(made.folder, made.backbone, ["head"], seeds=(0, 1))
    few = replace(given, data=replace(given.data, max_train_samples=40))
    ready, whole = prepare(few), prepare(given)
    assert len(ready.dataset.train) == 40 < len(whole.dataset.train)
    assert set(ready.dataset.train.ids) < set(whole.dataset.train.ids)
    assert ready.dataset.tests["test"].ids == whole.dataset.tests["test"].ids
    for trial in ready.inputs:
        used = set(trial.train.rows.tolist()) | set(trial.selection.rows.tolist())
        assert used == set(range(40))
    train(tmp_path / "run", few)
    with pytest.raises(RefusedError, match=r"max_train_samples: 40 there, 'unset' now"):
        train(tmp_path / "run", given)


def test_too_few_rows_of_train_are_refused(made: Made) -> None:
    given = settings(made.folder, made.backbone, ["head"])
    with pytest.raises(SettingsError, match="max_train_samples >= 10"):
        prepare(replace(given, data=replace(given.data, max_train_samples=9)))
