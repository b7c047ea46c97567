"""`export --push-to-hub` against a hub on this machine: what is sent, who may read it, and what is never sent or said."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, constants, parse_eval_result_entries

from fleetune.artifact import layout
from fleetune.artifact.load import load_saved, read_record
from fleetune.durable import sha256
from fleetune.serve.predictor import Predictor
from tests.artifact.taking_hub import TOKEN, Repository, TakingHub
from tests.runs import Made, Result, run_cli

BASE = "somebody/tiny-bert"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TakingHub]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The hub's own large-file protocol is a library's and a server's affair; this hub has the plain one.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with TakingHub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


@pytest.fixture
def adapter(made: Made, tmp_path: Path) -> Path:
    """A saved LoRA of RTE, as it would be were its backbone one of the hub."""
    folder = tmp_path / "adapter"
    source = made.run / "trials" / "lora-s0"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    record = json.loads((folder / layout.RECORD).read_text())
    record |= {"backbone": BASE, "backbone_source": BASE}
    (folder / layout.RECORD).write_text(json.dumps(layout.sealed(record)))
    results = folder / ".eval_results"
    results.mkdir()
    results.joinpath("glue.yaml").write_text(
        '- {"dataset": {"id": "nyu-mll/glue", "task_id": "rte"}, "value": 0.7}\n'
    )
    return folder


def push(folder: Path, *more: object) -> Result:
    return run_cli("export", folder, "--push-to-hub", "me/mine", *more)


def test_an_adapter_goes_into_a_private_repository(hub: TakingHub, adapter: Path) -> None:
    found = push(adapter)
    assert found.code == 0, found.err
    assert found.out == f"{hub.url}/me/mine\n" and "private" in found.err
    (repository,) = hub.repositories.values()
    assert repository.private and repository.message == "Model trained by fleetune"
    sent = repository.files
    assert set(sent) == {
        *("adapter_config.json", "adapter_model.safetensors", "fleetune.json", "metrics.json"),
        *("README.md", ".eval_results/glue.yaml"),
    }
    assert sent["adapter_model.safetensors"] == (adapter / layout.WEIGHTS).read_bytes()
    # As the hub reads them.
    assert ModelCard(sent["README.md"].decode()).data.pipeline_tag == "text-classification"
    (entry,) = parse_eval_result_entries(yaml.safe_load(sent[".eval_results/glue.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("nyu-mll/glue", "rte", 0.7)
    assert hub.yaml == [sent["README.md"].decode()]


@pytest.mark.parametrize("kind", ["adapter", "hf", "onnx"])
def test_what_was_sent_is_a_whole_model(
    hub: TakingHub, adapter: Path, made: Made, tmp_path: Path, kind: str
) -> None:
    """Fetched into an empty folder it is read as it was before it was sent: all that its record names is there."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("transformers.exporters")
    trial = made.run / "trials" / "lora-s0"
    sent_from = adapter if kind == "adapter" else tmp_path / "merged"
    words = () if kind == "adapter" else ("--format", kind, "--output", sent_from)
    found = push(adapter if kind == "adapter" else trial, *words)
    assert found.code == 0, found.err
    (repository,) = hub.repositories.values()
    there = tmp_path / "there"
    there.mkdir()
    for name, content in repository.files.items():
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_bytes(content)
    _, sums = read_record(there)
    assert set(sums) == {n for n in read_record(sent_from)[1] if n != layout.PREDICTIONS}
    assert all(sha256(there / name) == expected for name, expected in sums.items())
    if kind == "hf":
        said = Predictor(there).logits(["w1 w2"])
        assert np.array_equal(said, Predictor(sent_from).logits(["w1 w2"]))
    if kind == "adapter":
        saved, before = load_saved(there), load_saved(sent_from)
        assert saved.record == before.record and saved.tensors.keys() == before.tensors.keys()
    assert ("model.onnx" in sums) == (kind == "onnx")


@pytest.mark.parametrize("kind", ["adapter", "hf"])
def test_what_is_damaged_is_not_sent(
    hub: TakingHub, adapter: Path, made: Made, tmp_path: Path, kind: str
) -> None:
    folder, name = adapter, layout.WEIGHTS
    if kind == "hf":
        folder, name = tmp_path / "merged", "tokenizer.json"
        assert run_cli("export", made.run / "trials/lora-s0", "--output", folder).code == 0
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" ")
    found = push(folder)
    assert found.code == 6 and f"{name}: changed since it was" in found.err
    (folder / name).unlink()
    found = push(folder)
    assert found.code == 4 and f"{name} is missing" in found.err
    assert not hub.repositories


def test_public_only_when_asked(hub: TakingHub, adapter: Path) -> None:
    assert push(adapter, "--public").code == 0
    assert not hub.repositories["me/mine"].private


def test_a_public_repository_that_is_there_gets_nothing_unasked(
    hub: TakingHub, adapter: Path
) -> None:
    hub.repositories["me/mine"] = Repository(private=False)
    found = push(adapter)
    assert found.code == 6 and "everybody can read it" in found.err
    assert hub.repositories["me/mine"].files == {}
    assert push(adapter, "--public").code == 0
    assert hub.repositories["me/mine"].files


def test_a_private_repository_that_is_there_takes_another_version(
    hub: TakingHub, adapter: Path
) -> None:
    assert (push(adapter).code, push(adapter).code) == (0, 0)
    assert hub.repositories["me/mine"].private


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: TakingHub, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        found = push(adapter)
    assert f"Bearer {TOKEN}" in hub.tokens
    kept = [p.read_bytes() for p in adapter.rglob("*") if p.is_file()]
    sent = list(hub.repositories["me/mine"].files.values())
    assert not any(TOKEN.encode() in content for content in (*kept, *sent))
    assert TOKEN not in found.out + found.err
    assert not any(TOKEN in r.getMessage() for r in caplog.records if r.name.startswith("fleetune"))


def test_a_merged_model_is_sent_without_the_place_of_its_backbone(
    hub: TakingHub, made: Made, tmp_path: Path
) -> None:
    trial = made.run / "trials" / "lora-s0"
    refused = push(trial)
    assert refused.code == 6 and "--format hf --output DIR" in refused.err
    assert hub.repositories == {}
    found = push(trial, "--output", tmp_path / "merged")
    assert found.code == 0, found.err
    sent = hub.repositories["me/mine"].files
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(sent)
    place = str(made.backbone).encode()
    assert not any(place in content for content in sent.values())
    card = ModelCard(sent["README.md"].decode())
    assert card.data.library_name == "transformers" and "peft" not in card.data.tags
    assert "PeftModel" not in card.text and "AutoModelForSequenceClassification" in card.text
    # The numbers are those of the trial's own card.
    assert card.data.eval_results == ModelCard((trial / "README.md").read_text()).data.eval_results


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [(401, 5, "hf auth login"), (403, 5, "HF_TOKEN"), (500, 1, "status 500")],
)
def test_a_refusal_says_what_to_do(
    hub: TakingHub, adapter: Path, status: int, code: int, told: str
) -> None:
    hub.status = status
    found = push(adapter)
    assert found.code == code and told in found.err and found.out == ""
    assert TOKEN not in found.err


def test_without_a_token_and_without_a_network(
    hub: TakingHub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = push(adapter)
    assert found.code == 5 and "127.0.0.1:9" in found.err and "network" in found.err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = push(adapter)
    assert found.code == 5 and "HF_HUB_OFFLINE" in found.err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--push-to-hub", "mine"), "you/mine"),
        (("--push-to-hub", "me/mi ne"), "no name on the hub"),
        (("--public",), "--push-to-hub"),
        ((), "--output is needed"),
        (("--format", "optuna", "--push-to-hub", "me/mine"), "optuna is none"),
    ],
)
def test_words_that_cannot_be_meant(
    hub: TakingHub, made: Made, words: tuple[str, ...], told: str
) -> None:
    found = run_cli("export", made.run / "trials" / "lora-s0", *words)
    assert found.code == 2 and told in found.err
    assert hub.asked == []
