"""A hub of models on this machine, and a tiny model to put there, for tests.

    with LocalHub() as hub:
        commit = hub.add("someone/tiny", folder)
        ... os.environ["HF_ENDPOINT"] = hub.url ...
        hub.faults["someone/tiny"] = Fault(status=403)

Speaks what huggingface_hub asks: GET /api/models/ID[/revision/REV], GET
/api/models/ID/tree/REV, HEAD and GET /ID/resolve/REV/FILE, with the headers and error codes of the
real one (huggingface_hub 2.4.0, file_download.py and utils/_http.py).
Not covered: uploads, redirects to a CDN, Xet.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one model, until it is taken out of `LocalHub.faults` again."""

    status: int = 200
    """The status of every answer about it; 200: none is refused."""
    code: str | None = None
    """The header X-Error-Code of a refusal."""
    files_only: bool = False
    """Refuse the files and not what is known about them, as the real hub does for gated models."""
    body: bytes | None = None
    """Answer everything with this text and status 200, as a login page in between would."""
    cut: str | None = None
    """Send half of each safetensors file: "short" ends cleanly, "broken" promises the whole."""


@dataclass
class Model:
    """The files of each commit, and the commit of each branch and tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


class LocalHub:
    """The server, on a free port of 127.0.0.1; `asked` lists the requests so far."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.faults: dict[str, Fault] = {}
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repo: str, files: Path | dict[str, bytes], ref: str = "main") -> str:
        """Commit the files of a folder (or these) under `ref`; returns the commit."""
        if isinstance(files, Path):
            found = (path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        digest = hashlib.sha1(repo.encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        model = self.models.setdefault(repo, Model())
        model.commits[digest.hexdigest()] = files
        model.refs[ref] = digest.hexdigest()
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.tokens.append(self.headers.get("authorization"))
        path = unquote(urlsplit(self.path).path).strip("/")
        about = path.startswith("api/models/")
        repo, *rest = self._split(path.removeprefix("api/models/"))
        fault = self.hub.faults.get(repo, Fault())
        if fault.body is not None:
            return self._send(200, fault.body)
        if fault.status != 200 and not (about and fault.files_only):
            return self._send(fault.status, b"refused", {"X-Error-Code": fault.code})
        if repo not in self.hub.models:
            return self._send(404, b"no model", {"X-Error-Code": "RepoNotFound"})
        revision = rest[1] if len(rest) > 1 else "main"
        model = self.hub.models[repo]
        commit = model.refs.get(revision, revision)
        if commit not in model.commits:
            return self._send(404, b"no revision", {"X-Error-Code": "RevisionNotFound"})
        if not about:
            return self._send_file(model.commits[commit], commit, "/".join(rest[2:]), fault.cut)
        files = model.commits[commit]
        tree = [
            {"type": "file", "path": name, "size": len(held), "oid": hashlib.sha1(held).hexdigest()}
            for name, held in files.items()
        ]
        names = [{"rfilename": name} for name in files]
        info = {"id": repo, "modelId": repo, "sha": commit, "siblings": names, "tags": []}
        return self._send(200, json.dumps(tree if rest[:1] == ["tree"] else info).encode())

    def _split(self, path: str) -> list[str]:
        """[repo, verb, revision, the file's path ...]; an id has one or two parts."""
        parts = path.split("/")
        for verb in ("resolve", "revision", "tree"):
            if verb in parts:
                at = parts.index(verb)
                return ["/".join(parts[:at]), *parts[at:]]
        return [path]

    def _send_file(self, files: dict[str, bytes], commit: str, name: str, cut: str | None) -> None:
        if name not in files:
            return self._send(
                404, b"no file", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            )
        held = files[name]
        headers: dict[str, str | None] = {"X-Repo-Commit": commit}
        headers["ETag"] = f'"{hashlib.sha1(held).hexdigest()}"'
        if name.endswith(".safetensors"):  # large files: known by their sha256
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(held).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(held))
            if cut is not None and self.command == "GET":
                half = held[: len(held) // 2]
                self.close_connection = True
                promised = len(held) if cut == "broken" else len(half)
                return self._send(200, half, headers | {"Content-Length": str(promised)})
        return self._send(200, held, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str | None] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def save_tiny(folder: Path, **settings: Any) -> Path:
    """A random BERT of two layers and its tokenizer, saved as transformers saves them."""
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 100,
    }
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 40}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(**(sizes | settings))).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(96))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    ).save_pretrained(folder)
    return folder
