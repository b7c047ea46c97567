"""A backbone out of the package and out of folders: what is read, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaModel
from transformers.utils import logging as transformers_logging

from fleetune.backbone import fetch, load, weights
from fleetune.backbone.load import Backbone, _max_length, config_only, find_backbone
from fleetune.errors import DataError, EnvironmentProblem, RefusedError, SettingsError
from tests.backbone.hub import save_tiny

HEAD = {"classifier.weight", "classifier.bias"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def tiny(saved: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    held = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- what is read


def test_minilm_is_the_published_model() -> None:
    found = find_backbone("minilm")
    assert found.name == "minilm"
    assert found.source == "sentence-transformers/all-MiniLM-L6-v2"
    assert found.revision is None
    assert found.checksum == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert found.checksum == sha256(found.folder / "model.safetensors")
    assert (found.max_length, found.config.hidden_size) == (512, 384)
    assert found.tokenizer.is_fast
    assert config_only("minilm").to_dict() == found.config.to_dict()


def test_folder_is_described(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    for name in ("tiny", "./tiny", str(tiny)):
        found = find_backbone(name)
        assert (found.name, found.source, found.folder) == (name, str(tiny), tiny)
        assert found.revision is None
        assert found.checksum == sha256(tiny / "model.safetensors")
        assert found.max_length == 40
        assert found.tokenizer("w0 w1 w95")["input_ids"] == [4, 5, 99]


def test_home_is_a_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert find_backbone("~/tiny").folder == tiny


def test_folder_asks_no_network(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    find_backbone(str(tiny)).classifier(2, ["no", "yes"])
    find_backbone("minilm")


def test_classifier_is_the_checkpoint_and_a_new_head(tiny: Path) -> None:
    model, new = find_backbone(str(tiny)).classifier(3, ["a", "b", "c"])
    assert new == HEAD
    assert not model.training
    checkpoint = load_file(tiny / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert {f"bert.{name}" for name in checkpoint} == set(parameters) - HEAD
    for name, tensor in checkpoint.items():
        assert_close(parameters[f"bert.{name}"].detach(), tensor, rtol=0, atol=0)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.name_or_path == model.config.name_or_path == str(tiny)


def test_classifier_for_regression(tiny: Path) -> None:
    backbone = find_backbone(str(tiny))
    model, _ = backbone.classifier(1, [], problem_type="regression")
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert backbone.config.problem_type is None, "the backbone's own config must stay as it is"


@pytest.mark.parametrize("count, names", [(2, ["a"]), (2, ["a", "a"]), (0, [])])
def test_classifier_wants_a_name_a_label(tiny: Path, count: int, names: list[str]) -> None:
    with pytest.raises(ValueError, match="different names"):
        find_backbone(str(tiny)).classifier(count, names)


def test_classifier_leaves_the_generator_alone(tiny: Path) -> None:
    backbone = find_backbone(str(tiny))
    before = torch.random.get_rng_state()
    first, _ = backbone.classifier(2, ["a", "b"])
    assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        second, _ = backbone.classifier(2, ["a", "b"])
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert_close(one, other, rtol=0, atol=0)
        assert one.data_ptr() != other.data_ptr()


def test_the_weights_read_are_those_checked(tiny: Path) -> None:
    held = load_file(tiny / "model.safetensors")
    others = {name: tensor + 1 for name, tensor in held.items()}
    save_file(others, tiny / "other.safetensors", {"format": "pt"})
    edit(tiny / "config.json", transformers_weights="other.safetensors")
    model, _ = find_backbone(str(tiny)).classifier(2, ["a", "b"])
    name = "embeddings.LayerNorm.weight"
    assert_close(dict(model.named_parameters())[f"bert.{name}"].detach(), held[name])


def test_half_precision_is_read_as_float32(tiny: Path) -> None:
    held = load_file(tiny / "model.safetensors")
    halves = {name: tensor.half() for name, tensor in held.items()}
    save_file(halves, tiny / "model.safetensors", {"format": "pt"})
    edit(tiny / "config.json", dtype="float16")
    model, _ = find_backbone(str(tiny)).classifier(2, ["a", "b"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_head_of_another_task_is_replaced(tiny: Path) -> None:
    config = BertConfig.from_pretrained(tiny, num_labels=5)
    with torch.random.fork_rng(devices=[]):
        BertForSequenceClassification(config).save_pretrained(tiny)
    model, new = find_backbone(str(tiny)).classifier(2, ["a", "b"])
    assert new == HEAD
    assert dict(model.named_parameters())["classifier.weight"].shape == (2, 16)


def test_missing_pooler_is_new(tiny: Path) -> None:
    held = load_file(tiny / "model.safetensors")
    kept = {name: tensor for name, tensor in held.items() if not name.startswith("pooler.")}
    save_file(kept, tiny / "model.safetensors", {"format": "pt"})
    _, new = find_backbone(str(tiny)).classifier(2, ["a", "b"])
    assert new == HEAD | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_weights_of_many_files(tiny: Path) -> None:
    whole, _ = find_backbone(str(tiny)).classifier(2, ["a", "b"])
    shard(tiny)
    backbone = find_backbone(str(tiny))
    digests = [sha256(tiny / f"model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    assert backbone.checksum == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    model, _ = backbone.classifier(2, ["a", "b"])
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        assert_close(one, other, rtol=0, atol=0)


def shard(folder: Path) -> None:
    """Put the weights of a folder into two files and an index."""
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(held)}
    for file in set(places.values()):
        part = {name: held[name] for name in held if places[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "kind, settings, tokens, expected",
    [
        ("bert", {"max_position_embeddings": 512}, 512, 512),
        ("bert", {"max_position_embeddings": 512}, 128, 128),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, int(1e30), 512),
        ("xlm-roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 600, 512),
        ("mpnet", {"max_position_embeddings": 514, "pad_token_id": 1}, int(1e30), 512),
        ("modernbert", {"max_position_embeddings": 8192}, 8192, 8192),
        ("xlnet", {"max_position_embeddings": -1}, int(1e30), 512),
    ],
)
def test_max_length(kind: str, settings: dict[str, int], tokens: int, expected: int) -> None:
    config: Any = SimpleNamespace(model_type=kind, **settings)
    assert _max_length(config, SimpleNamespace(model_max_length=tokens)) == expected


def test_max_length_is_what_the_position_table_takes() -> None:
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 12, "vocab_size": 9}
    config = RobertaConfig(**sizes)
    with torch.random.fork_rng(devices=[]):
        model = RobertaModel(config).eval()
    limit = _max_length(config, SimpleNamespace(model_max_length=int(1e30)))
    model(torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 5))


def test_nothing_is_said(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    find_backbone(str(tiny)).classifier(2, ["a", "b"])
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars


def test_a_changed_file_is_read_again(tiny: Path) -> None:
    file = tiny / "model.safetensors"
    first = find_backbone(str(tiny)).checksum
    hits = weights._digest_of_state.cache_info().hits
    assert find_backbone(str(tiny)).checksum == first
    assert weights._digest_of_state.cache_info().hits == hits + 1
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    before = file.stat()
    file.write_bytes(changed)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert find_backbone(str(tiny)).checksum != first


@pytest.mark.parametrize(
    "asked", [{"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}]
)
def test_a_model_that_would_give_out_something_else_gives_out_logits(
    tiny: Path, asked: dict[str, bool]
) -> None:
    plain, _ = find_backbone(str(tiny)).classifier(2, [])
    edit(tiny / "config.json", **asked)
    model, _ = find_backbone(str(tiny)).classifier(2, [])
    ids = torch.tensor([[2, 5, 3]])
    found, expected = model(ids), plain(ids)
    assert list(found) == list(expected) == ["logits"]
    assert torch.equal(found.logits, expected.logits)


# --- what is refused


def test_minilm_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "fleetune\[demo\]"'):
        find_backbone("minilm")


def test_minilm_that_is_not_the_published_one(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tiny.parent / "some_other_minilm"
    shutil.copytree(tiny, package / "model")
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tiny.parent))
    monkeypatch.setattr(fetch, "MINILM_MODULE", package.name)
    with pytest.raises(RefusedError, match="sha256 must be 53aa5117"):
        find_backbone("minilm")


@pytest.mark.parametrize("name", ["minilm", "./tiny"])
def test_a_revision_is_for_the_hub(name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    with pytest.raises(SettingsError, match="pins a model of the hub"):
        find_backbone(name, revision="main")


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "~/none", "~nobody-here/x", "./file"])
def test_no_such_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="must be a folder"):
        find_backbone(name)


def test_folder_without_config(tiny: Path) -> None:
    (tiny / "config.json").unlink()
    with pytest.raises(SettingsError, match=r"config\.json"):
        find_backbone(str(tiny))


def test_folder_of_an_adapter(tiny: Path) -> None:
    (tiny / "adapter_config.json").write_text("{}")
    with pytest.raises(SettingsError, match="holds an adapter"):
        find_backbone(str(tiny))


@pytest.mark.parametrize("text", ["{", "[]", "", "\udcff"])
def test_config_that_is_no_object(tiny: Path, text: str) -> None:
    (tiny / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=r"config\.json"):
        find_backbone(str(tiny))


def test_config_that_transformers_cannot_use(tiny: Path) -> None:
    edit(tiny / "config.json", hidden_size="wide")
    with pytest.raises(DataError, match="must be readable by transformers"):
        find_backbone(str(tiny))


@pytest.mark.parametrize("count", [1001, 10**40])
def test_config_of_endless_layers(tiny: Path, count: int) -> None:
    """Making them, even without memory, would take for ever."""
    edit(tiny / "config.json", num_hidden_layers=count)
    with pytest.raises(DataError, match=r"`0 <= num_hidden_layers <= 1000` must hold, but it is"):
        find_backbone(str(tiny))


def test_a_tokenizer_with_more_tokens_than_the_model(tiny: Path) -> None:
    """Whoever adds tokens and does not resize the embeddings would be told by an index error, perhaps once it is served."""
    edit(tiny / "config.json", vocab_size=50)
    with pytest.raises(
        SettingsError, match=r"tokens than the 50 rows of the embeddings, such as 'w"
    ):
        find_backbone(str(tiny))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("named", [True, False], ids=["by the tokenizer", "by nobody"])
def test_a_config_without_a_padding_token(tiny: Path, kind: str, named: bool) -> None:
    """The tokenizer's stands in. Where positions count from it and nobody says it, nobody can say the positions."""
    held = json.loads((tiny / "config.json").read_text())
    held |= {"model_type": kind, "pad_token_id": None}
    (tiny / "config.json").write_text(json.dumps(held))
    if not named:
        edit(tiny / "tokenizer_config.json", pad_token=None)
        (tiny / "special_tokens_map.json").unlink(missing_ok=True)
    if kind == "roberta" and not named:
        with pytest.raises(DataError, match="must name its padding token"):
            find_backbone(str(tiny))
        return
    found = find_backbone(str(tiny))
    assert (found.tokenizer.pad_token_id is not None) == named
    assert found.config.pad_token_id == (found.tokenizer.pad_token_id if named else 0)


def test_config_of_another_size_is_refused_before_it_is_made(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen thousand numbers wide, the model of two layers would take nine gigabytes to be found unfit."""
    edit(tiny / "config.json", hidden_size=16_000)
    found = find_backbone(str(tiny))

    def read(*_: object) -> None:
        raise AssertionError("the model was made")

    monkeypatch.setattr(load, "_read_model", read)
    with pytest.raises(
        DataError, match=r"config\.json asks for [\d,]+ parameters, and the weights"
    ):
        found.classifier(2, ["a", "b"])


def test_code_is_never_run(tiny: Path) -> None:
    (tiny / "evil.py").write_text("raise AssertionError('run')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    edit(tiny / "config.json", model_type="evil", auto_map=auto_map)
    for read in (find_backbone, config_only):
        with pytest.raises(RefusedError, match="never run"):
            read(str(tiny))


def test_code_beside_a_known_model_is_left_alone(tiny: Path) -> None:
    (tiny / "evil.py").write_text("raise AssertionError('run')")
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    edit(tiny / "config.json", auto_map={name: "evil.Thing" for name in names})
    edit(tiny / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Thing"]})
    _, new = find_backbone(str(tiny)).classifier(2, ["a", "b"])
    assert new == HEAD


@pytest.mark.parametrize("kind", ["no-such-model", None])
def test_unknown_family(tiny: Path, kind: str | None) -> None:
    edit(tiny / "config.json", model_type=kind)
    with pytest.raises(SettingsError, match="`model_type` must be one"):
        find_backbone(str(tiny))


def test_family_without_classifier(tiny: Path) -> None:
    edit(tiny / "config.json", model_type="vit")
    with pytest.raises(
        SettingsError, match=r'"vit" is not supported; those that are: bert, roberta'
    ):
        find_backbone(str(tiny))


def test_no_weights(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"model\.safetensors"):
        find_backbone(str(tiny))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickle_is_never_read(tiny: Path, name: str) -> None:
    (tiny / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/run'\ntR.")
    find_backbone(str(tiny)).classifier(2, ["a", "b"])  # beside safetensors it does no harm
    (tiny / "model.safetensors").unlink()
    with pytest.raises(RefusedError, match="pickle is never read"):
        find_backbone(str(tiny))


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "longer"])
def test_damaged_weights(tiny: Path, damage: str) -> None:
    file = tiny / "model.safetensors"
    whole = file.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "header": whole[:20] + b"\x00" * 20 + whole[40:],
        "longer": whole + b"more",
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"model\.safetensors.*\n.*damaged or cut off"):
        find_backbone(str(tiny))


def test_weights_of_many_files_of_which_one_is_missing(tiny: Path) -> None:
    shard(tiny)
    (tiny / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"model-00002-of-00002\.safetensors.*\n.*is missing"):
        find_backbone(str(tiny))


@pytest.mark.parametrize(
    "places", [None, {}, {"a": 1}, {"a": ""}, {"a": "../out.safetensors"}, {"a": "model.bin"}]
)
def test_index_that_points_elsewhere(tiny: Path, places: Any) -> None:
    shard(tiny)
    edit(tiny / "model.safetensors.index.json", weight_map=places)
    with pytest.raises(DataError, match="weight_map"):
        find_backbone(str(tiny))


def test_weights_of_another_model(tiny: Path) -> None:
    held = load_file(tiny / "model.safetensors")
    renamed = {name.replace("encoder", "decoder"): tensor for name, tensor in held.items()}
    save_file(renamed, tiny / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="must hold the whole encoder"):
        find_backbone(str(tiny)).classifier(2, ["a", "b"])


def test_weights_of_another_size(tiny: Path) -> None:
    edit(tiny / "config.json", vocab_size=150)
    with pytest.raises(DataError, match=r"1 parameters .* such as bert\.embeddings\.word"):
        find_backbone(str(tiny)).classifier(2, ["a", "b"])


@pytest.mark.parametrize("text", ["{", "{}", None])
def test_tokenizer_that_cannot_be_read(tiny: Path, text: str | None) -> None:
    file = tiny / "tokenizer.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises((DataError, SettingsError, EnvironmentProblem)) as caught:
        find_backbone(str(tiny))
    assert str(tiny) in str(caught.value)


@pytest.mark.parametrize(
    "kept", [{"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "T5Tokenizer"}, None]
)
def test_a_folder_without_the_words_of_its_tokenizer(
    tiny: Path, kept: dict[str, str] | None
) -> None:
    """transformers makes an empty tokenizer then, which reads every text as unknown words."""
    (tiny / "tokenizer.json").unlink()
    file = tiny / "tokenizer_config.json"
    file.unlink() if kept is None else file.write_text(json.dumps(kept))
    with pytest.raises(
        SettingsError, match=r"must have the words of its tokenizer \(tokenizer.json"
    ):
        find_backbone(str(tiny))


def test_backbone_is_a_record(tiny: Path) -> None:
    backbone: Any = find_backbone(str(tiny))
    assert isinstance(backbone, Backbone)
    with pytest.raises(AttributeError):
        backbone.name = "other"  # pyright: ignore
