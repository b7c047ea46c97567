"""Keys that are misspelled, and TOML and JSON made to hold a machine for hours."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest
import tomli_w

from fleetune.errors import FleetuneError, SettingsError
from fleetune.study.file import read_study
from tests.runs import run_cli

SOUND = """
[data]
task = "rte"
data_dir = "glue"

[backbone]
name = "minilm"

[training]
num_train_epochs = 3

[[methods]]
method = "lora"
r = 4

[confirm]
seeds = 5
"""
# (table, what was written, what was meant)
MISSPELLED = (
    *(("data", "taks", "task"), ("data", "datadir", "data_dir"), ("data", "protocoll", "protocol")),
    *(("data", "text_column", "text_columns"), ("data", "label_colum", "label_column")),
    *(("backbone", "nmae", "name"), ("backbone", "dytpe", "dtype"), ("backbone", "maxlength", "max_length")),
    *(("training", "learning_rte", "learning_rate"), ("training", "lr", "learning_rate")),
    *(("training", "epochs", "num_train_epochs"), ("training", "weigth_decay", "weight_decay")),
    *(("training", "batch_size", "per_device_train_batch_size"), ("training", "warmup_ratio", "warmup_steps")),
    *(("methods", "lora_alfa", "lora_alpha"), ("methods", "rank", "r"), ("methods", "dropout_lora", "lora_dropout")),
    *(("methods", "target_module", "target_modules"), ("search", "trial_per_method", "trials_per_method")),
    *(("search", "smapler", "sampler"), ("confirm", "seed", "seeds"), ("confirm", "firstseed", "first_seed")),
)  # fmt: skip


def study(table: str, key: str, value: object = 1) -> str:
    text = SOUND + ("\n[search]\nseed = 0\n" if table == "search" else "")
    head = f"[[{table}]]" if table == "methods" else f"[{table}]"
    return text.replace(head, f"{head}\n{key} = {json.dumps(value)}")


def told(path: Path) -> str:
    with pytest.raises(SettingsError) as error:
        read_study(path)
    return str(error.value)


def test_misspelled_keys_are_told_with_the_right_one(tmp_path: Path) -> None:
    assert len(MISSPELLED) >= 20
    missed: list[str] = []
    for table, written, meant in MISSPELLED:
        (tmp_path / "study.toml").write_text(study(table, written))
        said = told(tmp_path / "study.toml")
        assert written in said
        if f'"{meant}"' not in said and f"use {meant}" not in said:
            missed.append(f"{written}: {said}")
    assert len(missed) <= 2, "\n".join(missed)


NINES = "9" * 100_000
TOML_BOMBS = {
    # what is in it, and what must be said
    "nested lists": ("[training]\nmax_steps = " + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
    "nested tables": ("[training]\nmax_steps = " + "{a = " * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
    "deep key": (f"[{'.'.join('a' * 10_000)}]\nb = 1\n", "tables deep"),
    "deep dotted value": (f"[training]\n{'.'.join('a' * 10_000)} = 1\n", "tables deep"),
    "deep quoted key": ("[training]\n" + ' . '.join(['"a"'] * 100_000) + " = 1\n", "tables deep"),
    "a word of a megabyte": (SOUND + "x = '" + "a" * 900_000 + "'\n", "x: unknown key"),
    "deep but closed": (SOUND + "\nx = " + "[" * 50 + "]" * 50, "tables deep"),
    "huge integer": (study("training", "max_steps").replace("max_steps = 1", f"max_steps = {NINES}"), "digits"),
    "integer of 4000 digits": (
        study("training", "max_steps").replace("max_steps = 1", f"max_steps = {NINES[:4000]}"), "max_steps",
    ),
    "huge float": (study("training", "weight_decay").replace("weight_decay = 1", "weight_decay = 1e999"), "weight_decay"),
    "endless float": (
        study("training", "weight_decay").replace("weight_decay = 1", f"weight_decay = 0.{NINES}e-99999999"),
        "",
    ),
    "key twice": ("[training]\nmax_steps = 1\nmax_steps = 2\n", "overwrite"),
    "table twice": ("[data]\ntask = 'rte'\n[data]\n", "twice"),
    "gigantic list": (study("training", "weight_decay", [i / 7 for i in range(40_000)]), "at most 1000 values"),
    "gigantic file": ("#" * 2_000_000, "longer than 1,000,000 bytes"),
    "many tables": (SOUND + "[[methods]]\nmethod = 'lorra'\n" * 30_000, "there is no"),
    "many unknown keys": (SOUND + "[more]\n" + "".join(f"k{i} = 1\n" for i in range(60_000)), "more: unknown key"),
    "a grid of 10^12": (
        SOUND + "[[methods]]\nmethod = 'bitfit'\nlearning_rate = {low = 1e-4, high = 1, steps = 1000}\n"
        + "".join(f"{key} = {{low = 0, high = 0.5, steps = 1000}}\n" for key in ("weight_decay", "dropout", "adam_beta1"))
        + "[search]\nsampler = 'grid'\n", "the grid of bitfit has 1000000000000 settings",
    ),
    "seeds without end": (SOUND.replace("seeds = 5", "seeds = 1000000000000"), "seeds"),
    "control characters": ("[data]\ntask = \"\0\"\n", "is not TOML"),
    "not UTF-8": ("[data]\ntask = '\udcff'\n", "cannot be read"),
    "a date": (SOUND.replace("num_train_epochs = 3", "num_train_epochs = 1979-05-27"), "num_train_epochs"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOML_BOMBS)
def test_toml_bombs_are_refused_at_once(tmp_path: Path, name: str) -> None:
    text, said = TOML_BOMBS[name]
    path = tmp_path / "study.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if said:
        found = told(path)
        assert said in found and len(found) < 25_000
    else:
        read_study(path)  # sound, though it looks dangerous
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000  # kB


JSON_BOMBS = {
    "nested lists": "[" * 10_000 + "]" * 10_000,
    "nested objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "huge integer": NINES,
    "huge list": "[" + "1," * 40_000 + "1]",
    "key twice": '{"r": 1, "r": 0}',
}


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_bombs_on_the_command_line(tmp_path: Path, name: str) -> None:
    """`--set` of train and study read JSON and TOML; a value is refused or a text, and never a traceback."""
    began = time.process_time()
    words = ("--backbone", "./none", "--output-dir", tmp_path / "run")
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na,x\nb,y\n")
    found = run_cli("train", "--data", rows, *words, "--set", f"r={JSON_BOMBS[name]}")
    assert found.code == 2 and "r: " in found.err and len(found.err) < 5000
    kwargs = run_cli("train", "--data", rows, *words, "--lr-scheduler-kwargs", JSON_BOMBS[name])
    assert kwargs.code == 2 and "Traceback" not in kwargs.err and len(kwargs.err) < 5000
    (tmp_path / "study.toml").write_text(
        tomli_w.dumps({"data": {"file": str(rows)}, "methods": [{"method": "lora"}]})
    )
    study = run_cli(
        "study", tmp_path / "study.toml", "--set", f"methods.lora.r={JSON_BOMBS[name]}", "--dry-run"
    )
    assert study.code == 2 and "methods.lora.r: " in study.err and len(study.err) < 5000
    assert time.process_time() - began < 5


@pytest.mark.parametrize("place", ["fleetune.json", "config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("name", JSON_BOMBS)
def test_json_bombs_in_a_model_folder(tmp_path: Path, place: str, name: str) -> None:
    from fleetune.artifact.load import read_record
    from fleetune.backbone.load import find_backbone

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / place).write_text(JSON_BOMBS[name])
    began = time.process_time()
    with pytest.raises(FleetuneError) as error:
        read_record(tmp_path) if place == "fleetune.json" else find_backbone(str(tmp_path))
    assert len(str(error.value)) < 5000
    assert time.process_time() - began < 5
