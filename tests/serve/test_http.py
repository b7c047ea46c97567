"""The server as its clients see it: a real one on a free port."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fleetune.serve import door
from fleetune.serve import http as serving
from fleetune.serve.door import is_local, listen
from fleetune.serve.http import ServeSettings, server
from fleetune.serve.models import Asked, Models
from fleetune.serve.waiting import WaitingRoom
from tests import runs

TEXTS = runs.texts(30, seed=31)
TOKEN = "a-token-of-some-length"
PLAIN = ServeSettings()


@pytest.fixture(scope="module")
def models(places: dict[str, Path]) -> Models:
    return Models(places, dtype="float64")


@contextmanager
def running(models: Models, settings: ServeSettings = PLAIN) -> Generator[int]:
    """The port of a server in a thread; it ends as by a signal."""
    listening = listen("127.0.0.1", 0)
    one = server(models, settings)
    thread = threading.Thread(target=one.run, args=([listening],))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        one.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(models: Models) -> Iterator[int]:
    with running(models) as found:
        yield found


def ask(
    port: int,
    method: str = "POST",
    path: str = "/predict",
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers. body: bytes as they are, anything else as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    connection.request(method, path, data, sent)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found, {k.lower(): v for k, v in answer.getheaders()}


def test_served_is_offline(port: int, models: Models) -> None:
    for name in models.names:
        texts = (
            [[a, b] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
            if models[name].pairs
            else TEXTS
        )
        status, found, _ = ask(port, body={"model": name, "texts": texts})
        second = TEXTS[::-1] if models[name].pairs else None
        expected = [p.as_json() for p in models[name].predict(TEXTS, second)]
        assert status == 200 and found["model"] == name and found["truncated"] == 0
        for one, other in zip(found["predictions"], expected, strict=True):
            assert one["label"] == other["label"]
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-9)


def test_many_at_once_each_get_their_own(port: int, models: Models) -> None:
    names = [name for name in models.names if not models[name].pairs]

    def one(i: int) -> tuple[str, list[str], Any]:
        texts = TEXTS[i % 7 : i % 7 + 1 + i % 5]
        return (
            names[i % len(names)],
            texts,
            ask(port, body={"model": names[i % len(names)], "texts": texts}),
        )

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(120)))
    for name, texts, (status, answer, _) in found:
        assert status == 200
        expected = [p.as_json() for p in models[name].predict(texts)]
        for mine, other in zip(answer["predictions"], expected, strict=True):
            assert mine["probabilities"] == pytest.approx(other["probabilities"], abs=1e-9)


def test_what_is_served_is_told(port: int, models: Models) -> None:
    status, found, _ = ask(port, "GET", "/models")
    assert status == 200 and [one["name"] for one in found] == models.names
    by_name = {one["name"]: one for one in found}
    assert by_name["pairs"]["texts"] == ["first", "second"]
    assert by_name["lora"]["labels"] == ["bad", "good"] and by_name["lora"]["method"] == "lora"
    assert by_name["targets"]["labels"] == []
    # Clients learn a folder's name, and not where it lies.
    assert {one["backbone"] for one in found} == {"tiny"}
    assert ask(port, "GET", "/health")[:2] == (200, {"status": "ok"})


def test_the_only_model_needs_no_name(places: dict[str, Path]) -> None:
    with running(Models({"one": places["lora"]})) as port:
        status, found, _ = ask(port, body={"texts": TEXTS[:2]})
    assert status == 200 and found["model"] == "one" and len(found["predictions"]) == 2


NESTED = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "must be JSON"),
        (b"{", 400, "must be JSON"),
        (b'{"texts": ["\xff"]}', 400, "must be UTF-8, but byte 12 is not"),
        (NESTED, 400, "must be JSON"),
        (b"1" * 5000, 400, "must be JSON"),
        ([], 422, "must be an object"),
        ({"texts": ["a"]}, 422, "model: must be one of head, bitfit"),
        ({"model": "lorra", "texts": ["a"]}, 404, 'did you mean "lora"?'),
        ({"model": 3, "texts": ["a"]}, 404, 'model "3" is not served'),
        ({"model": "lora"}, 422, "texts: must be a list of texts"),
        ({"model": "lora", "texts": []}, 422, "texts: must be a list of texts"),
        ({"model": "lora", "texts": "a"}, 422, "texts: must be a list of texts"),
        ({"model": "lora", "texts": ["a", 2]}, 422, "texts[1]: must be a text"),
        ({"model": "lora", "texts": ["a", " "]}, 422, "texts[1]: empty"),
        ({"model": "lora", "texts": ["\0"]}, 422, "texts[0]: a NUL character"),
        ({"model": "lora", "texts": ["\ud800"]}, 422, "texts[0]: half of a surrogate pair"),
        ({"model": "lora", "texts": ["a"] * 1001}, 422, "may have 1,000 texts"),
        ({"model": "lora", "texts": ["a" * 100_001]}, 422, "may have 100,000 characters"),
        ({"model": "lora", "text": ["a"]}, 422, 'text: unknown, did you mean "texts"?'),
        ({"model": "lora", "texts": [["a", "b"]]}, 422, "texts[0]: must be a text"),
        ({"model": "pairs", "texts": ["a"]}, 422, "must be two texts, first and second"),
        ({"model": "pairs", "texts": [["a", ""]]}, 422, "texts[0][1]: empty"),
        ({"model": "pairs", "texts": [["a", "b", "c"]]}, 422, "must be two texts"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_wrong(port: int, body: Any, status: int, says: str) -> None:
    found, answer, _ = ask(port, body=body)
    assert (found, list(answer)) == (status, ["error"])
    assert says in answer["error"]
    assert len(answer["error"]) < 2000


def test_other_paths_methods_and_types(port: int) -> None:
    for method, path, expected in (("GET", "/nothing", 404), ("GET", "/predict", 405)):
        status, found, _ = ask(port, method, path)
        assert status == expected
        assert f"{method} {path} is not answered here" in found["error"]
        assert "POST /predict" in found["error"]
    status, found, _ = ask(port, body={"texts": ["a"]}, headers={"Content-Type": "text/plain"})
    assert status == 415 and "application/json" in found["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit(port: int, chunked: bool) -> None:
    """Told by its length or not; one byte more than may be."""
    piece = b" " * 65536
    pieces = [piece] * (serving.MOST_BYTES // len(piece)) + [b" "]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    if not chunked:
        headers["Content-Length"] = str(sum(map(len, pieces)))
    connection.request("POST", "/predict", iter(pieces), headers, encode_chunked=chunked)
    answer = connection.getresponse()
    assert answer.status == 413 and b"4,194,304 bytes" in answer.read()
    connection.close()
    assert ask(port, "GET", "/health")[0] == 200


# -- who may come in ------------------------------------------------------------------------------


def test_a_token_is_asked_for(models: Models) -> None:
    body = {"model": "lora", "texts": ["w1"]}
    with running(models, ServeSettings(token=TOKEN)) as port:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            status, found, headers = ask(port, body=body, headers=given)
            assert status == 401 and headers["www-authenticate"] == "Bearer"
            assert TOKEN not in json.dumps(found)
        assert ask(port, "GET", "/models")[0] == 401
        # A URL that is put together of these has another path.
        for host in ("localhost:1/health?", "localhost/health?", "localhost/health#"):
            assert ask(port, "GET", "/models", headers={"Host": host})[0] == 401
        assert ask(port, "GET", "/health")[0] == 200
        assert ask(port, body=body, headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200


def test_a_foreign_host_is_refused(models: Models) -> None:
    """A page whose name was made to lead here could ask otherwise."""
    with running(models, ServeSettings(hosts=("localhost", "127.0.0.1"))) as port:
        assert ask(port, "GET", "/models")[0] == 200
        assert ask(port, "GET", "/models", headers={"Host": f"LOCALHOST:{port}"})[0] == 200
        forged = (
            "localhost:1/models?",
            "localhost/models",
            "localhost:1@evil.example",
            "[localhost]",
        )
        for host in ("evil.example", "localhost.evil.example", "", *forged):
            assert ask(port, "GET", "/models", headers={"Host": host})[0] == 421


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_which_addresses_are_local(host: str, local: bool) -> None:
    assert is_local(host) == local


# -- under load -----------------------------------------------------------------------------------


@contextmanager
def held(models: Models, monkeypatch: pytest.MonkeyPatch) -> Generator[threading.Event]:
    """Models that answer only when the event is set."""
    go = threading.Event()
    answer = models.answer

    def answer_then(asked: list[Asked]) -> Any:
        assert go.wait(60)
        return answer(asked)

    monkeypatch.setattr(models, "answer", answer_then)
    try:
        yield go
    finally:
        go.set()


def test_too_many_are_told_to_come_again(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is computed and four wait; what was taken is answered."""
    body = {"model": "lora", "texts": ["w1"]}
    with (
        held(models, monkeypatch) as go,
        running(models, ServeSettings(most_waiting=4)) as port,
        ThreadPoolExecutor(16) as pool,
    ):
        first = pool.submit(ask, port, body=body)
        time.sleep(0.5)
        others = [pool.submit(ask, port, body=body) for _ in range(12)]
        # Those that wait will not end before they may.
        refused = wait(others, timeout=2).done
        go.set()
        found = [one.result() for one in (first, *others)]
    assert [status for status, _, _ in found].count(200) == 5
    assert len(refused) == 8
    for one in refused:
        status, answer, headers = one.result()
        assert (status, headers["retry-after"]) == (503, "1") and "come again" in answer["error"]


def test_a_late_answer_is_told(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "lora", "texts": ["w1"]}
    with held(models, monkeypatch) as go, running(models, ServeSettings(seconds=0.3)) as port:
        status, found, _ = ask(port, body=body)
        assert status == 504 and "0.3 s" in found["error"]
        go.set()
        assert ask(port, body=body)[0] == 200


def test_who_has_gone_away_takes_no_place(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two were told that they had waited too long while one was computed: nobody waits then, and the next are taken."""
    body = {"model": "lora", "texts": ["w1"]}
    with (
        held(models, monkeypatch) as go,
        running(models, ServeSettings(most_waiting=2, seconds=3.0)) as port,
        ThreadPoolExecutor(3) as pool,
    ):
        asked = [pool.submit(ask, port, body=body)]
        time.sleep(1.0)
        asked += [pool.submit(ask, port, body=body) for _ in range(2)]
        assert [one.result()[0] for one in asked] == [504] * 3
        threading.Timer(0.3, go.set).start()
        assert ask(port, body=body)[0] == 200


def test_what_nobody_waits_for_is_not_computed(models: Models) -> None:
    async def next_turn() -> list[Asked]:
        room = WaitingRoom(models, 4)
        asking = [asyncio.create_task(room.ask(Asked("lora", [t]))) for t in ("w1", "w2")]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
        turn = room._turn()
        asking[1].cancel()
        return [one.asked for one in turn]

    assert asyncio.run(next_turn()) == [Asked("lora", ["w2"])]


def test_what_is_in_flight_is_finished(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "lora", "texts": ["w1"]}
    with held(models, monkeypatch) as go, ThreadPoolExecutor(8) as pool:
        with running(models) as port:
            flying = [pool.submit(ask, port, body=body) for _ in range(6)]
            time.sleep(0.5)
            threading.Timer(0.5, go.set).start()
        assert [one.result()[0] for one in flying] == [200] * 6
        with pytest.raises(OSError):
            ask(port, "GET", "/health")


def test_an_error_of_ours_ends_one_request(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(models) as port:
        with monkeypatch.context() as broken:
            broken.setattr(models, "answer", lambda asked: [][0])
            status, found, _ = ask(port, body={"model": "lora", "texts": ["w1"]})
            assert status == 500 and found["error"].startswith("IndexError")
        assert ask(port, body={"model": "lora", "texts": ["w1"]})[0] == 200


def test_a_request_that_cannot_be_computed_spoils_no_other(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its turn are answered, and so is the next one that comes on its own connection."""
    answer = models.answer

    def fails(asked: list[Asked]) -> Any:
        if any("poison" in text for one in asked for text in one.first):
            raise IndexError("index out of range in self")
        return answer(asked)

    with running(models) as port:
        body = {"model": "lora", "texts": ["w1"]}
        alone = ask(port, body=body)[1]
        with held(models, monkeypatch) as go, ThreadPoolExecutor(9) as many:
            first = many.submit(ask, port, body=body)
            time.sleep(0.3)  # while it is computed, the others wait together
            others = [many.submit(ask, port, body=body) for _ in range(6)]
            bad = many.submit(ask, port, body={"model": "lora", "texts": ["poison"]})
            time.sleep(0.3)
            monkeypatch.setattr(models, "answer", fails)
            go.set()
            assert bad.result()[0] == 500 and first.result()[0] == 200
            for one in others:
                status, found, _ = one.result()
                assert status == 200
                assert found["predictions"][0]["probabilities"] == pytest.approx(
                    alone["predictions"][0]["probabilities"], abs=1e-9
                )
        monkeypatch.setattr(models, "answer", fails)
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for text, status in (("poison", 500), ("w1", 200)):
            data = json.dumps({"model": "lora", "texts": [text]})
            kept.request("POST", "/predict", data, {"Content-Type": "application/json"})
            said = kept.getresponse()
            assert said.status == status and said.getheader("connection") != "close"
            said.read()
        kept.close()


def test_who_does_not_take_the_answer_is_let_go(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests without end on a connection whose answers nobody reads; who reads slowly is served to the end."""
    monkeypatch.setattr(door, "PATIENCE", 1.0)
    with running(models) as port:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.settimeout(0.2)
        end = time.monotonic() + 30
        with pytest.raises(
            ConnectionError
        ):  # ended by the other side, and not by closing in good order
            while time.monotonic() < end:
                with suppress(TimeoutError):
                    deaf.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        deaf.close()
        assert ask(port, "GET", "/health")[0] == 200


def test_connections_have_a_limit(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_CONNECTIONS", 3)
    with running(models) as port:
        kept = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(3)]
        for one in kept:
            one.request("GET", "/health")
            assert one.getresponse().read()
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(port, "GET", "/health")
        kept[0].close()
        time.sleep(0.2)
        assert ask(port, "GET", "/health")[0] == 200
        for one in kept[1:]:
            one.close()


def test_slow_senders_are_let_go(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a head, a head without its body, nothing at all; others are served meanwhile."""
    monkeypatch.setattr(serving, "PATIENCE", 1.0)
    monkeypatch.setattr(door, "PATIENCE", 1.0)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with running(models) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(30)]
        for i, one in enumerate(slow):
            one.sendall((b"", b"GET /hea", head)[i % 3])
        assert ask(port, body={"model": "lora", "texts": ["w1"]})[0] == 200
        for i, one in enumerate(slow):
            said = b""
            while part := one.recv(4096):
                said += part
                if b"within" in said:
                    break
            assert (b" 408 " in said) == (i % 3 == 2)
            one.close()


@pytest.mark.parametrize("token", [None, TOKEN], ids=["late", "refused"])
def test_who_has_an_answer_and_goes_on_sending_is_let_go(
    models: Models, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """A byte now and then would else hold the connection for ever; 401 comes before any of the body is read."""
    monkeypatch.setattr(serving, "PATIENCE", 1.0)
    monkeypatch.setattr(door, "PATIENCE", 1.0)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n{"
    with running(models, ServeSettings(token=token)) as port:
        one = socket.create_connection(("127.0.0.1", port), timeout=20)
        one.sendall(head)
        said = one.recv(4096)
        assert (b" 408 " if token is None else b" 401 ") in said
        end = time.monotonic() + 20
        with pytest.raises(OSError):  # the other end is closed
            while time.monotonic() < end:
                one.sendall(b" ")
                time.sleep(0.2)
        one.close()


def test_bodies_that_are_coming_have_a_limit_together(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many send at once, memory is bounded; when they are done there is room again."""
    held: list[Any] = []

    class Coming(serving._Coming):
        def __init__(self) -> None:
            super().__init__()
            held.append(self)

    monkeypatch.setattr(serving, "_Coming", Coming)
    monkeypatch.setattr(serving, "MOST_COMING", 300_000)
    length = 200_000
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    with running(models) as port:
        first = socket.create_connection(("127.0.0.1", port), timeout=20)
        first.sendall(head.encode() + b" " * (length - 1))
        end = time.monotonic() + 20
        while held[0]._bytes < length - 1:  # else the first may be the one that is too much
            assert time.monotonic() < end
            time.sleep(0.01)
        status, found, headers = ask(port, body=b" " * length)
        assert status == 503 and "come again" in found["error"] and headers["retry-after"] == "1"
        first.sendall(b" ")
        assert b" 400 " in first.recv(4096)  # spaces are no JSON
        first.close()
        assert ask(port, body=b" " * length)[0] == 400
