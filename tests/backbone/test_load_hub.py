"""A backbone from a hub, here a local one: found, missing, refused, cut off, unreachable, offline.

The messages are part of the contract: they name what was tried and the ways out, and no token.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from fleetune.backbone.load import config_only, find_backbone
from fleetune.errors import DataError, EnvironmentProblem, RefusedError, SettingsError
from tests.backbone.hub import Fault, LocalHub, save_tiny

REPO = "someone/tiny"
TOKEN = "hf_neverShowThis"
REMEDIES = ("HF_ENDPOINT", "give its folder", "--backbone minilm")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an environment without token or offline mode."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
        huggingface_hub.close_session()


def closed_port() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- found


def test_found(hub: LocalHub, saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    others = ("README.md", "pytorch_model.bin", "onnx/model.safetensors", "evil.py")
    commit = hub.add(REPO, files | dict.fromkeys(others, b"not wanted"))
    found = find_backbone(REPO)
    assert (found.name, found.source, found.revision) == (REPO, REPO, commit)
    assert found.folder.name == commit
    assert names(found.folder) == set(files)
    assert found.checksum == find_backbone(str(saved)).checksum
    model, new = found.classifier(2, ["a", "b"])
    assert new == {"classifier.weight", "classifier.bias"}
    assert model.config.name_or_path == REPO
    assert capfd.readouterr().out == ""


def test_found_under_a_name_of_one_part(hub: LocalHub, saved: Path) -> None:
    commit = hub.add("tiny-base", saved)
    assert find_backbone("tiny-base").revision == commit


def test_a_folder_goes_before_a_hub_id(
    hub: LocalHub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("tiny", saved)
    monkeypatch.chdir(saved.parent)
    assert find_backbone("tiny").revision is None
    assert hub.asked == []


def test_revision_pins(hub: LocalHub, saved: Path) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    old = hub.add(REPO, files, "v1")
    new = hub.add(REPO, files | {"vocab.txt": b"new"}, "main")
    assert old != new
    assert find_backbone(REPO).revision == new
    assert find_backbone(REPO, revision="v1").revision == old
    assert find_backbone(REPO, revision=old).revision == old
    hub.asked.clear()
    assert find_backbone(REPO, revision=new).revision == new
    assert hub.asked == [], "a commit that is cached must not be asked for"


def test_main_moves_on(hub: LocalHub, saved: Path) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    hub.add(REPO, files)
    find_backbone(REPO)
    new = hub.add(REPO, files | {"vocab.txt": b"new"})
    assert find_backbone(REPO).revision == new


def test_config_only(hub: LocalHub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add(REPO, saved)
    assert config_only(REPO).hidden_size == 16
    assert config_only(REPO, commit).hidden_size == 16
    assert not [line for line in hub.asked if "model.safetensors" in line]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert config_only(REPO).hidden_size == 16
    with pytest.raises(EnvironmentProblem, match="does not hold all of it"):
        find_backbone(REPO)


# --- not there, or not for us


def test_missing(hub: LocalHub) -> None:
    with pytest.raises(SettingsError, match=f'has no model "{REPO}", or it is private') as caught:
        find_backbone(REPO)
    assert "HF_TOKEN" in str(caught.value)
    assert hub.url in str(caught.value)


@pytest.mark.parametrize("fault", [Fault(404), Fault(401, "RepoNotFound")])
def test_missing_in_other_words(hub: LocalHub, saved: Path, fault: Fault) -> None:
    hub.add(REPO, saved)
    hub.faults[REPO] = fault
    with pytest.raises(SettingsError, match="has no model"):
        find_backbone(REPO)


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_missing_revision(hub: LocalHub, saved: Path, revision: str) -> None:
    hub.add(REPO, saved)
    with pytest.raises(SettingsError, match=f'no revision "{revision}"'):
        find_backbone(REPO, revision=revision)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(401),
        Fault(403),
        Fault(401, "GatedRepo"),
        Fault(403, "GatedRepo"),
        Fault(401, "GatedRepo", files_only=True),
        Fault(403, "GatedRepo", files_only=True),
        Fault(403, files_only=True),
    ],
)
@pytest.mark.parametrize("token", [None, TOKEN])
def test_refused(
    hub: LocalHub, saved: Path, fault: Fault, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.add(REPO, saved)
    hub.faults[REPO] = fault
    with pytest.raises(EnvironmentProblem, match=f"status {fault.status}") as caught:
        find_backbone(REPO)
    message = str(caught.value)
    assert "HF_TOKEN" in message
    assert ("no token is set" in message) == (token is None)
    assert TOKEN not in message
    assert hub.tokens[0] == (None if token is None else f"Bearer {TOKEN}")


def test_an_unknown_family_is_refused_before_it_is_fetched(hub: LocalHub, saved: Path) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    files["config.json"] = json.dumps({"model_type": "gpt2", "vocab_size": 100}).encode()
    hub.add("someone/gpt", files)
    with pytest.raises(SettingsError, match='"gpt2" is not supported; those that are: bert'):
        find_backbone("someone/gpt")
    assert not any("safetensors" in asked for asked in hub.asked)


@pytest.mark.parametrize("name", ["mniilm", "MiniLM", "minlm"])
def test_minilm_misspelt(hub: LocalHub, name: str) -> None:
    with pytest.raises(SettingsError, match='did you mean "minilm"'):
        find_backbone(name)
    assert hub.asked == []


def test_pickle_alone_is_refused_before_it_is_fetched(hub: LocalHub, saved: Path) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    del files["model.safetensors"]
    hub.add(REPO, files | {"pytorch_model.bin": b"\x80\x02."})
    with pytest.raises(RefusedError, match="pickle is never read"):
        find_backbone(REPO)
    assert not [line for line in hub.asked if "resolve" in line]


@pytest.mark.parametrize("name", ["a/b/c", "a b", "x--y", "name.git", "", "https://hf.co/a/b"])
def test_no_hub_id(hub: LocalHub, name: str) -> None:
    with pytest.raises(SettingsError, match="nor a hub id"):
        find_backbone(name)
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["../../x", "/etc/passwd", "", "-x"])
def test_no_revision(hub: LocalHub, revision: str) -> None:
    with pytest.raises(SettingsError, match="a branch, a tag or a commit"):
        find_backbone(REPO, revision=revision)
    assert hub.asked == []


# --- broken off


@pytest.mark.parametrize("cut", ["short", "broken"])
def test_cut_off_and_tried_again(
    hub: LocalHub, cache: Path, saved: Path, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    commit = hub.add(REPO, saved)
    hub.faults[REPO] = Fault(cut=cut)
    with pytest.raises(EnvironmentProblem, match="run the same command again"):
        find_backbone(REPO)
    whole = (saved / "model.safetensors").stat().st_size
    assert not [path for path in cache.rglob("*") if path.name == "model.safetensors"]
    assert not [path for path in cache.rglob("*.incomplete") if path.stat().st_size == whole]
    with monkeypatch.context() as offline, pytest.raises(EnvironmentProblem):
        offline.setenv("HF_HUB_OFFLINE", "1")
        find_backbone(REPO)
    hub.faults.clear()
    found = find_backbone(REPO)
    assert found.revision == commit
    assert found.checksum == find_backbone(str(saved)).checksum


def test_full_disk(hub: LocalHub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", refuse)
    hub.add(REPO, saved)
    with pytest.raises(EnvironmentProblem, match="No space left on device"):
        find_backbone(REPO)


def test_damaged_in_the_cache(hub: LocalHub, saved: Path) -> None:
    hub.add(REPO, saved)
    file = find_backbone(REPO).folder / "model.safetensors"
    whole = file.read_bytes()
    file.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RefusedError, match="sha256 must be") as caught:
        find_backbone(REPO)
    # The file of the snapshot is a link; the hub's library would make it again, to the same damaged content.
    assert f"delete {file.resolve()}, and" in str(caught.value)
    file.resolve().write_bytes(whole[:-1])
    with pytest.raises(DataError, match="damaged or cut off") as told:
        find_backbone(REPO)
    assert f"delete {file.resolve()} and" in str(told.value)
    file.resolve().unlink()
    assert find_backbone(REPO).folder / "model.safetensors" == file
    assert file.read_bytes() == whole


# --- unreachable and offline


def test_unreachable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = closed_port()
    monkeypatch.setenv("HF_ENDPOINT", url)
    started = time.monotonic()
    with pytest.raises(EnvironmentProblem, match="Connection refused") as caught:
        find_backbone(REPO)
    assert time.monotonic() - started < 10
    for part in (REPO, url, str(cache), *REMEDIES):
        assert part in str(caught.value)


def test_unreachable_but_cached(
    hub: LocalHub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(REPO, saved)
    find_backbone(REPO)
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    assert find_backbone(REPO).revision == commit
    assert find_backbone(REPO, revision=commit).revision == commit


def test_a_hub_that_does_not_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(EnvironmentProblem, match=r"timed out|timeout"):
            find_backbone(REPO)
    huggingface_hub.close_session()


@pytest.mark.parametrize("fault", [Fault(500), Fault(503), Fault(429), Fault(400), Fault(401)])
def test_a_failing_hub_is_as_good_as_none(hub: LocalHub, saved: Path, fault: Fault) -> None:
    commit = hub.add(REPO, saved)
    hub.faults[REPO] = fault
    with pytest.raises(EnvironmentProblem, match=f"status {fault.status}"):
        find_backbone(REPO)
    hub.faults.clear()
    find_backbone(REPO)
    hub.faults[REPO] = fault
    assert find_backbone(REPO).revision == commit


@pytest.mark.parametrize(
    "body", [b"<html>Log in</html>", b"[]", b"{}", b'{"id": "a", "sha": "../.."}']
)
def test_what_answers_is_no_hub(hub: LocalHub, body: bytes) -> None:
    hub.faults[REPO] = Fault(body=body)
    with pytest.raises(EnvironmentProblem, match="what answers there is not a hub") as caught:
        find_backbone(REPO)
    assert hub.url in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:80", "ftp://x", "http://", "http://x:99999", "http://[x"]
)
def test_endpoint_that_is_no_url(cache: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(SettingsError, match="HF_ENDPOINT"):
        find_backbone(REPO)


def test_password_in_the_endpoint_is_not_shown(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", closed_port().replace("//", "//me:secret@"))
    with pytest.raises(EnvironmentProblem, match=r"http://127\.0\.0\.1") as caught:
        find_backbone(REPO)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_brökén", "hf_a\u2028b"])
def test_token_that_cannot_be_sent_is_not_shown(
    hub: LocalHub, saved: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.add(REPO, saved)
    with pytest.raises(EnvironmentProblem, match="HF_TOKEN holds") as caught:
        find_backbone(REPO)
    assert "hf_" not in str(caught.value)


def test_offline(hub: LocalHub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add(REPO, saved)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentProblem, match="HF_HUB_OFFLINE is set") as caught:
        find_backbone(REPO)
    for part in (REPO, hub.url, *REMEDIES):
        assert part in str(caught.value)
    assert hub.asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    find_backbone(REPO)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_backbone(REPO).revision == commit
    assert find_backbone(REPO, revision=commit).revision == commit
    assert hub.asked == []
    with pytest.raises(EnvironmentProblem, match="revision v9"):
        find_backbone(REPO, revision="v9")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_partial_cache_is_not_taken_for_a_whole(
    hub: LocalHub, cache: Path, saved: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other programs leave it: single files, and no list of what there should be."""
    commit = hub.add(REPO, saved)
    found = find_backbone(REPO)
    for listing in cache.rglob("trees/*.json"):
        listing.unlink()
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    (found.folder / lost).unlink()
    with monkeypatch.context() as offline, pytest.raises(EnvironmentProblem):
        offline.setenv("HF_HUB_OFFLINE", "1")
        find_backbone(REPO)
    assert find_backbone(REPO, revision=commit).revision == commit
    assert (found.folder / lost).is_file()


# --- as a person has it: another process, its own environment

SCRIPT = """
import json, sys
from fleetune.backbone.load import find_backbone
from fleetune.errors import FleetuneError
try:
    found = find_backbone("someone/tiny")
    found.classifier(2, ["a", "b"])
    said = [0, found.revision]
except FleetuneError as error:
    said = [error.exit_code, str(error)]
find_backbone("minilm")
assert "sentence_transformers" not in sys.modules
print(json.dumps(said))
"""


@pytest.mark.slow
def test_in_processes_of_their_own(
    hub: LocalHub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(REPO, saved)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "filled" / "hub"))
    find_backbone(REPO)
    source = Path(__file__).resolve().parents[2] / "src"
    own = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(source)}
    settings = [
        {"HF_HOME": str(tmp_path / "empty"), "HF_ENDPOINT": hub.url},
        {"HF_HOME": str(tmp_path / "filled"), "HF_ENDPOINT": closed_port(), "HF_HUB_OFFLINE": "1"},
    ]
    running = [  # side by side, since most of their time goes into imports
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **own, **setting},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for setting in settings
    ]
    for process in running:
        said, noise = process.communicate(timeout=120)
        assert (process.returncode, noise) == (0, "")
        assert json.loads(said) == [0, commit]
