"""The HTTP API of the Hugging Face hub, as far as uploading and loading a model need it, in memory on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

READER, WRITER = "hf_reader", "hf_writer"


@dataclass
class Repository:
    """Files of the newest commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.commits}".encode()).hexdigest()


@dataclass
class StandIn:
    """What a test sees of the hub."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    user_agents: set[str] = field(default_factory=set)


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer_to_read(body=True)

    def do_HEAD(self) -> None:
        self._answer_to_read(body=False)

    def do_PUT(self) -> None:
        self.hub.stored[self.path.split("/")[-1]] = self._body()
        self._send(200, b"")

    def do_POST(self) -> None:
        body = self._body()
        self._note()
        if self._token() != WRITER:
            return self._refuse(401 if self._token() is None else 403, "no right to write")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False} for file in files]
            return self._json({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [
                {**item, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}} for item in objects
            ]
            return self._json({"transfer": "basic", "objects": actions})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            return self._commit(found[1], body)
        return self._refuse(404, "unknown")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.repositories:
            return self._json({"url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repositories[name] = Repository(private=bool(asked.get("private")))
        return self._json({"url": f"{self.hub.url}/{name}"})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                repository.files.pop(value["path"])
        repository.commits += 1
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{repository.sha}", "commitOid": repository.sha})

    def _answer_to_read(self, *, body: bool) -> None:
        self._note()
        api = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+)|/tree/[^?]+)?(?:\?.*)?", self.path)
        file = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[\w.-]+/(.+)", self.path)
        found = api or file
        name = found[1] if found else ""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self._token() not in (READER, WRITER)):
            return self._refuse(401 if self._token() is None else 404, "Repository not found", "RepoNotFound")
        if api and api[2] not in (None, "main", repository.sha):
            return self._refuse(404, "Revision not found", "RevisionNotFound")
        if api and "/tree/" in self.path:
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in repository.files.items()
            ]
            return self._json(tree)
        if api:
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            return self._json({"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings})
        assert file is not None
        data = repository.files.get(file[2])
        if data is None:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": repository.sha}
        return self._send(200, data, {**tag, "Content-Type": "application/octet-stream"}, body=body)

    def _note(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.user_agents.add(self.headers.get("user-agent", ""))

    def _token(self) -> str | None:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ") or None

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@contextmanager
def hub_stand_in() -> Iterator[StandIn]:
    """A hub without repositories; `READER` and `WRITER` are its tokens."""
    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def taken_for_the_hub(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[StandIn]:
    """The stand-in, which this process takes for the hub; no token is known, and the cache is in the folder."""
    with hub_stand_in() as running:
        patch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "no-token"))
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
        patch.delenv("HF_TOKEN", raising=False)
        yield running
