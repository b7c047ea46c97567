"""`fleetune serve`: saved models over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fleetune.cli.options import Device, Dtype, out, say
from fleetune.errors import (
    DataError,
    EnvironmentProblem,
    RefusedError,
    SettingsError,
    counted,
)

TOKEN = "FLEETUNE_SERVE_TOKEN"
_SHORTEST = 16


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Trials' folders, those of export --format hf, or runs (their winners). A model is called as its folder, or as "
            "NAME of NAME=FOLDER.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on. One that others reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the token that requests must bring (Authorization: Bearer TOKEN). Default: ${TOKEN}."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that the Host header may have; again for more. Default: this machine's own names where only it can "
            "reach the address, any name elsewhere."
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; one more gets 503.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a request is answered, or gets 504.")
    ] = 30.0,
    dtype: Dtype = None,
    device: Device = "cpu",
) -> None:
    """Answer requests over HTTP: POST /predict, GET /models, GET /health. Models on one backbone share it.

    Prints the address when it listens. SIGTERM and Ctrl-C end it after what is in flight.

    Example: fleetune serve runs/reviews
    Example: fleetune serve tone=runs/reviews topic=runs/tickets/trials/lora-r8-s42 --port 9000
    """
    token = _token(token_file)
    try:
        from fleetune.serve import door, http
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11"):
            raise
        raise EnvironmentProblem(
            f"serve needs the package {error.name}, which is not installed; pip install 'fleetune[serve]'"
        ) from None
    from fleetune.serve.models import Models, named

    host = host.removeprefix("[").removesuffix("]")  # as a URL writes an IPv6 address
    local = door.is_local(host)
    if token is None and not local:
        raise RefusedError(
            f"--host {host}: others reach it, so requests must bring a token; give --token-file, or listen on 127.0.0.1"
        )
    places = named(models)
    # An address that is taken is said before models are loaded.
    listening = door.listen(host, port)
    opened = Models(places, dtype=dtype, device=device)
    hosts = allowed_host or (["localhost", "127.0.0.1", "::1", host] if local else [])
    settings = http.ServeSettings(
        token=token, hosts=hosts, most_waiting=max_waiting, seconds=timeout
    )
    say(
        f"{counted(len(opened), 'model')} on {counted(opened.backbones, 'backbone')}: {', '.join(opened.names)}; Ctrl-C ends it"
    )
    shown = f"[{host}]" if ":" in host else host
    out(f"http://{shown}:{listening.getsockname()[1]}", flush=True)
    http.server(opened, settings).run([listening])


def _token(file: Path | None) -> str | None:
    """The token, which stands in no command line: others on the machine can read those."""
    where, text = f"${TOKEN}", os.environ.get(TOKEN)
    if file is not None:
        where = str(file)
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                where, [f"unreadable: {getattr(error, 'strerror', None) or error}"]
            ) from None
    if text is None:
        return None
    token = text.strip()
    if len(token) < _SHORTEST or not (token.isascii() and token.isprintable()):
        rule = f"a token must have {_SHORTEST} printable ASCII characters or more"
        raise SettingsError(where, [f"{rule}; make one with: openssl rand -hex 16"])
    return token
