"""A hub on this machine that answers `huggingface_hub` over real HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Access = Literal["open", "gated", "forbidden", "broken"]


@dataclass
class Hub:
    """Repositories by id, and what was asked for."""

    address: str
    repositories: dict[str, Path] = field(default_factory=dict)
    access: dict[str, Access] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """Names of files that are listed and fail to download."""
    downloads: Counter[str] = field(default_factory=Counter)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub without repositories, on a free port."""

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Handler.hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests' output is theirs."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            repository, kind, revision = found.groups()
            if (files := self._files(repository, revision)) is None:
                return
            listed = [self._entry(file) for file in files]
            siblings = [{"rfilename": file.name} for file in files]
            info = {"id": repository, "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(info if kind == "revision" else listed).encode())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository, revision, name = found.groups()
            if (files := self._files(repository, revision)) is None:
                return
            content = {file.name: file for file in files}.get(name)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif name in self.hub.gone:
                self._send(507, b"")  # a fault that the client does not try again for half a minute
            else:
                self._send_file(content)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _files(self, repository: str, revision: str) -> list[Path] | None:
        """The files of a repository, or None after a refusal in the hub's own manner."""
        match self.hub.access.get(repository, "open"):
            case "gated":
                self._send(401, b"", {"X-Error-Code": "GatedRepo"})
            case "forbidden":
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            case "broken":
                self._send(500, b"")
            case "open" if repository not in self.hub.repositories:
                self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            case "open" if revision not in ("main", COMMIT):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            case _:
                return sorted(self.hub.repositories[repository].iterdir())
        return None

    def _entry(self, file: Path) -> dict[str, Any]:
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid}

    def _send_file(self, file: Path) -> None:
        content = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if self.command == "GET":
            self.hub.downloads[file.name] += 1
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, headers)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        end = min(end, len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
