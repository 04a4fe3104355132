"""A server on loopback that speaks the hub's protocol over plain HTTP, as far as fetching a model needs it."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

MAIN = "a" * 40  # the commit of every repository's main branch


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str = MAIN
    tags: tuple[str, ...] = ("main",)
    gated: bool = False  # listed for all, read by none
    private: bool = False
    cut: dict[str, int] = field(default_factory=dict)  # path -> bytes after which the connection breaks, once
    corrupt: set[str] = field(default_factory=set)  # paths whose contents arrive altered
    failing: bool = False  # every request is answered with status 503
    busy: dict[str, int] = field(default_factory=dict)  # path -> requests for it that are answered so
    ranges: bool = True  # whether a part of a file can be asked for
    unlisted: set[str] = field(default_factory=set)  # "size", "blobId", "lfs": what the hub lists of no file
    slow: float = 0.0  # seconds that each 100 kB of a large file take
    held: int | None = None  # bytes of a large file after which the rest only drips

    def large(self, path: str) -> bool:
        return path.endswith((".safetensors", ".bin", ".ckpt", ".onnx"))

    def blob_id(self, path: str) -> str:
        """The digest that git gives the file, or the pointer that stands for it."""
        if not self.large(path):
            return self.etag(path)
        size = len(self.files[path])
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.etag(path)}\nsize {size}\n"
        return hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode(), usedforsecurity=False).hexdigest()

    def etag(self, path: str) -> str:
        data = self.files[path]
        if self.large(path):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class HubServer:
    """`with HubServer({"owner/name": Repository(...)}) as hub:` serves at `hub.url`; `hub.log` holds the requests."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.log: list[tuple[str, str, str | None]] = []  # method, path, range
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def is_the_hub(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Lets huggingface_hub, which is online, speak to this server, and keep files in `cache`."""
        settings: dict[str, Any] = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)

    def fetched(self) -> list[str]:
        """The paths whose contents were asked for, each once, sorted."""
        return sorted(
            {path.split("/resolve/")[1].split("/", 1)[1] for method, path, _ in self.log if "/resolve/" in path}
        )


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server_hub.log.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repository = self.server_hub.repositories.get(f"{owner}/{name}")
        if self.headers.get("Authorization") == "Bearer wrong":
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        if repository is None or repository.private:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if repository.failing:
            return self._refuse(503, None, "unavailable")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in (repository.commit, *repository.tags):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api and rest[:1] == ["tree"]:
            return self._answer(200, json.dumps(_tree(repository)).encode())
        if api:
            return self._answer(200, json.dumps(_info(f"{owner}/{name}", repository)).encode())
        return self._file(repository, "/".join(rest[2:]))

    def _file(self, repository: Repository, path: str) -> None:
        if repository.gated:
            return self._refuse(401, "GatedRepo", "Access to this model is restricted")
        if path not in repository.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if self.command == "GET" and repository.busy.get(path):
            repository.busy[path] -= 1
            return self._refuse(503, None, "busy")
        data = repository.files[path]
        if path in repository.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        headers = {"ETag": f'"{repository.etag(path)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if repository.large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        status, start = 200, 0
        if repository.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = repository.cut.pop(path, None) if self.command == "GET" else None
        slow, held = (repository.slow, repository.held) if repository.large(path) else (0.0, None)
        self._answer(status, data[start:], headers, cut, slow, held)

    def _refuse(self, status: int, code: str | None, text: str) -> None:
        headers = {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})
        self._answer(status, json.dumps({"error": text}).encode(), headers)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        slow: float = 0.0,
        held: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            body = body[:cut]
            at_once = body if held is None else body[:held]
            step = 100_000 if slow else len(at_once) or 1
            try:
                for start in range(0, len(at_once), step):
                    self.wfile.write(at_once[start : start + step])
                    time.sleep(slow)
                for start in range(len(at_once), len(body), 1000):
                    self.wfile.write(body[start : start + 1000])
                    time.sleep(0.1)
            except ConnectionError:  # whoever asked has gone
                self.close_connection = True
        if cut is not None:
            self.close_connection = True


def _info(name: str, repository: Repository) -> dict[str, object]:
    siblings: list[dict[str, object]] = []
    for path, data in repository.files.items():
        entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": repository.blob_id(path)}
        if repository.large(path):
            entry["lfs"] = {"sha256": repository.etag(path), "size": len(data), "pointerSize": 134}
        siblings.append({key: value for key, value in entry.items() if key not in repository.unlisted})
    return {"_id": "1", "id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []}


def _tree(repository: Repository) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for folder in sorted({path.split("/")[0] for path in repository.files if "/" in path}):
        entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": folder})
    for path, data in repository.files.items():
        entry: dict[str, object] = {"type": "file", "oid": repository.etag(path)[:40], "size": len(data), "path": path}
        if repository.large(path):
            entry["lfs"] = {"oid": repository.etag(path), "size": len(data), "pointerSize": 134}
        if "lfs" in repository.unlisted:
            entry.pop("lfs", None)
        if "size" in repository.unlisted:
            entry["size"] = None
        entries.append(entry)
    return entries
