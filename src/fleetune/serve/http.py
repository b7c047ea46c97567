"""Saved models over HTTP: texts in, labels and probabilities out, as JSON.

    GET  /health     {"status": "ok"}; asks for no token
    GET  /models     what is served, and what each model reads and says
    POST /predict    {"model": NAME, "texts": ["...", ...]}; of pairs [["...", "..."], ...]; without "model" where one is served

A request that is refused gets {"error": what is wrong and what to do}. Nothing of a request is kept or logged.
Needs starlette and uvicorn (BSD), the extra `serve`. Not here: TLS and several processes, which a proxy in front does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fleetune.artifact.card import base_name
from fleetune.data.formats import text_problem
from fleetune.errors import DataError, did_you_mean
from fleetune.serve.door import PATIENCE, Guard, Patient, error
from fleetune.serve.models import Asked, Models
from fleetune.serve.waiting import Full, WaitingRoom

MOST_BYTES = 4 << 20
"""Of a request's body."""
MOST_COMING = 128 << 20
"""Bytes of all bodies that are being received; one more is told to come again."""
MOST_TEXTS = 1000
"""Of a request."""
MOST_CHARACTERS = 100_000
"""Of a text: far more than any backbone here reads."""
DRAIN_SECONDS = 30
"""For what is in flight when the process is told to end."""
_KEYS = ("model", "texts")
_LOG = logging.getLogger("uvicorn.error")
# Problems of one kind; a body may hold a hundred thousand.
_MOST_TOLD = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How requests are treated."""

    token: str | None = None
    """What every request but /health must bring; None: nothing."""
    hosts: Sequence[str] = ()
    """Names that the Host header may have; none: any. A page in a browser could ask a local server by a name of its own."""
    most_waiting: int = 64
    """Requests that may wait; one more is told to come again."""
    seconds: float = 30.0
    """In which a request is answered, or told that it was not."""


def application(models: Models, settings: ServeSettings) -> Starlette:
    """The ASGI application."""
    room = WaitingRoom(models, settings.most_waiting)
    coming = _Coming()

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        working = asyncio.create_task(room.work())
        yield
        working.cancel()

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def listed(_request: Request) -> Response:
        return JSONResponse([_described(models, name) for name in models.names])

    async def predict(request: Request) -> Response:
        try:
            return await answered(request)
        except HTTPException:
            raise
        except Exception as unforeseen:  # let through, it would end the connection, and with it requests that wait there
            _LOG.exception("a request failed")
            return error(500, f"{type(unforeseen).__name__}; the server's log says more")

    async def answered(request: Request) -> Response:
        asked = _asked(await coming.body(request), models)
        try:
            async with asyncio.timeout(settings.seconds):
                answer = await room.ask(asked)
        except Full:
            raise HTTPException(
                503,
                f"{settings.most_waiting} requests are waiting; come again",
                {"Retry-After": "1"},
            ) from None
        except TimeoutError:
            raise HTTPException(
                504, f"not answered within {settings.seconds:g} s; send fewer texts, or come again"
            ) from None
        except DataError as error:
            raise HTTPException(500, "; ".join(error.problems)) from None
        said = [one.as_json() for one in answer.predictions]
        return JSONResponse(
            {"model": asked.model, "predictions": said, "truncated": answer.truncated}
        )

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/models", listed),
            Route("/predict", predict, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, token=settings.token, hosts=settings.hosts)],
        exception_handlers={HTTPException: _refused},
        lifespan=lifespan,
    )


def server(models: Models, settings: ServeSettings) -> uvicorn.Server:
    """A server whose `run([socket])` answers until a signal, or `should_exit`, ends it after what is in flight."""
    config = uvicorn.Config(
        application(models, settings),
        http=Patient,
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return uvicorn.Server(config)


# -- what comes in --------------------------------------------------------------------------------


class _Coming:
    """The bodies that are being received."""

    def __init__(self) -> None:
        self._bytes = 0

    async def body(self, request: Request) -> Any:
        """The JSON of a request, read to its limits; HTTPException says which was passed."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "the body must be JSON; send Content-Type: application/json")
        body = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                async for chunk in request.stream():
                    body += chunk
                    self._bytes += len(chunk)
                    if len(body) > MOST_BYTES:
                        rule = _rule("a body", "bytes", MOST_BYTES, "send fewer texts")
                        raise HTTPException(413, rule)
                    if self._bytes > MOST_COMING:
                        wait = {"Retry-After": "1"}
                        raise HTTPException(503, "too much is being sent; come again", wait)
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {PATIENCE:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection ended within the body") from None
        finally:
            self._bytes -= len(body)
        return _json(body)


def _json(body: bytearray) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"the body must be UTF-8, but byte {error.start} is not") from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body must be JSON: {error}") from None


def _asked(body: Any, models: Models) -> Asked:
    """What a request asks; HTTPException names all that is wrong with it."""
    if not isinstance(body, dict):
        raise HTTPException(422, 'the body must be an object: {"texts": ["..."]}')
    name = _model(body, models)
    pairs = models[name].pairs
    unknown = [key for key in body if key not in _KEYS]
    problems = [f"{key}: unknown{did_you_mean(key[:100], _KEYS)}" for key in unknown[:_MOST_TOLD]]
    texts: Any = body.get("texts")
    if not isinstance(texts, list) or not texts:
        problems.append('texts: must be a list of texts, such as ["..."]')
    elif len(texts) > MOST_TEXTS:
        problems.append(f"texts: {_rule('a request', 'texts', MOST_TEXTS, 'send several')}")
    else:
        told = (_wrong(i, text, models[name].record.text_columns) for i, text in enumerate(texts))
        problems += islice((problem for problem in told if problem), _MOST_TOLD)
    if problems:
        raise HTTPException(422, "; ".join(problems))
    if pairs:
        return Asked(name, [a for a, _ in texts], [b for _, b in texts])
    return Asked(name, texts)


def _model(body: dict[str, Any], models: Models) -> str:
    name = body.get("model")
    if name is None and len(models) == 1:
        return models.names[0]
    if name is None:
        raise HTTPException(422, f"model: must be one of {', '.join(models.names)}")
    if not isinstance(name, str) or name not in models:
        name = str(name)[:100]
        raise HTTPException(404, f'model "{name}" is not served{did_you_mean(name, models.names)}')
    return name


def _wrong(i: int, text: Any, columns: Sequence[str]) -> str | None:
    """What is wrong with the i-th text, or pair of texts."""
    if len(columns) == 2:
        if not isinstance(text, list) or len(text) != 2:
            return f"texts[{i}]: must be two texts, {columns[0]} and {columns[1]}"
        found = (_wrong_text(f"texts[{i}][{k}]", one) for k, one in enumerate(text))
        return next((problem for problem in found if problem), None)
    return _wrong_text(f"texts[{i}]", text)


def _wrong_text(where: str, text: Any) -> str | None:
    if not isinstance(text, str):
        return f"{where}: must be a text"
    if len(text) > MOST_CHARACTERS:
        return f"{where}: {_rule('a text', 'characters', MOST_CHARACTERS, 'cut it')}"
    problem = text_problem(text)
    return f"{where}: {problem}" if problem else None


def _rule(what: str, unit: str, most: int, remedy: str) -> str:
    return f"{what} may have {most:,} {unit}; {remedy}"


# -- what goes out --------------------------------------------------------------------------------


def _described(models: Models, name: str) -> dict[str, Any]:
    record = models[name].record
    return {
        "name": name,
        "task": record.task,
        "texts": record.text_columns,
        "labels": [] if record.regression else record.label_names,
        "method": record.method,
        "backbone": base_name(record),
        "max_length": record.max_length,
    }


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, HTTPException)
    told = refusal.detail
    # Who finds no route has a phrase of the standard and no more.
    if told in (HTTPStatus.NOT_FOUND.phrase, HTTPStatus.METHOD_NOT_ALLOWED.phrase):
        asked = f"{request.method} {request.scope['path']}"
        told = f"{asked} is not answered here; there are GET /health, GET /models and POST /predict"
    return error(refusal.status_code, told, refusal.headers)
