"""`fleetune train` and what follows it, in this process, on the tiny backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fleetune.config import TrainingSettings
from fleetune.report import doctor
from fleetune.study import prepare
from fleetune.study.run import Run
from tests.runs import Made, Result, run_cli, tree, write_csv

FLAGS = {
    "learning_rate": 2e-3,
    "num_train_epochs": 2.0,
    "max_steps": 3,
    "per_device_train_batch_size": 5,
    "per_device_eval_batch_size": 7,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 1.0,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "weight_decay": 0.02,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-7,
    "max_grad_norm": 0.5,
    "label_smoothing_factor": 0.1,
    "dropout": 0.05,
    "metric_for_best_model": "f1",
    "greater_is_better": False,
}


def words(made: Made, folder: Path, *more: object) -> list[object]:
    return [
        *("train", "--data", made.folder / "train.csv", "--test-data", made.folder / "test.csv"),
        *("--backbone", made.backbone, "--dtype", "float32", "--output-dir", folder, *more),
    ]


@pytest.fixture(scope="module")
def trained(made: Made, tmp_path_factory) -> tuple[Path, Result]:
    """Two methods, two seeds, JSON."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    more = ("--methods", "bitfit,lora", "--set", "lora.r=2", "--set", "lora_alpha=4", "--seed", 3)
    found = run_cli(*words(made, folder, *more, "--seeds", 2, "--max-steps", 8, "--json"))
    assert found.code == 0, found.err
    return folder, found


def test_json_of_train_is_that_of_show(trained: tuple[Path, Result]) -> None:
    folder, found = trained
    facts = json.loads(found.out)
    assert json.loads(run_cli("show", folder, "--json").out) == facts
    assert list(facts)[:4] == ["study", "trials", "estimates", "verdicts"]
    assert [t["id"] for t in facts["trials"]] == ["bitfit-s3", "bitfit-s4", "lora-s3", "lora-s4"]


def test_json_of_a_trial_has_the_names_of_the_design(trained: tuple[Path, Result]) -> None:
    for trial in json.loads(trained[1].out)["trials"]:
        wanted = (
            *("id", "task", "method", "hyperparameters", "seed", "phase", "status", "epochs"),
            *("best_epoch", "test", "trainable_parameters", "seconds"),
        )
        assert set(wanted) <= set(trial)
        assert trial["status"] == "done" and trial["task"] == "train"
        assert {"epoch", "loss", "selection"} <= set(trial["epochs"][0])
        assert {"accuracy", "f1", "loss"} <= set(trial["epochs"][0]["selection"])
        assert 1 <= trial["best_epoch"] <= len(trial["epochs"])
        assert {"accuracy", "f1", "n"} <= set(trial["test"]) and trial["test"]["n"] == 24
        assert set(trial["trainable_parameters"]) == {"encoder", "head"}
        if trial["method"] == "lora":
            assert (trial["hyperparameters"]["r"], trial["hyperparameters"]["lora_alpha"]) == (2, 4)
            # Two layers, query and value, r * (16 + 16) each.
            assert trial["trainable_parameters"]["encoder"] == 4 * 2 * 32


def test_every_estimate_says_what_it_is_worth(trained: tuple[Path, Result]) -> None:
    estimates = json.loads(trained[1].out)["estimates"]
    assert [(e["method"], e["metric"]) for e in estimates] == [
        (method, metric) for method in ("bitfit", "lora") for metric in ("accuracy", "f1")
    ]
    for e in estimates:
        assert e["low"] <= e["value"] <= e["high"]
        assert (e["n"], e["seeds"], e["optimistic"]) == (24, 2, False) and "95%" in e["how"]


def test_data_on_stdout_and_talk_on_stderr(made: Made, trained: tuple[Path, Result]) -> None:
    folder, found = trained
    assert found.out.lstrip().startswith("{") and "examples/s" in found.err
    shown = run_cli("show", folder)
    assert shown.out.splitlines()[0].startswith("train, protocol holdout")
    assert "next: fleetune predict" in shown.err and "next:" not in shown.out
    assert "lora r=2" in shown.out and "95% interval" in shown.out


def test_the_same_command_again_says_so_and_prints_the_same(
    made: Made, trained: tuple[Path, Result]
) -> None:
    folder, found = trained
    more = ("--methods", "bitfit,lora", "--set", "lora.r=2", "--set", "lora_alpha=4", "--seed", 3)
    again = run_cli(*words(made, folder, *more, "--seeds", 2, "--max-steps", 8, "--json"))
    assert again.code == 0 and again.out == found.out
    assert "4 of 4 trials had been finished before" in again.err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--weight-decay", 0.5), "weight_decay: 0.0 there, 0.5 now"),
        (("--set", "lora.r=4"), "r: 2 there, 4 now"),
        (("--protocol", "paper"), "protocol: 'holdout' there, 'paper' now"),
    ],
)
def test_another_setting_is_refused_with_the_difference(
    made: Made, trained: tuple[Path, Result], more: tuple, named: str
) -> None:
    folder, _ = trained
    before = tree(folder)
    base = ("--methods", "bitfit,lora", "--set", "lora.r=2", "--set", "lora_alpha=4", "--seed", 3)
    found = run_cli(*words(made, folder, *base, "--seeds", 2, "--max-steps", 8, *more))
    assert found.code == 6 and found.out == "" and named in found.err
    assert tree(folder) == before


def test_other_rows_are_refused_with_how_many_there_are(made: Made, tmp_path: Path) -> None:
    """A checksum tells nobody what became of a file."""
    source, folder = tmp_path / "rows.csv", tmp_path / "run"
    source.write_bytes((made.folder / "train.csv").read_bytes())
    asked = words(made, folder, "--max-steps", 1)
    asked[2] = source
    assert run_cli(*asked).code == 0
    before = tree(folder)
    rows = json.loads(before["environment.json"])["data"]["rows"]
    lines = source.read_text().splitlines()
    source.write_text("\n".join(lines[:-3]) + "\n")
    found = run_cli(*asked)
    assert found.code == 6 and tree(folder) == before
    assert f"data: {rows['train']} train, {rows['test']} test rows (checksum " in found.err
    assert f" there, {rows['train'] - 3} train, {rows['test']} test rows (checksum " in found.err


def test_a_run_without_its_environment_is_told_what_is_missing(
    trained: tuple[Path, Result], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    (folder / "environment.json").unlink()
    for asked in (("show", folder), ("predict", folder, "--text", "a b")):
        found = run_cli(*asked)
        assert found.code == 4
        assert "environment.json: 1 problem" in found.err
        assert "no such file or directory; restore it from a copy" in found.err


def test_a_dry_run_trains_nothing_and_says_what_it_would_cost(
    made: Made, trained: tuple[Path, Result], tmp_path: Path, own_environment: Path
) -> None:
    """The trials, epochs and parameters of the run itself, and no file."""
    _, whole = trained
    asked = words(made, tmp_path / "run", "--methods", "bitfit,lora", "--set", "lora.r=2")
    asked += ["--set", "lora_alpha=4", "--seed", 3, "--seeds", 2, "--max-steps", 8, "--dry-run"]
    before = tree(own_environment)
    told = run_cli(*asked)
    assert told.code == 0, told.err
    assert "method  train  epochs  encoder  head" in told.out and "estimates: " in told.out
    found = json.loads(run_cli(*asked, "--json").out)
    trials = json.loads(whole.out)["trials"]
    assert found["totals"]["trials"] == len(trials) == 4
    assert found["totals"]["epochs"] == sum(len(t["epochs"]) for t in trials)
    for arm in found["arms"]:
        counted = [t["trainable_parameters"] for t in trials if t["method"] == arm["method"]]
        assert counted == [arm["trainable_parameters"]] * 2
    assert (tree(tmp_path), tree(own_environment)) == ({}, before)
    at = asked.index("--output-dir")
    assert run_cli(*asked[:at], *asked[at + 2 :]).out.splitlines()[:4] == told.out.splitlines()[:4]


def test_a_run_needs_a_place_or_to_be_dry(made: Made, tmp_path: Path) -> None:
    found = run_cli(*words(made, tmp_path / "run")[:-2])
    assert found.code == 2 and "--output-dir is needed, or --dry-run" in found.err


def test_every_training_flag_reaches_the_run(made: Made, tmp_path: Path) -> None:
    assert FLAGS.keys() == TrainingSettings.model_fields.keys()
    plain = TrainingSettings().model_dump()
    assert all(FLAGS[name] != plain[name] for name in FLAGS)
    flags: list[object] = []
    for name, value in FLAGS.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{flag}")
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else value]
    found = run_cli(*words(made, tmp_path / "run", "--method", "head", *flags, "--json"))
    assert found.code == 0, found.err
    (trial,) = json.loads(found.out)["trials"]
    assert trial["training"] == FLAGS
    assert trial["epochs"][-1]["step"] == 3


def test_revision_and_save_steps_reach_the_run(made: Made, tmp_path: Path, monkeypatch) -> None:
    class Seen(Exception):
        """Ends the command where it hands them on."""

    def find(name: str, *, revision: str | None) -> object:
        raise Seen(name, revision)

    def train(run: Run, watch: object) -> object:
        raise Seen(run.save_steps)

    with monkeypatch.context() as patch, pytest.raises(Seen) as seen:
        patch.setattr(prepare, "find_backbone", find)
        run_cli(*words(made, tmp_path / "run", "--revision", "v1"))
    assert seen.value.args == (str(made.backbone), "v1")
    monkeypatch.setattr(Run, "train", train)
    with pytest.raises(Seen) as seen:
        run_cli(*words(made, tmp_path / "run", "--save-steps", 7))
    assert seen.value.args == (7,)


def test_the_paper_protocol_is_stamped_in_every_output(made: Made, tmp_path: Path) -> None:
    more = ("--protocol", "paper", "--method", "head", "--max-steps", 2)
    found = run_cli(*words(made, tmp_path / "run", *more))
    assert found.code == 0 and "OPTIMISTIC" in found.out and "OPTIMISTIC" in found.err
    facts = json.loads(run_cli("show", tmp_path / "run", "--json").out)
    assert facts["trials"][0]["optimistic"] and facts["estimates"][0]["optimistic"]
    assert "OPTIMISTIC" not in run_cli("show", made.run).out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--methods", "bitfit,lorra"), 'did you mean "lora"?'),
        (("--methods", "lora,lora"), "may be named once"),
        (("--set", "rank=4"), 'did you mean "r"?'),
        (("--set", "r"), "key=value"),
        (("--set", "r=0"), "r: "),
        (("--set", "learning_rate=1"), "--learning-rate"),
        (("--set", "bitfit.terms=all"), "not trained here"),
        (("--set", "target_modules=querry"), 'did you mean "query"?'),
        (("--protocol", "holdotu"), 'did you mean "holdout"?'),
        (("--dtype", "float23"), 'did you mean "float32"?'),
        (("--metric-for-best-model", "acuracy"), 'did you mean "accuracy"?'),
        (("--lr-scheduler-type", "lineer"), "lr_scheduler_type"),
        (("--lr-scheduler-kwargs", "[1]"), "JSON object"),
        (("--learning-rate", "-1"), "learning_rate"),
        (("--max-steps", "0"), "max_steps"),
        (("--warmup-steps", "5000"), "more than the"),
        (
            ("--lr-scheduler-type", "polynomial", "--warmup-steps", "3", "--max-steps", "3"),
            "needs a step after the warm-up",
        ),
        (("--lr-scheduler-type", "cosine_with_min_lr"), "min_lr_rate"),
        (("--lr-scheduler-type", "cosine", "--lr-scheduler-kwargs", '{"cycles": 2}'), "num_cycles"),
        (("--max-length", "1"), "max_length"),
        (("--seeds", "0"), "seeds"),
        (("--learning-rat", "1"), "--learning-rate"),
        (("--task", "rte"), "not both"),
        (("--data-dir", "GLUE"), "--data-dir is for a named task"),
        (("--device", "tpu"), "device"),
    ],
)
def test_misuse_is_told_with_the_remedy_before_anything_is_written(
    made: Made, tmp_path: Path, more: tuple, told: str
) -> None:
    found = run_cli(*words(made, tmp_path / "run", *more))
    assert (found.code, found.out) == (2, ""), found.err
    assert told in found.err and "Traceback" not in found.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_names_the_nearest(made: Made, tmp_path: Path) -> None:
    found = run_cli("train", "--task", "demo-sentimant", "--output-dir", tmp_path / "run")
    assert found.code == 2 and 'did you mean "demo-sentiment"?' in found.err
    assert list(tmp_path.iterdir()) == []


def test_a_named_task_takes_no_rows_and_columns_of_a_file(made: Made, tmp_path: Path) -> None:
    """They would change nothing, and somebody would believe in a score on rows of their own."""
    more = ("--label-column", "label", "--text-column", "text", "--groups-column", "author")
    found = run_cli(
        *("train", "--task", "demo-sentiment", "--test-data", made.folder / "test.csv", *more),
        *("--backbone", made.backbone, "--output-dir", tmp_path / "run"),
    )
    assert found.code == 2 and "4 problems" in found.err
    for flag in ("--test-data", *more[::2]):
        assert f"{flag} is for own rows (--data)" in found.err
    assert list(tmp_path.iterdir()) == []


def test_a_resolved_study_of_a_named_task_may_say_its_columns(made: Made) -> None:
    given = prepare.Settings(
        data=prepare.DataSettings(task="demo-sentiment", max_train_samples=20),
        methods=(prepare.MethodSettings("head"),),
        seeds=(0,),
        backbone=str(made.backbone),
    )
    resolved = prepare.prepare(given).settings
    assert resolved.data.text_columns == ("text",)
    assert prepare.prepare(resolved).settings == resolved


def test_all_wrong_training_settings_are_told_at_once(made: Made, tmp_path: Path) -> None:
    more = ("--weight-decay", -1, "--adam-beta1", 2, "--num-train-epochs", 0)
    found = run_cli(*words(made, tmp_path / "run", *more))
    assert found.code == 2 and "3 problems" in found.err
    assert all(name in found.err for name in ("weight_decay", "adam_beta1", "num_train_epochs"))


def test_bad_rows_are_told_with_line_and_column(made: Made, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bad.csv", 20)
    lines = path.read_text().splitlines()
    lines[4], lines[9] = "w1 w2,", ",good"
    path.write_text("\n".join(lines) + "\n")
    found = run_cli(
        *("train", "--data", path, "--backbone", made.backbone, "--output-dir", tmp_path / "run")
    )
    assert found.code == 4 and "2 problems" in found.err
    assert "line 5, column label" in found.err and "line 10, column text" in found.err
    assert not (tmp_path / "run").exists()


def test_a_hub_id_without_network_is_exit_5_and_says_what_to_do(made: Made, tmp_path: Path) -> None:
    more = ("--backbone", "nobody/has-this")
    found = run_cli(*words(made, tmp_path / "run", *more))
    assert found.code == 5 and "nobody/has-this" in found.err
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_exit_5(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    found = run_cli(*words(made, tmp_path / "file" / "run", "--max-steps", 1))
    assert found.code == 5 and "Traceback" not in found.err and "file" in found.err
    assert (tmp_path / "file").read_text() == "mine"


def test_names_that_would_move_the_cursor_are_shown_as_text(made: Made, tmp_path: Path) -> None:
    evil = "\x1b[2Jgood\x07"
    train = write_csv(tmp_path / "train.csv", 40, labels=("bad", evil))
    run = tmp_path / "run"
    base = ("train", "--data", train, "--backbone", made.backbone, "--dtype", "float32")
    trained = run_cli(*base, "--method", "head", "--max-steps", 6, "--output-dir", run)
    assert trained.code == 0, trained.err
    predicted = run_cli("predict", run, "--text", "w90 \x1b]0;title\x07", "--text", "w1")
    as_json = run_cli("predict", run, "--text", "w90", "--json")
    wrong = write_csv(tmp_path / "other.csv", 4, labels=("bad", "\x1b[31mred"))
    evaluated = run_cli("evaluate", run, "--data", wrong)
    assert evaluated.code == 4
    shown, shown_json = run_cli("show", run), run_cli("show", run, "--json")
    for found in (trained, predicted, as_json, evaluated, shown, shown_json):
        assert not set(found.out + found.err) & {"\x1b", "\x07", "\r"}
    assert json.loads(as_json.out)[0]["probabilities"].keys() == {"bad", evil}


def test_demo_trains_what_it_says(made: Made, tmp_path: Path, monkeypatch) -> None:
    """The demo's own settings through the whole path, with fewer steps and the tiny backbone."""
    from dataclasses import replace

    from fleetune.cli import train as command

    real, seen = command.run, []

    def short(settings, output_dir, **rest):
        seen.append(settings)
        few = {**settings.training, "num_train_epochs": 1, "max_steps": 2}
        return real(
            replace(settings, training=few, backbone=str(made.backbone), max_length=16),
            output_dir,
            **rest,
        )

    monkeypatch.setattr(command, "run", short)
    found = run_cli("demo", "--output-dir", tmp_path / "demo", "--json")
    assert found.code == 0, found.err
    facts = json.loads(found.out)
    assert len(facts["trials"]) == 15 and {t["task"] for t in facts["trials"]} == {"demo-sentiment"}
    assert {e["method"] for e in facts["estimates"]} == {"head", "bitfit", "lora"}
    assert seen[0].backbone == "minilm" and seen[0].data.protocol == "holdout"
    assert (tmp_path / "demo" / "report.html").is_file()


@pytest.mark.parametrize(("dtype", "told"), [("bfloat16", True), ("float32", False)])
def test_a_dtype_that_the_processor_only_imitates_is_told(
    made: Made, tmp_path: Path, monkeypatch, dtype: str, told: bool
) -> None:
    monkeypatch.setattr(prepare, "_has_bfloat16", lambda device: False)
    found = run_cli(
        *("train", made.folder / "train.csv", "--methods", "head", "--max-steps", 1, "--dtype", dtype),
        *("--learning-rate", 1e-3, "--backbone", made.backbone, "--output-dir", tmp_path / "run"),
    )  # fmt: skip
    assert found.code == 0, found.err
    assert ("cpu has no bfloat16 in hardware; --dtype auto would take" in found.err) == told


def test_auto_asks_the_device_that_is_used(monkeypatch) -> None:
    """A machine may have a GPU with bfloat16 beside a processor without it."""
    monkeypatch.setattr(prepare, "_has_bfloat16", lambda device: device.startswith("cuda"))
    assert prepare.resolve_dtype("auto") == "float32"
    assert prepare.resolve_dtype("auto", "cuda:0") == "bfloat16"
    assert prepare.resolve_dtype("float64", "cuda:0") == "float64"


def test_methods_as_table_and_json(made: Made) -> None:
    found = run_cli("methods", "lora", "--backbone", made.backbone, "--json")
    (lora,) = json.loads(found.out)
    assert lora["name"] == "lora" and lora["peft_format"] is True
    # A pooler that no checkpoint holds counts as head; r=8 on query and value of two layers of width 16.
    assert lora["trainable_parameters"]["encoder"] == 4 * 8 * 32
    settings = {s["name"]: s["default"] for s in lora["settings"]}
    assert settings["r"] == "8" and settings["target_modules"] == "default"
    assert all(s["meaning"] for s in lora["settings"])
    names = [m["name"] for m in json.loads(run_cli("methods", "--json").out)]
    assert {"bitfit", "lora", "head", "full"} <= set(names)
    table = run_cli("methods")
    assert all(name in table.out for name in names) and "next:" in table.err
    wrong = run_cli("methods", "bitfitt")
    assert wrong.code == 2 and 'did you mean "bitfit"?' in wrong.err


def test_doctor_reports_what_is_missing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "matrix_rate", lambda *given: 100e9)
    found = run_cli("doctor", "--json")
    assert found.code == 0, found.err
    records = json.loads(found.out)
    assert {tuple(r) for r in records} == {("name", "found", "ok", "remedy", "needed")}
    by_name = {r["name"]: r for r in records}
    assert {"versions", "machine", "matrix rate", "gpu", "disk", "cache", "hub"} <= set(by_name)
    assert "bfloat16 100 GFLOP/s" in by_name["matrix rate"]["found"]
    assert "torch" in by_name["versions"]["found"] and "offline" in by_name["hub"]["found"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLEETUNE_CACHE", str(tmp_path / "file" / "cache"))
    table = run_cli("doctor")
    assert "Traceback" not in table.err and "cache" in table.out
