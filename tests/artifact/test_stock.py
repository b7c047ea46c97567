"""A saved model outside of fleetune: stock PEFT and stock transformers give the same logits, head included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fleetune.artifact import layout, save
from fleetune.artifact.export import _cutting_at
from fleetune.backbone.load import find_backbone
from fleetune.backbone.sites import site_map
from fleetune.methods.table import make_method
from fleetune.study.prepare import MethodSettings
from tests.artifact.models import (
    TEXTS,
    own_logits,
    plain,
    save_family,
    stock_logits,
    with_peft,
)
from tests.artifact.test_card import RECORD
from tests.runs import METHODS, Made, run_cli, settings, train
from tests.tiny import tiny_model

# Packed and padded float32 sums differ in their order; a lost head or a wrong scale is off by far more than 1e-2.
CLOSE = dict(rtol=0, atol=2e-5)
FAMILIES = ("roberta", "modernbert", "distilbert")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, made: Made, tmp_path_factory) -> tuple[Path, Path]:
    """A backbone of another family, and a run of LoRA and BitFit on it."""
    folder = tmp_path_factory.mktemp(request.param)
    backbone = save_family(folder / "backbone", request.param)
    bitfit = MethodSettings("bitfit", {"add_missing": request.param == "modernbert"})
    train(
        folder / "run",
        settings(made.folder, backbone, ["lora", bitfit], seeds=[0], num_train_epochs=1),
    )
    return backbone, folder / "run"


def assert_peft_gives_the_same(backbone: Path, folder: Path) -> None:
    expected = own_logits(folder, TEXTS)
    model = with_peft(backbone, folder)
    found = stock_logits(model, backbone, TEXTS)
    assert expected.shape == (100, 2)
    np.testing.assert_allclose(found, expected, **CLOSE)
    # The backbone alone, with any fresh head, says something else: so head and adapter were loaded.
    assert np.abs(stock_logits(plain(backbone), backbone, TEXTS) - expected).max() > 1e-2
    with model.disable_adapter():
        assert np.abs(stock_logits(model, backbone, TEXTS) - expected).max() > 1e-3


def test_lora_loads_with_stock_peft(made: Made) -> None:
    for seed in (0, 1):
        assert_peft_gives_the_same(made.backbone, made.run / f"trials/lora-s{seed}")


def test_lora_of_other_families_loads_with_stock_peft(family: tuple[Path, Path]) -> None:
    backbone, run = family
    assert_peft_gives_the_same(backbone, run / "trials/lora-s0")


@pytest.mark.parametrize(
    "given",
    [
        {"target_modules": "all-linear", "r": 3, "lora_alpha": 12.0, "use_rslora": True},
        {"target_modules": ["encoder.layer.1.attention.self.key", "intermediate.dense"], "r": 1},
        {"lora_dropout": 0.3, "lora_alpha": 0.5},
        {"layers_to_transform": [1], "target_modules": "all-linear", "r": 2},
    ],
)
def test_every_setting_of_lora_means_the_same_to_peft(made: Made, tmp_path: Path, given) -> None:
    """Whole paths and endings, rank-stabilised scale, alpha below the rank, dropout, some of the layers."""
    trial = MethodSettings("lora", given)
    train(tmp_path / "run", settings(made.folder, made.backbone, [trial], seeds=[0]))
    assert_peft_gives_the_same(made.backbone, tmp_path / "run/trials/lora-s0")


def test_the_file_holds_the_head_and_the_factors_and_nothing_else(made: Made) -> None:
    names = safetensors.torch.load_file(made.run / "trials/lora-s0" / layout.WEIGHTS).keys()
    layers = [
        f"base_model.model.bert.encoder.layer.{layer}.attention.self.{role}.lora_{side}.weight"
        for layer in (0, 1)
        for role in ("query", "value")
        for side in "AB"
    ]
    head = [f"base_model.model.classifier.{own}" for own in ("weight", "bias")]
    assert set(names) - {n for n in names if ".pooler." in n} == {*layers, *head}
    config = json.loads((made.run / "trials/lora-s0" / layout.CONFIG).read_bytes())
    assert config["peft_type"] == "LORA" and config["task_type"] == "SEQ_CLS"
    assert config["target_modules"] == ["query", "value"] and config["r"] == 8
    assert "classifier" in config["modules_to_save"]


@pytest.mark.parametrize("method", METHODS)
def test_peft_is_told_the_commit_of_the_backbone(method: str) -> None:
    sites = site_map(tiny_model("bert"))
    found = save.adapter_config(RECORD, make_method(method, {}), sites)
    assert found["revision"] == RECORD.backbone_revision is not None
    assert found["base_model_name_or_path"] == RECORD.backbone_source


@pytest.mark.parametrize("method", METHODS)
def test_every_method_exported_loads_with_stock_transformers(
    made: Made, tmp_path: Path, method: str
) -> None:
    trial, output = made.run / f"trials/{method}-s0", tmp_path / "model"
    done = run_cli("export", trial, "--format", "hf", "--output", output)
    assert done.code == 0 and done.out == f"{output}\n"
    names = {p.name for p in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", layout.RECORD} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl")) or "adapter" in n]
    model, info = AutoModelForSequenceClassification.from_pretrained(
        output, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.id2label == {0: "bad", 1: "good"}
    expected = own_logits(trial, TEXTS)
    np.testing.assert_allclose(stock_logits(model, output, TEXTS), expected, **CLOSE)
    np.testing.assert_allclose(own_logits(output, TEXTS), expected, **CLOSE)


def test_an_export_cuts_texts_where_the_training_did(made: Made, tmp_path: Path) -> None:
    """`truncation=True` without a length is what a pipeline does; the backbone's tokenizer has another limit, and a stray one."""
    backbone = Path(shutil.copytree(made.backbone, tmp_path / "backbone"))
    told = json.loads((backbone / "tokenizer_config.json").read_text())
    told |= {"max_length": 11, "stride": 2}
    (backbone / "tokenizer_config.json").write_text(json.dumps(told))
    found = run_cli(
        *("train", made.folder / "train.csv", "--test-data", made.folder / "test.csv", "--max-length", 6),
        *("--backbone", backbone, "--method", "lora", "--max-steps", 3, "--learning-rate", 1e-1),
        *("--dtype", "float32", "--output-dir", tmp_path / "run"),
    )  # fmt: skip
    assert found.code == 0, found.err
    output = tmp_path / "model"
    assert run_cli("export", tmp_path / "run", "--output", output).code == 0
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.model_max_length == 6 and "max_length" not in tokenizer.init_kwargs
    texts = [" ".join(f"w{(i * k) % 40}" for i in range(1, 12)) for k in range(1, 30)]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 6
    model = AutoModelForSequenceClassification.from_pretrained(output)
    with torch.inference_mode():
        said = model(**batch).logits.numpy()
    np.testing.assert_allclose(said, own_logits(tmp_path / "run", texts), **CLOSE)
    # As a backbone it reads what the first one could.
    wide = find_backbone(str(backbone)).max_length
    assert find_backbone(str(output)).max_length == wide > 6


def test_an_exported_tokenizer_neither_cuts_nor_pads_unasked(made: Made) -> None:
    """MiniLM's own tokenizer.json says: cut at 128, pad to 128."""
    tokenizer = AutoTokenizer.from_pretrained(made.backbone)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    told = json.loads(_cutting_at(64, tokenizer).backend_tokenizer.to_str())
    assert told["truncation"] is None and told["padding"] is None


def test_other_families_exported_load_with_stock_transformers(
    family: tuple[Path, Path], tmp_path: Path
) -> None:
    _, run = family
    for trial in sorted((run / "trials").iterdir()):
        output = tmp_path / trial.name
        done = run_cli("export", trial, "--output", output)
        if trial.name == "bitfit-s0" and "modernbert" in str(run):
            # Its biases have no place in a plain model: said, and nothing written.
            assert done.code == 6 and "add_missing" in done.err and not output.exists()
            assert np.isfinite(own_logits(trial, TEXTS)).all()
            continue
        assert done.code == 0, done.err
        model = AutoModelForSequenceClassification.from_pretrained(output)
        np.testing.assert_allclose(
            stock_logits(model, output, TEXTS), own_logits(trial, TEXTS), **CLOSE
        )
