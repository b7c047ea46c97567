"""`export --format onnx`: ONNX Runtime gives the logits of the saved model, for batches of any size."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from transformers import AutoTokenizer

from fleetune.artifact import export, layout, onnx
from fleetune.study.prepare import DataSettings
from tests.artifact.models import TEXTS, own_logits, save_family
from tests.runs import Made, run_cli, settings, train, tree, write_csv

# Padded float32 sums of another library; a lost head or a wrong scale is off by far more than 1e-2.
CLOSE = dict(rtol=0, atol=1e-4)


def logits(folder: Path, texts: list[str], second: list[str] | None = None) -> np.ndarray:
    """As the card says, one batch of all texts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    batch = tokenizer(texts, second, padding=True, truncation=True, return_tensors="np")
    return session.run(["logits"], {i.name: batch[i.name] for i in session.get_inputs()})[0]


def assert_the_same(trial: Path, folder: Path) -> None:
    """Many texts at once, and one, and one of one word."""
    for texts in (TEXTS, TEXTS[:1], ["w7"]):
        np.testing.assert_allclose(logits(folder, texts), own_logits(trial, texts), **CLOSE)


@pytest.fixture(scope="module")
def exported(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trial and its graph, as the command wrote it."""
    trial, output = made.run / "trials/lora-s0", tmp_path_factory.mktemp("onnx") / "graph"
    done = run_cli("export", trial, "--format", "onnx", "--output", output)
    assert done.code == 0 and done.out == f"{output}\n", done.err
    (line,) = done.err.splitlines()
    assert line.startswith(f"exported {trial}; load it with onnxruntime")
    return trial, output


@pytest.mark.slow
def test_an_exported_graph_runs_on_onnxruntime(exported: tuple[Path, Path]) -> None:
    trial, output = exported
    assert_the_same(trial, output)
    names = {p.name for p in output.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", layout.RECORD, layout.CARD} <= names
    assert not [n for n in names if n.endswith((".data", ".safetensors", ".bin"))]
    config = json.loads((output / "config.json").read_bytes())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert json.loads((output / layout.RECORD).read_bytes())["exported"] == "onnx"


@pytest.mark.slow
def test_predict_says_what_runs_a_graph(exported: tuple[Path, Path]) -> None:
    found = run_cli("predict", exported[1], "--text", "w1")
    assert found.code == 2 and "onnxruntime" in found.err and "--format hf" in found.err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["head", "bitfit"])
def test_other_methods_run_on_onnxruntime(made: Made, tmp_path: Path, method: str) -> None:
    trial, output = made.run / f"trials/{method}-s1", tmp_path / "graph"
    assert run_cli("export", trial, "--format", "onnx", "--output", output).code == 0
    assert_the_same(trial, output)


@pytest.mark.slow
def test_pairs_run_on_onnxruntime(made: Made, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "pairs.csv", 60, pairs=True)
    data = DataSettings(file=str(file), text_columns=("first", "second"), label_column="label")
    given = settings(made.folder, made.backbone, ["lora"], seeds=[0], max_steps=3)
    train(tmp_path / "run", replace(given, data=data))
    trial, output = tmp_path / "run/trials/lora-s0", tmp_path / "graph"
    assert run_cli("export", trial, "--format", "onnx", "--output", output).code == 0
    second = TEXTS[::-1]
    expected = own_logits(trial, TEXTS, second)
    np.testing.assert_allclose(logits(output, TEXTS, second), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["distilbert", "modernbert"])
def test_other_families_run_on_onnxruntime(made: Made, tmp_path: Path, family: str) -> None:
    backbone = save_family(tmp_path / "backbone", family)
    train(tmp_path / "run", settings(made.folder, backbone, ["lora"], seeds=[0], max_steps=3))
    done = run_cli("export", tmp_path / "run", "--format", "onnx", "--output", tmp_path / "graph")
    assert done.code == 0, done.err
    assert_the_same(tmp_path / "run/trials/lora-s0", tmp_path / "graph")


@pytest.mark.slow
def test_the_cards_own_lines_run(exported: tuple[Path, Path]) -> None:
    trial, output = exported
    card = (output / layout.CARD).read_text()
    assert 'library_name: "onnx"' in card and "peft" not in card.split("---")[1]
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(logits.tolist())"],
        cwd=output, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = own_logits(trial, ["a text", "another text"])
    np.testing.assert_allclose(json.loads(run.stdout.splitlines()[-1]), expected, **CLOSE)


@pytest.mark.slow
def test_a_graph_that_says_something_else_is_not_exported(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = onnx._run
    monkeypatch.setattr(onnx, "_run", lambda graph, inputs: run(graph, inputs) + 1e-2)
    words = ("export", made.run / "trials/head-s0", "--format", "onnx")
    found = run_cli(*words, "--output", tmp_path / "graph")
    assert found.code == 1 and "other logits" in found.err
    assert tree(tmp_path) == {}


def test_what_is_missing_is_said(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    monkeypatch.setattr(export, "open_saved", None)  # said before anything is loaded
    words = ("export", made.run / "trials/head-s0", "--format", "onnx")
    found = run_cli(*words, "--output", tmp_path / "graph")
    assert found.code == 5 and "needs onnxscript" in found.err and "fleetune[onnx]" in found.err
