"""What is damaged, changed or foreign is refused with the right exit code, and nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from fleetune.artifact import export, layout, load, save
from fleetune.durable import sha256
from tests import runs
from tests.artifact.models import own_logits, save_family
from tests.artifact.test_card import RECORD
from tests.backbone.hub import save_tiny
from tests.runs import Made, run_cli, settings, train, tree

_unpickled: list[str] = []


def _hook(event: str, found: tuple) -> None:
    if event == "pickle.find_class":
        _unpickled.append(".".join(map(str, found)))


# An audit hook stays for the life of the process, so it is set once and its findings are emptied for each test.
sys.addaudithook(_hook)


@pytest.fixture(autouse=True)
def nothing_is_unpickled():
    _unpickled.clear()
    yield
    assert _unpickled == []


class Bomb:
    """Unpickling this runs code; here it only leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_the_hook_sees_a_pickle(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert _unpickled and (tmp_path / "mark").exists()
    _unpickled.clear()


@pytest.fixture
def trial(made: Made, tmp_path: Path) -> Path:
    """A copy of a saved LoRA, to be damaged."""
    return Path(shutil.copytree(made.run / "trials/lora-s0", tmp_path / "lora-s0"))


def reseal(folder: Path, **changes: object) -> None:
    """Change the record and make its checksums fit again, as whoever meant harm would."""
    path = folder / layout.RECORD
    record = {**json.loads(path.read_bytes()), **changes}
    for name in record["checksums"]:
        if (folder / name).exists():
            record["checksums"][name] = sha256(folder / name)
    path.write_text(json.dumps(layout.sealed(record)))


def with_weights(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / layout.WEIGHTS
        tensors = safetensors.torch.load_file(path)
        path.unlink()
        safetensors.torch.save_file(change(tensors), path)
        reseal(folder)

    return damage


def record(**changes: object) -> Callable[[Path], None]:
    return lambda folder: reseal(folder, **changes)


HEAD, FACTOR = "base_model.model.classifier.weight", "lora_A.weight"


def _renamed(tensors: dict) -> dict:
    return {k.replace("classifier", "klassifier"): v for k, v in tensors.items()}


def _reshaped(tensors: dict) -> dict:
    return {k: v.reshape(-1, 1) if k == HEAD else v for k, v in tensors.items()}


def _thinner(tensors: dict) -> dict:
    return {k: v[:4] if k.endswith(FACTOR) else v for k, v in tensors.items()}


def _with(value: float) -> Callable[[dict], dict]:
    def change(tensors: dict) -> dict:
        tensors[HEAD][0, 0] = value
        return tensors

    return change


def _whole_numbers(tensors: dict) -> dict:
    return {k: v.to(torch.int32) if k == HEAD else v for k, v in tensors.items()}


def _eight_bits(tensors: dict) -> dict:
    return {k: v.to(torch.float8_e4m3fn) if k == HEAD else v for k, v in tensors.items()}


def _sums(folder: Path, name: str) -> None:
    found = json.loads((folder / layout.RECORD).read_bytes())
    found["checksums"][name] = "0"
    (folder / layout.RECORD).write_text(json.dumps(layout.sealed(found)))


def _headless(tensors: dict) -> dict:
    return {k: v for k, v in tensors.items() if "classifier" not in k}


def _more(tensors: dict) -> dict:
    return {**tensors, "base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(2)}


def _cut(folder: Path) -> None:
    path = folder / layout.WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def _cut_and_sealed(folder: Path) -> None:
    _cut(folder)
    reseal(folder)


def _one_bit(folder: Path) -> None:
    path = folder / layout.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _another_config(folder: Path) -> None:
    path = folder / layout.CONFIG
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))


def _pickled(folder: Path) -> None:
    (folder / layout.WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(folder / "mark")))


def _pickled_as_safetensors(folder: Path) -> None:
    (folder / layout.WEIGHTS).write_bytes(pickle.dumps(Bomb(folder / "mark")))
    reseal(folder)


def _no_json(folder: Path) -> None:
    (folder / layout.RECORD).write_text('{"method": "lora"')


def _a_list(folder: Path) -> None:
    (folder / layout.RECORD).write_text("[1, 2]")


def _no_record(folder: Path) -> None:
    (folder / layout.RECORD).unlink()


def _missing(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGES = {
    # name: what is done, exit code, what the message says
    "cut": (_cut, 6, "changed since it was saved"),
    "cut and sealed": (_cut_and_sealed, 4, "unreadable"),
    "one bit": (_one_bit, 6, "changed since it was saved"),
    "config changed": (_another_config, 6, "adapter_config.json: changed since"),
    "weights gone": (_missing(layout.WEIGHTS), 4, "adapter_model.safetensors is missing"),
    "config gone": (_missing(layout.CONFIG), 4, "adapter_config.json is missing"),
    "record gone": (_no_record, 2, "fleetune.json"),
    "record no json": (_no_json, 4, "damaged"),
    "record a list": (_a_list, 4, "damaged"),
    "renamed": (with_weights(_renamed), 4, "classifier.weight: missing"),
    "reshaped": (with_weights(_reshaped), 4, "must have shape (2, 16), but has (32, 1)"),
    "another rank": (with_weights(_thinner), 4, "must have shape (8, 16), but has (4, 16)"),
    "nan": (with_weights(_with(float("nan"))), 4, "finite"),
    "infinite": (with_weights(_with(float("inf"))), 4, "finite"),
    "integers": (with_weights(_whole_numbers), 4, "finite floating-point"),
    "no head": (with_weights(_headless), 4, "classifier.bias: missing"),
    "one more": (with_weights(_more), 4, "word_embeddings.weight: not a tensor that lora owns"),
    "three labels": (record(label_names=["a", "b", "c"]), 4, "must have shape (3, 16)"),
    "one label": (record(label_names=["a"]), 4, "must have shape (1, 16)"),
    "labels twice": (record(label_names=["a", "a"]), 4, "label_names"),
    "labels no list": (record(label_names=5), 4, "label_names"),
    "labels no text": (record(label_names=[1, None]), 4, "label_names"),
    "length no number": (record(max_length="long"), 4, "max_length"),
    "length below one": (record(max_length=0), 4, "max_length"),
    "length beyond the backbone": (record(max_length=4000), 4, "`max_length <= 40` must hold"),
    "metric of another kind": (record(metrics=["pearson"]), 4, "metrics: must be among accuracy"),
    "names a file outside": (lambda f: _sums(f, "../x"), 6, "'../x', which is no file of this"),
    "half precision of half": (with_weights(_eight_bits), 4, "16 bits or more"),
    "unknown dtype": (record(dtype="float8"), 4, "dtype"),
    "settings no table": (record(hyperparameters=[1]), 4, "hyperparameters"),
    "columns three": (record(text_columns=["a", "b", "c"]), 4, "text_columns"),
    "later format": (record(format=99), 6, "update fleetune"),
    "later method": (record(method="telepathy"), 6, "update fleetune"),
    "other settings": (record(hyperparameters={"r": 0}), 4, "r: "),
    "pickle beside": (_pickled, 6, "pickle is never read"),
    "pickle inside": (_pickled_as_safetensors, 6, "pickle is never read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(trial: Path, name: str) -> None:
    damage, code, told = DAMAGES[name]
    damage(trial)
    before = tree(trial)
    found = run_cli("predict", trial, "--text", "w1 w2", "--json")
    assert (found.code, found.out) == (code, ""), found.err
    assert told in found.err and "Traceback" not in found.err
    assert tree(trial) == before  # neither a mark nor a mended file
    assert run_cli("export", trial, "--output", trial.parent / "out").code == code
    assert not (trial.parent / "out").exists()


def test_an_undamaged_copy_is_read(trial: Path, made: Made) -> None:
    """The copies above fail for what was done to them and for nothing else; times and notes may change."""
    (trial / layout.CARD).write_text("my own notes")
    (trial / layout.METRICS).write_text("{}")
    texts = runs.texts(4)
    np.testing.assert_array_equal(
        own_logits(trial, texts), own_logits(made.run / "trials/lora-s0", texts)
    )


def test_a_model_asks_for_the_commit_of_its_backbone(monkeypatch) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        load, "find_backbone", lambda name, *, revision: asked.append((name, revision))
    )
    load._find_backbone_of(RECORD)
    assert asked == [(RECORD.backbone, RECORD.backbone_revision)]


def test_another_backbone_is_refused(made: Made, tmp_path: Path) -> None:
    backbone = Path(shutil.copytree(made.backbone, tmp_path / "backbone"))
    train(tmp_path / "run", settings(made.folder, backbone, ["lora"], seeds=[0]))
    trial = tmp_path / "run/trials/lora-s0"
    shutil.rmtree(backbone)
    gone = run_cli("predict", trial, "--text", "w1")
    assert gone.code in (2, 5) and str(backbone) in gone.err
    save_tiny(backbone, initializer_range=0.03)
    other = run_cli("predict", trial, "--text", "w1")
    assert other.code == 6 and "use the same revision" in other.err
    shutil.rmtree(backbone)
    save_family(backbone, "distilbert")
    assert run_cli("export", trial, "--output", tmp_path / "out").code == 6
    assert not (tmp_path / "out").exists()


def test_another_config_or_tokenizer_is_refused(made: Made, tmp_path: Path) -> None:
    """Beside the same weights, where numbers would come out without a word; what says who wrote a file may change."""
    backbone = Path(shutil.copytree(made.backbone, tmp_path / "backbone"))
    train(tmp_path / "run", settings(made.folder, backbone, ["lora"], seeds=[0]))
    trial = tmp_path / "run/trials/lora-s0"

    def change(name: str, how: Callable[[dict], object]) -> tuple[int, str, int]:
        """What predict says, and how export ends, with a file changed."""
        held = (backbone / name).read_bytes()
        found = json.loads(held)
        how(found)
        (backbone / name).write_text(json.dumps(found))
        told = run_cli("predict", trial, "--text", "w1 w2")
        exported = run_cli("export", trial, "--output", tmp_path / "out").code
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (backbone / name).write_bytes(held)
        return told.code, told.err, exported

    def swap(found: dict) -> None:
        vocabulary = found["model"]["vocab"]
        vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]

    code, said, exported = change("config.json", lambda c: c.update(layer_norm_eps=0.5))
    assert (code, exported) == (6, 6) and "with another config.json" in said
    code, said, exported = change("tokenizer.json", swap)
    assert (code, exported) == (6, 6) and "with another tokenizer" in said
    for harmless in (
        {"transformers_version": "9.9"},
        {"id2label": {"0": "x"}, "label2id": {"x": 0}},
    ):
        assert change("config.json", lambda c, h=harmless: c.update(h))[::2] == (0, 0)


def test_a_record_that_was_changed_is_refused(trial: Path) -> None:
    """All labels turned round, or another scale than the one beside it: valid values, and wrong answers."""
    path = trial / layout.RECORD
    whole = json.loads(path.read_bytes())
    own = whole["hyperparameters"]
    for wrong in (
        {"label_names": whole["label_names"][::-1]},
        {"hyperparameters": {**own, "lora_alpha": 99}},
    ):
        path.write_text(json.dumps({**whole, **wrong}))
        found = run_cli("predict", trial, "--text", "w1")
        assert found.code == 6 and "its own checksum does not fit" in found.err
    for wrong, told in (([], "must be a table"), ({**whole, "checksums": 5}, "a table of checksums"),
                        ({**whole, "chosen_on": [1]}, "chosen_on: must be")):  # fmt: skip
        path.write_text(json.dumps(wrong))
        found = run_cli("predict", trial, "--text", "w1")
        assert found.code == 4 and told in found.err, found.err


def test_an_export_that_was_changed_is_refused(made: Made, tmp_path: Path) -> None:
    assert run_cli("export", made.run / "trials/head-s0", "--output", tmp_path / "m").code == 0
    path = tmp_path / "m/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = run_cli("predict", tmp_path / "m", "--text", "w1")
    assert found.code == 6 and "changed since it was exported" in found.err
    content[-1] ^= 1
    path.write_bytes(content)
    assert run_cli("predict", tmp_path / "m", "--text", "w1").code == 0
    for name in ("config.json", "tokenizer.json"):
        held = (tmp_path / "m" / name).read_bytes()
        (tmp_path / "m" / name).write_bytes(held + b" ")
        found = run_cli("predict", tmp_path / "m", "--text", "w1")
        assert found.code == 6 and f"{name}: changed since it was exported" in found.err
        (tmp_path / "m" / name).unlink()
        found = run_cli("predict", tmp_path / "m", "--text", "w1")
        assert found.code == 4 and f"{name} is missing; copy the whole folder" in found.err
        (tmp_path / "m" / name).write_bytes(held)
    path.unlink()
    (tmp_path / "m/pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    assert run_cli("predict", tmp_path / "m", "--text", "w1").code in (2, 4, 6)
    assert not (tmp_path / "mark").exists()


def _train_words(made: Made, folder: Path) -> list[object]:
    return [
        *("train", "--data", made.folder / "train.csv", "--test-data", made.folder / "test.csv"),
        *("--backbone", made.backbone, "--dtype", "float32", "--max-steps", 3, "--seed", 0),
        # Large steps: a lost update must be far beyond rounding.
        *("--learning-rate", "1e-1", "--output-dir", folder),
    ]


def _head_lost(monkeypatch) -> None:
    real = safetensors.torch.save

    def lossy(tensors, **rest):
        return real({k: v * 0 if k == HEAD else v for k, v in tensors.items()}, **rest)

    monkeypatch.setattr(save.safetensors.torch, "save", lossy)


def _scale_lost(monkeypatch) -> None:
    real = save.adapter_config
    monkeypatch.setattr(save, "adapter_config", lambda *a: {**real(*a), "lora_alpha": 800})


def _layer_lost(monkeypatch) -> None:
    real = save.adapter_config
    monkeypatch.setattr(save, "adapter_config", lambda *a: {**real(*a), "target_modules": ["key"]})


@pytest.mark.parametrize("fault", [_head_lost, _scale_lost, _layer_lost])
def test_a_model_that_reads_back_differently_is_not_saved(
    made: Made, tmp_path: Path, monkeypatch, fault
) -> None:
    """A lost head, a wrong scale, an adapter on other layers: said, exit 1, and no folder under the trial's name."""
    with monkeypatch.context() as patch:
        fault(patch)
        found = run_cli(*_train_words(made, tmp_path / "run"), "--set", "lora_alpha=8")
    assert found.code == 1 and "not saved" in found.err and "Traceback" not in found.err
    assert found.out == "" and "saved, best epoch" not in found.err
    assert list((tmp_path / "run/trials").iterdir()) == []
    # Mended, the same command goes on and saves.
    again = run_cli(*_train_words(made, tmp_path / "run"), "--set", "lora_alpha=8")
    assert again.code == 0 and (tmp_path / "run/trials/lora-s0" / layout.RECORD).is_file()


def test_biases_that_a_plain_model_has_no_place_for_are_read_back_too(
    made: Made, tmp_path: Path, monkeypatch
) -> None:
    """There are no logits of a merged model to compare with."""
    backbone = save_family(tmp_path / "backbone", "modernbert")
    words = [*_train_words(made, tmp_path / "run"), "--backbone", backbone, "--method", "bitfit"]
    _head_lost(monkeypatch)
    found = run_cli(*words, "--set", "add_missing=true")
    assert found.code == 1 and "not saved" in found.err
    assert list((tmp_path / "run/trials").iterdir()) == []


def test_an_export_that_reads_back_differently_is_not_written(
    made: Made, tmp_path: Path, monkeypatch
) -> None:
    real = export._save_pretrained

    def other(model: Any, folder: Path) -> None:
        with torch.no_grad():
            model.classifier.bias += 1
            real(model, folder)
            model.classifier.bias -= 1

    monkeypatch.setattr(export, "_save_pretrained", other)
    found = run_cli("export", made.run / "trials/head-s0", "--output", tmp_path / "m")
    assert found.code == 1 and "other logits" in found.err and tree(tmp_path) == {}


def test_an_export_without_its_head_or_of_another_length_is_refused(
    made: Made, tmp_path: Path
) -> None:
    """Its checksums fit, as after whoever meant harm."""
    assert run_cli("export", made.run / "trials/head-s0", "--output", tmp_path / "m").code == 0
    reseal(tmp_path / "m", max_length=4000)
    found = run_cli("predict", tmp_path / "m", "--text", "w1")
    assert found.code == 4 and "max_length" in found.err, found.err
    reseal(tmp_path / "m", max_length=32)
    path = tmp_path / "m/model.safetensors"
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    safetensors.torch.save_file(_headless(tensors), path, {"format": "pt"})
    reseal(tmp_path / "m")
    found = run_cli("predict", tmp_path / "m", "--text", "w1")
    assert found.code == 4 and "classifier.weight: missing" in found.err, found.err


def test_checksums_in_the_record_are_those_of_the_files(made: Made, tmp_path: Path) -> None:
    run_cli("export", made.run / "trials/bitfit-s1", "--output", tmp_path / "m")
    for folder in (*sorted((made.run / "trials").iterdir()), tmp_path / "m"):
        sums = json.loads((folder / layout.RECORD).read_bytes())["checksums"]
        # The card of an exported model is there to be written in.
        free = {layout.RECORD} | ({layout.CARD} if folder == tmp_path / "m" else set())
        assert sums == {p.name: sha256(p) for p in folder.iterdir() if p.name not in free}


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o002, 0o664)])
def test_file_modes_follow_the_umask(made: Made, tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        done = run_cli(*_train_words(made, tmp_path / "run"), "--methods", "lora,head")
        assert done.code == 0
        run_cli("export", tmp_path / "run/trials/head-s0", "--output", tmp_path / "model")
        rows = made.folder / "test.csv"
        run_cli("predict", tmp_path / "run", "--input", rows, "--output", tmp_path / "out.jsonl")
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 20
    assert {oct(p.stat().st_mode & 0o777) for p in files} == {oct(mode)}
    folders = [p for p in tmp_path.rglob("*") if p.is_dir()]
    assert {oct(p.stat().st_mode & 0o777) for p in folders} == {oct(0o777 & ~mask)}
