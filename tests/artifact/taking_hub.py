"""A hub on this machine that takes what is pushed: the calls of huggingface_hub's create_repo and create_commit.

Weights come as large files (LFS, plain transfer), the others within the commit. Every request is kept with its token.
"""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_secretsecretsecretsecretsecret0001"
COMMIT = "c" * 40


@dataclass
class Repository:
    """What was pushed."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    message: str = ""


class TakingHub:
    """The server; use it as a context manager. status: what every request is answered with, where it is not 200."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.asked: list[str] = []
        self.status = 200
        self.yaml: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self) -> TakingHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: TakingHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._begin()
        name = path.removeprefix("/api/models/").split("/revision/")[0]
        if name in self.hub.repositories:
            info = {"id": name, "private": self.hub.repositories[name].private, "sha": COMMIT}
            return self._json({**info, "siblings": [], "tags": []})
        self._json({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        path = self._begin()
        self.hub.large[path.rpartition("/")[2]] = self._body
        self._json({})

    def do_POST(self) -> None:
        path = self._begin()
        if self.hub.status != 200:
            return self._json({"error": "refused"}, self.hub.status)
        given = self._body
        if path == "/api/repos/create":
            return self._create(json.loads(given))
        if path == "/api/validate-yaml":
            self.hub.yaml.append(json.loads(given)["content"])
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = json.loads(given)["files"]
            modes = {True: "lfs", False: "regular"}
            told = [
                {
                    "path": f["path"],
                    "uploadMode": modes[f["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for f in files
            ]
            return self._json({"files": told})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **o,
                    "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}", "header": {}}},
                }
                for o in json.loads(given)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            return self._commit(path.removeprefix("/api/models/").split("/commit/")[0], given)
        self._json({"error": path}, 404)

    def _create(self, given: dict[str, Any]) -> None:
        name = f"{given['organization']}/{given['name']}"
        if name in self.hub.repositories:
            return self._json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        private = given.get("private") or given.get("visibility") == "private"
        self.hub.repositories[name] = Repository(bool(private))
        self._json({"url": f"{self.hub.url}/{name}", "id": "1", "name": name})

    def _commit(self, name: str, given: bytes) -> None:
        repository = self.hub.repositories[name]
        for line in given.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repository.message = value["summary"]
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.large[value["oid"]]
        url = f"{self.hub.url}/{name}/commit/{COMMIT}"
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def _begin(self) -> str:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("authorization"))
        self._body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return path

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
