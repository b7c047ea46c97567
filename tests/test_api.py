"""Fleetune from Python: the names of the package, rows from files and memory, results as frames, comparisons."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fleetune
from fleetune.errors import DataError, RefusedError, SettingsError
from fleetune.records import as_json
from fleetune.stats.compare import compare as compare_methods
from fleetune.study import prepare as study_prepare
from tests import runs
from tests.runs import Made, run_cli, texts, tree, write_csv, write_glue
from tests.test_architecture import HEAVY

SHORT: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "dtype": "float32"}


def rows(n: int) -> list[dict[str, Any]]:
    return [{"text": text, "label": i % 2} for i, text in enumerate(texts(n))]


def kept_rows(result: fleetune.Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.folder / "data.jsonl").read_text().splitlines()]


SEEN_IN_TRAINING = pytest.mark.filterwarnings("ignore:24 of the 24 rows of test stand in train too")


@pytest.fixture(scope="module")
def found(made: Made) -> fleetune.Result:
    """The shared run: four methods, two seeds."""
    return fleetune.Result(made.run)


@pytest.fixture(scope="module")
def trained(made: Made, tmp_path_factory: pytest.TempPathFactory) -> fleetune.Result:
    """Two methods with settings of their own, on a list of dicts; its test rows are among those it trains on, which is told."""
    with pytest.warns(UserWarning, match="24 of the 24 rows of test stand in train too") as warned:
        result = fleetune.train(
            rows(60),
            {"lora": {"r": 2, "learning_rate": 2e-2}, "head": {}},
            test_data=rows(24),
            seeds=[3, 5],
            output_dir=tmp_path_factory.mktemp("api") / "run",
            backbone=made.backbone,
            **SHORT,
        )
    assert {one.filename for one in warned} == {__file__}, "a warning points at who called"
    return result


# --- the package itself


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda **k: fleetune.train(rows(20), "head", test_data="demo-sentiment", **k), "demo-sentiment is a task; leave it out"),
        (lambda **k: fleetune.study([{"task": "rte"}], **k), "must be a study file or a dict of its tables"),
        (lambda **k: fleetune.study({"training": {1: 2}}, **k), "keys must be strings, but got 1"),
        (lambda **k: fleetune.train(rows(20), "lora", dtype=None, **k), 'dtype: "None" is not known'),
        (lambda **k: fleetune.train(rows(20), "lora", max_length="64", **k), "max_length: input should be a valid integer"),
        (lambda **k: fleetune.train(rows(20), "lora", text_column=3, **k), "text_columns.1: input should be a valid string"),
        (lambda **k: fleetune.train(rows(20), "lora", protocol=None, **k), 'protocol: "None" is not known'),
    ],
)  # fmt: skip
def test_what_has_another_type_is_named(
    call: Callable[..., Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        call(output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_of_an_arrow_table_are_those_of_its_frame(tmp_path: Path) -> None:
    import pyarrow as pa

    from fleetune.data.memory import as_jsonl, records_of

    frame = pd.DataFrame(rows(4))
    assert as_jsonl(records_of(pa.Table.from_pandas(frame))) == as_jsonl(records_of(frame))


def test_rows_that_are_cut_are_told(made: Made, tmp_path: Path) -> None:
    told = {"backbone": made.backbone, "output_dir": tmp_path / "run", "max_length": 4, **SHORT}
    with pytest.warns(UserWarning, match="are longer than 4 tokens") as warned:
        fleetune.train(rows(40), "head", **told)
    assert [str(one.message) for one in warned] == [
        f"{count} rows of {name} are longer than 4 tokens and were cut (max_length)"
        for name, count in (("train", 36), ("test", 4))
    ]


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        "import json, sys, fleetune\n"
        "assert 'train' in dir(fleetune) and callable(fleetune.load)\n"
        f"print(json.dumps([n for n in (*{HEAVY!r}, 'pandas') if n in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == []


def test_study_is_a_function_whatever_was_imported_before() -> None:
    """The folder study/ has the same name, and importing from it binds that name."""
    script = (
        "import fleetune\n"
        "from fleetune.errors import SettingsError\n"
        "def call():\n"
        "    try:\n        fleetune.study({}, output_dir='nowhere')\n"
        "    except SettingsError as error:\n        return str(error)\n"
        "first = call()\n"
        "import fleetune.study.settings\n"
        "assert call() == first and 'data: missing' in first, first\n"
        "assert fleetune.study.settings.PROTOCOLS\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = fleetune.trian
    assert all(hasattr(fleetune, name) for name in fleetune.__all__)


# --- train


def test_python_and_the_command_give_the_same_run(made: Made, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "reviews.csv", 40)
    ours = fleetune.train(
        file, ["head", "bitfit"], seeds=2, output_dir=tmp_path / "ours", backbone=made.backbone, **SHORT,
    )  # fmt: skip
    theirs = run_cli(
        *("train", file, "--methods", "head,bitfit", "--seeds", 2, "--max-steps", 4, "--json"),
        *("--learning-rate", 1e-2, "--dtype", "float32", "--backbone", made.backbone),
        *("--output-dir", tmp_path / "theirs"),
    )
    assert theirs.code == 0, theirs.err
    for key in ("ours", "theirs"):
        assert (tmp_path / key / "study.toml").is_file()
    assert (tmp_path / "ours/study.toml").read_text() == (tmp_path / "theirs/study.toml").read_text()  # fmt: skip
    other = json.loads(theirs.out)
    assert [(t["id"], t["test"]) for t in ours.facts["trials"]] == [
        (t["id"], t["test"]) for t in other["trials"]
    ]


def test_settings_of_a_method_and_seeds_arrive(trained: fleetune.Result) -> None:
    frame = trained.trials.set_index("id")
    assert list(frame.index) == ["lora-s3", "lora-s5", "head-s3", "head-s5"]
    assert set(frame.status) == {"done"} and list(frame.seed) == [3, 5, 3, 5]
    assert frame.loc["lora-s3", ["r", "learning_rate"]].tolist() == [2, 2e-2]
    assert frame.loc["head-s3", "learning_rate"] == 1e-2
    # Two layers, query and value, r * (16 + 16) each.
    assert frame.loc["lora-s3", "encoder"] == 4 * 2 * 32
    assert frame.loc["head-s3", "encoder"] == 0


def test_one_method_twice_under_names(made: Made, tmp_path: Path) -> None:
    result = fleetune.train(
        rows(60),
        {"small": {"method": "lora", "r": 1}, "large": {"method": "lora", "r": 4}, "lora": {"r": 2}},
        output_dir=tmp_path / "run", backbone=made.backbone, **SHORT,
    )  # fmt: skip
    assert list(dict.fromkeys(result.estimates.name)) == ["small", "large", "lora r=2"]
    assert result.trials.set_index("id").r.to_dict() == {
        "small-s42": 1,
        "large-s42": 4,
        "lora-s42": 2,
    }
    assert [v.method for v in result.verdicts.itertuples()] == ["large", "lora r=2"]
    assert result["large"].method == "lora"


@SEEN_IN_TRAINING
def test_rows_from_memory_are_kept_and_gone_on_with(made: Made, trained: fleetune.Result) -> None:
    assert kept_rows(trained) == rows(60)
    before = (trained.folder / "trials/lora-s3/adapter_model.safetensors").stat().st_mtime_ns
    again = {
        "methods": {"lora": {"r": 2, "learning_rate": 2e-2}, "head": {}},
        "seeds": [3, 5],
        "output_dir": trained.folder,
        "backbone": made.backbone,
        **SHORT,
    }
    frame = pd.DataFrame(rows(60))
    same = fleetune.train(frame, test_data=rows(24), **again)
    assert same.estimates.equals(trained.estimates)
    assert (trained.folder / "trials/lora-s3/adapter_model.safetensors").stat().st_mtime_ns == before  # fmt: skip
    with pytest.raises(RefusedError, match="holds a run on other rows"):
        fleetune.train(frame.assign(label=1 - frame.label), test_data=rows(24), **again)
    assert kept_rows(trained) == rows(60)


def test_rows_from_memory_do_not_go_into_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RefusedError, match="not empty, and not a run"):
        fleetune.train(rows(10), output_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_program_cannot_put_its_rows_under_a_run_that_begins(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while the first one reads and checks: it trains on its own rows, and can go on."""
    given: dict[str, Any] = {"output_dir": tmp_path / "run", "backbone": made.backbone, **SHORT}
    mine = rows(60)
    theirs = [{**row, "label": 1 - row["label"]} for row in mine]
    prepare, refused = study_prepare.prepare, 0

    def between(*words: Any, **named: Any) -> Any:
        """Just after the rows were kept, and just before the run begins."""
        other_program()
        prepared = prepare(*words, **named)
        other_program()
        return prepared

    def other_program() -> None:
        nonlocal refused
        with pytest.raises(RefusedError, match="another fleetune command is working in it"):
            fleetune.train(theirs, "head", **given)
        refused += 1

    monkeypatch.setattr(study_prepare, "prepare", between)
    result = fleetune.train(mine, "head", **given)
    monkeypatch.undo()
    assert refused == 2 and kept_rows(result) == mine
    again = fleetune.train(mine, "head", **given)
    assert again.estimates.equals(result.estimates)
    with pytest.raises(RefusedError, match="holds a run on other rows"):
        fleetune.train(theirs, "head", **given)


def test_rows_that_never_became_a_run_give_way(made: Made, tmp_path: Path) -> None:
    """What was refused after they were kept can be done again with others."""
    folder = tmp_path / "run"
    one_class = [{**row, "label": 0} for row in rows(60)]
    with pytest.raises(DataError, match="only one class"):
        fleetune.train(one_class, "head", output_dir=folder, backbone=made.backbone, **SHORT)
    assert set(tree(folder)) <= {".lock"}
    with pytest.raises(SettingsError, match="learning_rate"):
        fleetune.train(rows(60), "head", lr=1, output_dir=folder, backbone=made.backbone)
    assert set(tree(folder)) <= {".lock"}
    result = fleetune.train(rows(60), "head", output_dir=folder, backbone=made.backbone, **SHORT)
    assert kept_rows(result) == rows(60)


def test_a_named_task_takes_no_columns(made: Made, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--label-column is for own rows"):
        fleetune.train("rte", output_dir=tmp_path / "run", label_column="zzz")


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        ([], DataError, "there are no rows"),
        (None, SettingsError, r"must be a task, a file, a frame or a list of dicts, but got None \(NoneType\)"),
        (["a text"], DataError, "row 1: must be a dict"),
        ([{"text": "w1", "label": 0}, {"text": None, "label": 1}], DataError, "the rows given: .*\n.*row 2, column text: null"),
        (pd.DataFrame({"text": ["w1", "w2"], "label": [0.0, 1.5]}), DataError, "label"),
        ("demo-sentimant", SettingsError, 'neither a file nor a task, did you mean "demo-sentiment"'),
        ("nowhere.csv", Exception, "nowhere.csv"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_says_why(
    made: Made, tmp_path: Path, data: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        fleetune.train(data, output_dir=tmp_path / "run", backbone=made.backbone)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"methods": None}, r"must be a method's name.* but got None \(NoneType\)"),
        ({"methods": {"lora": 4}}, r"lora: must be a table such as .* but got 4 \(int\)"),
        ({"methods": "lara"}, 'there is no "lara", did you mean "lora"'),
        ({"methods": ["lora", "lora"]}, "named once"),
        ({"methods": {"lora": {"rank": 3}}}, "rank"),
        ({"lr": 1e-3}, "use learning_rate"),
        ({"seeds": 0}, "`seeds >= 1` must hold"),
        (
            {"seeds": 1.5},
            "seeds must be a whole number or a list of them|must be a whole number or a list of them.*got 1.5",
        ),
        ({"seeds": "12"}, "must be a whole number or a list of them.*got '12'"),
        ({"device": "gpu"}, 'device "gpu" is not known'),
    ],
)
def test_settings_that_cannot_be_used_say_why(
    made: Made, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    file = write_csv(tmp_path / "reviews.csv", 20)
    with pytest.raises(SettingsError, match=told):
        fleetune.train(file, output_dir=tmp_path / "run", backbone=made.backbone, **given)
    assert not (tmp_path / "run").exists()


def test_watch_is_told_what_happens(made: Made, tmp_path: Path) -> None:
    seen: list[str] = []
    fleetune.train(
        write_csv(tmp_path / "reviews.csv", 20), "head", output_dir=tmp_path / "run", backbone=made.backbone,
        watch=lambda event: seen.append(type(event).__name__), **SHORT,
    )  # fmt: skip
    assert seen[:2] == ["Planned", "Started"] and seen[-1] == "TrialDone" and "EpochDone" in seen


# --- results


def test_progress_is_printed_when_asked_and_only_then(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(folder: str, **more: Any) -> str:
        fleetune.train(
            made.folder / "train.csv", "head", output_dir=tmp_path / folder,
            backbone=made.backbone, dtype="float32", max_steps=4, **more,
        )  # fmt: skip
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    assert told("quiet") == ""
    lines = told("told", progress=True).splitlines()
    assert lines[0] == "train: train" and "\x1b" not in "".join(lines)
    assert lines[-1] == "head-s42: done, best epoch 1 (1/1 trials)"


def test_frames_hold_what_show_prints(found: fleetune.Result, made: Made) -> None:
    facts = json.loads(run_cli("show", made.run, "--json").out)
    assert list(found.trials.id) == [t["id"] for t in facts["trials"]]
    for row, trial in zip(found.trials.to_dict("records"), facts["trials"], strict=True):
        assert row["test_accuracy"] == trial["test"]["accuracy"]
        best = trial["epochs"][trial["best_epoch"] - 1]
        assert row["selection"] == best["selection"]["accuracy"]
    columns = ["method", "metric", "value", "low", "high", "n", "seeds"]
    assert found.estimates[columns].to_dict("records") == [
        {key: e[key] for key in columns} for e in facts["estimates"]
    ]
    assert found.verdicts.to_dict("records") == facts["verdicts"]


def test_frames_without_rows_have_their_columns(made: Made, tmp_path: Path) -> None:
    """One method has nothing to be compared with."""
    alone = fleetune.train(
        write_csv(tmp_path / "reviews.csv", 40), "head", output_dir=tmp_path / "run", backbone=made.backbone,
        **SHORT,
    )  # fmt: skip
    assert len(alone.verdicts) == 0 and {"verdict", "reason"} <= set(alone.verdicts.columns)
    with pytest.raises(DataError, match="same test rows"):
        fleetune.compare(made.run, alone)


def test_the_text_of_a_result_is_the_table_of_the_command(
    found: fleetune.Result, made: Made
) -> None:
    assert str(found) in run_cli("show", made.run).out
    assert "95% interval" in str(found)


def test_the_winner_is_the_one_that_commands_use(found: fleetune.Result, made: Made) -> None:
    assert found.winner is not None
    assert f"uses {found.winner.name}" in run_cli("show", made.run).err
    assert fleetune.load(found).folder == fleetune.load(made.run).folder == found.winner


def test_a_report_is_written(found: fleetune.Result, tmp_path: Path) -> None:
    path = found.report(tmp_path / "first.html")
    assert path == tmp_path / "first.html" and path.read_text().startswith("<!doctype html>")


def test_a_result_is_read_by_the_folder_of_its_run(found: fleetune.Result, made: Made) -> None:
    read = fleetune.Result(str(made.run))
    assert read.folder == made.run and str(read) == str(found) and str(made.run) in repr(read)


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no run"):
        _ = fleetune.Result(tmp_path).trials


def test_a_study_from_a_dict_has_verdicts(made: Made, tmp_path: Path) -> None:
    content = {
        "data": {"file": str(made.folder / "train.csv"), "test_file": str(made.folder / "test.csv")},
        "backbone": {"name": str(made.backbone), "dtype": "float32"},
        "training": {"max_steps": 2, "learning_rate": 1e-2},
        "methods": [{"method": "head"}, {"method": "bitfit", "name": "inner", "terms": ["query", "output"]}],
        "confirm": {"seeds": 2},
    }  # fmt: skip
    result = fleetune.study(content, output_dir=tmp_path / "run")
    (verdict,) = result.verdicts.to_dict("records")
    assert (verdict["method"], verdict["reference"]) == ("inner", "head")
    assert list(result.trials.id)[2:] == ["inner-s1000", "inner-s1001"]
    assert list(dict.fromkeys(result.estimates.name)) == ["head", "inner"]
    assert verdict["verdict"] == "cannot tell" and verdict["n"] == 24
    assert "cannot tell" in str(result)
    assert result.facts["arms"][0]["confirm"]["trials"] == list(result.trials.id)[:2]
    by_hand = fleetune.compare(result["head"], result["inner"])
    assert by_hand.difference == verdict["difference"] and by_hand.p_value == verdict["p_value"]


def test_overrides_are_for_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="overrides are for a file"):
        fleetune.study({}, output_dir=tmp_path / "run", overrides=["confirm.seeds=2"])


# --- predicting and comparing


def test_a_loaded_model_predicts_what_was_measured(found: fleetune.Result, made: Made) -> None:
    said = fleetune.load(found).predict(texts(24, 7))
    right = np.mean([p.label == ("bad", "good")[i % 2] for i, p in enumerate(said)])
    row = found.trials.set_index("id").loc[found.winner.name]
    assert right == pytest.approx(row.test_accuracy, abs=1e-12)  # the same 24 rows, the same model
    assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in said)


def correct(folder: Path) -> np.ndarray:
    """Which test rows a saved model gets right, read from its file alone."""
    table = pd.read_parquet(folder / "predictions.parquet")
    return np.stack(table.logits.to_list()).argmax(1) == table.label.to_numpy()


def test_texts_may_come_as_list_array_or_series(found: fleetune.Result) -> None:
    model, given = fleetune.load(found), texts(4, 7)
    expected = model.predict(given)
    for held in (tuple(given), np.array(given), pd.Series(given, index=[7, 5, 3, 1]), iter(given)):
        assert model.predict(held) == expected


@pytest.mark.parametrize(
    ("model", "named", "told"),
    [
        (None, {}, r"must be a folder or a Result, but got None \(NoneType\)"),
        (5, {}, r"must be a folder or a Result, but got 5 \(int\)"),
        ("lora", {}, "lora r=8 has 2 trainings, and a model is one of them"),
        ("run", {"dtype": torch.float32}, 'dtype "torch.float32" is not known'),
        ("run", {"device": 1.5}, 'device "1.5" is not known'),
    ],
)
def test_what_is_no_model_is_refused(
    found: fleetune.Result, model: Any, named: dict[str, Any], told: str
) -> None:
    given = {"lora": lambda: found["lora"], "run": lambda: found}.get(model, lambda: model)()
    with pytest.raises(SettingsError, match=told):
        fleetune.load(given, **named)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("w1 w2",), "`first` must be a list of texts, but it is a str"),
        (({"text": ["w1"]},), "`first` must be a list of texts, but it is a dict"),
        ((pd.DataFrame({"text": ["w1"]}),), "`first` must be a list of texts, but it is a DataFrame"),
        ((["w1", None],), r"`first\[1\]` must be a str, but it is None"),
        (([("w1", "w2")],), r"`first\[0\]` must be a str, but it is \('w1', 'w2'\)"),
        ((pd.Series([1.5]),), r"`first\[0\]` must be a str, but it is 1.5 \(float\)"),
        ((["w1"], ["w2"]), "give one list of texts"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_texts_is_refused(
    found: fleetune.Result, given: tuple[Any, ...], told: str
) -> None:
    """A text alone is a sequence of its letters, and a tokenizer takes a tuple for a pair."""
    with pytest.raises(ValueError, match=told):
        fleetune.load(found).predict(*given)


def test_methods_are_compared_over_all_their_trainings(found: fleetune.Result, made: Made) -> None:
    a, b = found["head"], found["lora"]
    assert [f.name for f in b.folders] == ["lora-s0", "lora-s1"] and b.name == "lora r=8"
    ours = fleetune.compare(a, b)
    mine = compare_methods(*(np.stack([correct(f) for f in side.folders]) for side in (a, b)))
    assert as_json(ours) == as_json(replace(mine, metric="accuracy"))
    assert ours.verdict == "cannot tell"
    assert str(ours).startswith("B against A by accuracy: cannot tell")
    assert fleetune.compare(b, a).difference == -ours.difference


def test_a_failed_training_counts_as_one_that_learned_nothing(found: fleetune.Result) -> None:
    """Half of the test rows are of either label, so a constant answer is right on every second one."""
    a, b = found["head"], replace(found["lora"], failed=3)
    sides = [np.stack([correct(f) for f in side.folders]) for side in (a, b)]
    constant = np.tile(np.arange(24) % 2 == 0, (3, 1))
    ours = fleetune.compare(a, b)
    mine = compare_methods(sides[0], np.vstack([sides[1], constant]))
    assert as_json(ours) == as_json(replace(mine, metric="accuracy"))
    none = replace(a, folders=(), failed=2)
    assert fleetune.compare(none, a).value_a == 0.5
    with pytest.raises(SettingsError, match="every training of both sides failed"):
        fleetune.compare(none, none)
    with pytest.raises(
        SettingsError, match=r"must be below 1, as scores are, but is 5; 5 points are 0\.05"
    ):
        fleetune.compare(a, b, margin=5)
    for margin in (0, -0.1, math.nan):
        with pytest.raises(SettingsError, match="`margin > 0` must hold"):
            fleetune.compare(a, b, margin=margin)


def test_saved_models_are_compared_as_files(made: Made) -> None:
    a, b = made.run / "trials/head-s0", made.run / "trials/lora-s0"
    ours = fleetune.compare(a, b)
    assert (ours.only_a, ours.only_b) == (
        int((correct(a) & ~correct(b)).sum()),
        int((correct(b) & ~correct(a)).sum()),
    )
    assert "these two files" in str(ours)


@pytest.mark.parametrize(
    ("task", "metric"), [("cola", "matthews_correlation"), ("stsb", "pearson")]
)
def test_saved_models_are_compared_by_the_main_metric_of_their_task(
    made: Made, tmp_path: Path, task: str, metric: str
) -> None:
    """With an interval and a p that agree, which say nothing of seeds."""
    if task == "stsb":
        write_glue(tmp_path, "STS-B")
    else:
        (tmp_path / "CoLA").mkdir()
        # One label in five is not the one of its words.
        said = [f"w{(i % 2) ^ (i % 5 == 0)} " * 9 for i in range(60)]
        for file, seed in (("train.tsv", 0), ("dev.tsv", 1)):
            lines = [f"x\t{i % 2}\t\t{said[i]}{text}" for i, text in enumerate(texts(60, seed))]
            (tmp_path / "CoLA" / file).write_text("\n".join(lines) + "\n")
    trained = fleetune.train(
        task, {"head": {"learning_rate": 1e-9}, "lora": {}}, data_dir=tmp_path,
        output_dir=tmp_path / "run", backbone=made.backbone, **{**SHORT, "max_steps": 24, "learning_rate": 3e-2},
    )  # fmt: skip
    (a,), (b,) = trained["head"].folders, trained["lora"].folders
    ours = fleetune.compare(a, b)
    scores = [json.loads((f / "metrics.json").read_text())["test"][metric] for f in (a, b)]
    assert ours.metric == metric and f"by {metric}" in str(ours)
    assert (ours.value_a, ours.value_b) == pytest.approx(scores, abs=1e-6)
    assert ours.difference == pytest.approx(scores[1] - scores[0], abs=1e-6)
    assert "these two files" in str(ours) and "run more seeds" not in str(ours)
    assert ours.low is not None and ours.high is not None
    assert (ours.low <= 0 <= ours.high) == (ours.p_value >= 0.05)


@SEEN_IN_TRAINING
def test_a_comparison_says_who_chose_on_the_rows_it_is_about(
    trained: fleetune.Result, made: Made, tmp_path: Path
) -> None:
    """The same data under both protocols: files, methods and their JSON carry the stamp, and which side has it."""
    paper = fleetune.train(
        rows(60), "head", output_dir=tmp_path / "paper", test_data=rows(24), protocol="paper", seeds=2,
        backbone=made.backbone, **SHORT,
    )  # fmt: skip
    plain, chosen = trained["head"], paper["head"]
    for a, b, sides in (
        (plain, chosen, "B"),
        (chosen, plain, "A"),
        (chosen, chosen, "A and B"),
        (plain.folders[0], chosen.folders[0], "B"),
    ):
        ours = fleetune.compare(a, b)
        assert ours.optimistic and ours.optimistic_of == sides
        assert as_json(ours)["optimistic"] is True
        assert (
            f'OPTIMISTIC: {sides} chose the epoch on these same examples (protocol "paper")'
            in str(ours)
        )
        assert (" did not" in str(ours)) == (sides != "A and B")
    fair = fleetune.compare(plain, trained["lora"])
    assert not fair.optimistic and "OPTIMISTIC" not in str(fair)


@pytest.mark.parametrize("content", ["", "[]", '{"seed": 0}'])
def test_a_model_that_does_not_say_what_chose_it_is_refused(
    found: fleetune.Result, tmp_path: Path, content: str
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(found["head"].folders[0], copied)
    (copied / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        fleetune.compare(copied, found["lora"].folders[0])


def test_a_run_stands_for_its_winners_method(found: fleetune.Result, made: Made) -> None:
    method = found.winner.name.partition("-")[0]
    ours = fleetune.compare(made.run, found["head"])
    assert as_json(ours) == as_json(fleetune.compare(found[method], found["head"]))


def test_other_test_rows_are_refused(found: fleetune.Result, trained: fleetune.Result) -> None:
    with pytest.raises(DataError, match="different labels or metrics"):
        fleetune.compare(found["lora"], trained["lora"])


def test_a_name_stands_before_a_method(
    monkeypatch: pytest.MonkeyPatch, found: fleetune.Result
) -> None:
    """A study may call one of two LoRAs "lora"."""
    named = {name: fleetune.api.Trainings(name, "lora", ()) for name in ("lora", "large")}
    monkeypatch.setattr("fleetune.api._trainings", lambda result: named)
    assert found["lora"] is named["lora"] and found["large"] is named["large"]


def test_a_run_that_lost_what_its_winner_said_is_no_side(
    found: fleetune.Result, made: Made, tmp_path: Path
) -> None:
    run = shutil.copytree(made.run, tmp_path / "run")
    best = found.winner
    assert best is not None
    (other,) = [f for f in found[best.name.rpartition("-s")[0]].folders if f.name != best.name]
    (run / "trials" / other.name / "predictions.parquet").unlink()
    with pytest.raises(DataError, match=f"trials/{other.name}/predictions.parquet is missing"):
        fleetune.compare(run, found["head"])


def test_whole_numbers_of_numpy_are_seeds(made: Made, tmp_path: Path) -> None:
    common: dict[str, Any] = {"methods": "head", "backbone": made.backbone, **SHORT}
    for seeds, first, wanted in ((np.arange(3, 5), None, [3, 4]), (np.int64(1), 7, [7])):
        result = fleetune.train(
            rows(60), seeds=seeds, seed=first, output_dir=tmp_path / str(wanted), **common
        )
        assert list(result.trials.seed) == wanted
    with pytest.raises(SettingsError, match="seeds names each of them; leave seed=7 out"):
        fleetune.train(rows(60), seeds=[1, 2], seed=7, output_dir=tmp_path / "both", **common)


@pytest.mark.parametrize(
    ("methods", "more", "told"),
    [
        ({"head": {"metric_for_best_model": "loss"}, "lora": {}}, {}, "since the winner is found by them"),
        ("head", {"save_steps": 0}, "save_steps"),
        ("head", {"save_steps": "x"}, "must be a whole number, 1 or more"),
        ("head", {"save_steps": 2.5}, "must be a whole number, 1 or more"),
    ],
)  # fmt: skip
def test_what_would_change_nothing_or_mislead_is_refused(
    tmp_path: Path, methods: Any, more: dict[str, Any], told: str
) -> None:
    """A loss and an accuracy have no common scale: the method that is chosen by the loss never won."""
    with pytest.raises(SettingsError, match=told):
        fleetune.train(rows(40), methods, output_dir=tmp_path / "run", **more)
    assert not (tmp_path / "run/study.toml").exists()


def test_columns_of_a_frame_need_names(tmp_path: Path) -> None:
    frame = pd.DataFrame({0: texts(12), 1: [i % 2 for i in range(12)]})
    with pytest.raises(DataError, match="names of columns must be strings, but got 0"):
        fleetune.train(frame, output_dir=tmp_path / "run")


def test_a_study_takes_paths_tuples_and_numpy(made: Made, tmp_path: Path) -> None:
    question = {
        "data": {"file": made.folder / "train.csv", "test_file": made.folder / "test.csv"},
        "backbone": {"name": made.backbone, "dtype": "float32"},
        "training": {"max_steps": np.int64(4)},
        "methods": ({"method": "head", "learning_rate": np.array([1e-3, 3e-3])},),
        "search": {"trials_per_method": 2, "sampler": "grid"},
        "confirm": {"seeds": 1},
    }
    found = fleetune.study(question, output_dir=tmp_path / "run")
    assert set(found.trials.phase) == {"search", "confirm"}


def test_a_method_that_was_not_trained_is_named(found: fleetune.Result) -> None:
    with pytest.raises(SettingsError, match=r'"lara" is not there.*there are: head'):
        _ = found["lara"]


def test_a_model_without_predictions_is_no_side(made: Made, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    assert run_cli("export", made.run, "--output", exported).code == 0
    with pytest.raises(SettingsError, match="keeps no predictions"):
        fleetune.compare(exported, made.run)


# --- the positional file of the command


def train_words(made: Made, folder: Path, *more: object) -> list[object]:
    return [
        *("train", *more, "--method", "head", "--max-steps", 1, "--dtype", "float32"),
        *("--backbone", made.backbone, "--output-dir", folder),
    ]


def test_a_guess_is_printed_with_the_flags_that_change_it(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    lines = [f"{text},{('low', 'high')[i % 2]},{i}" for i, text in enumerate(texts(30))]
    file.write_text("Review,Sentiment,when\n" + "\n".join(lines) + "\n")
    done = run_cli(*train_words(made, tmp_path / "run", file))
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("guessed:")]
    assert "text = Review (--text-column)" in line
    assert "label = Sentiment with 2 classes, high, low (--label-column)" in line
    named = run_cli(
        *train_words(made, tmp_path / "again", file), "--text-column", "Review", "--label-column", "Sentiment",
    )  # fmt: skip
    assert named.code == 0 and "guessed" not in named.err
    half = run_cli(*train_words(made, tmp_path / "half", file), "--label-column", "Sentiment")
    assert "guessed: text = Review" in half.err and "label =" not in half.err


def test_a_hostile_class_name_stays_a_name(made: Made, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "reviews.csv", 30, labels=("\x1b[31mred", "good"))
    done = run_cli(*train_words(made, tmp_path / "run", file))
    assert done.code == 0 and "\x1b" not in done.err and "\\x1b[31mred" in done.err


def test_a_file_is_given_once(made: Made, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "reviews.csv", 30)
    for more in (("--data", file), ("--task", "rte")):
        done = run_cli(*train_words(made, tmp_path / "run", file), *more)
        assert done.code == 2 and "and not both" in done.err
    done = run_cli(*train_words(made, tmp_path / "run", "reviws"))
    assert done.code == 2 and "neither a file nor a task" in done.err


def test_a_task_may_be_named_in_its_place(made: Made, tmp_path: Path) -> None:
    folder = runs.write_glue(tmp_path / "glue", "MNLI")
    done = run_cli(*train_words(made, tmp_path / "run", "mnli"), "--data-dir", folder)
    assert done.code == 0 and done.err.startswith("mnli: ") and "guessed" not in done.err
