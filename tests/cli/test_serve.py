"""`fleetune serve`: what it refuses before it loads anything, and a whole life of it in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleetune.serve import http as serving
from fleetune.serve import models
from tests import runs
from tests.runs import Made, run_cli

TOKEN = "0123456789abcdef"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "Models", None)
    monkeypatch.delenv("FLEETUNE_SERVE_TOKEN", raising=False)


def test_others_need_a_token(unloaded: None, made: Made) -> None:
    found = run_cli("serve", made.run, "--host", "0.0.0.0")
    assert found.code == 6 and "--token-file" in found.err


@pytest.mark.parametrize("text", ["", "too-few-signs", "enough, but with an é"])
def test_a_token_must_be_one(unloaded: None, made: Made, tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8")
    found = run_cli("serve", made.run, "--token-file", tmp_path / "token")
    assert found.code == 2 and "16 printable ASCII characters" in found.err
    assert not text or text not in found.err


def test_a_token_file_that_is_not_there(unloaded: None, made: Made, tmp_path: Path) -> None:
    found = run_cli("serve", made.run, "--token-file", tmp_path / "token")
    assert found.code == 4 and "No such file" in found.err


def test_a_port_that_is_taken_is_said_at_once(unloaded: None, made: Made) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = run_cli("serve", made.run, "--port", port)
    assert found.code == 5 and f"port {port}" in found.err and "--port" in found.err


def test_a_host_that_is_none(unloaded: None, made: Made, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    words = ("serve", made.run, "--host", "nowhere.invalid", "--token-file", tmp_path / "token")
    found = run_cli(*words)
    assert found.code == 5 and "nowhere.invalid" in found.err


def test_two_models_of_one_name(unloaded: None, made: Made) -> None:
    found = run_cli("serve", made.run, f"{made.run}/")
    assert found.code == 2 and "give one NAME=FOLDER" in found.err


def test_the_server_has_the_settings_of_the_command(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[serving.ServeSettings] = []

    class Opened:
        names: tuple[str, ...] = ()
        backbones = 1

        def __init__(self, *_: object, **settings: object) -> None: ...
        def __len__(self) -> int:
            return 0

    class Server:
        def __init__(self, _: object, settings: serving.ServeSettings) -> None:
            given.append(settings)

        def run(self, sockets: list[socket.socket]) -> None:
            for one in sockets:
                one.close()

    monkeypatch.setattr(models, "Models", Opened)
    monkeypatch.setattr(serving, "server", Server)
    monkeypatch.delenv("FLEETUNE_SERVE_TOKEN", raising=False)
    words = ("serve", made.run, "--port", 0, "--max-waiting", 3, "--timeout", 7)
    assert run_cli(*words).code == run_cli(*words, "--allowed-host", "a.example").code == 0
    assert [(one.most_waiting, one.seconds) for one in given] == [(3, 7.0)] * 2
    # From a page in a browser a foreign name would lead here too.
    assert set(given[0].hosts) == {"localhost", "127.0.0.1", "::1"}
    assert list(given[1].hosts) == ["a.example"]


def test_what_is_no_model(made: Made, tmp_path: Path) -> None:
    found = run_cli("serve", tmp_path, "--port", 0)
    assert found.code == 2 and "neither a run nor a saved model" in found.err
    found = run_cli("serve", f"a={tmp_path / 'gone'}", "--port", 0)
    assert found.code == 2 and "does not exist" in found.err


@contextmanager
def ending(started: subprocess.Popen[str]) -> Generator[None]:
    """A process that does not outlive its test."""
    try:
        yield
    finally:
        started.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_serves_until_it_is_told_to_end(
    made: Made, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLEETUNE_SERVE_TOKEN": TOKEN}
    words = ["serve", f"tone={made.run}", str(made.run / "trials/bitfit-s1"), "--port", "0"]
    texts = runs.texts(5, seed=4)
    with (
        (tmp_path / "err").open("w") as err,
        subprocess.Popen(
            [sys.executable, "-m", "fleetune", *words],
            stdout=subprocess.PIPE, stderr=err, text=True, env=environment,
        ) as started,
        ending(started),
    ):  # fmt: skip
        assert started.stdout is not None
        address = started.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        connection.request(
            "POST", "/predict", json.dumps({"model": "tone", "texts": texts}), headers
        )
        answer = json.loads(connection.getresponse().read())
        # A connection that is kept open must not keep the process.
        started.send_signal(number)
        assert started.wait(60) == code
        connection.close()
    words = [word for text in texts for word in ("--text", text)]
    offline = json.loads(run_cli("predict", made.run, *words, "--json").out)
    for mine, other in zip(answer["predictions"], offline, strict=True):
        assert mine["label"] == other["label"]
        assert mine["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    said = (tmp_path / "err").read_text()
    assert "2 models on 1 backbone: tone, bitfit-s1" in said
    assert TOKEN not in said and texts[0] not in said and "Traceback" not in said
