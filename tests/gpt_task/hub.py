"""A hub of one model, as huggingface_hub asks it through a proxy."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves a directory as a repository of the hub, and records the requests."""

    def __init__(self, repository: str, directory: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in directory.iterdir()}
        self.files["model.bin"] = b"weights in a form that the engine does not read"
        self.repository = repository
        self.asked: list[str] = []
        self.port = 0

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """The server's side."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                path = urlsplit(self.path).path
                if path == f"/api/models/{hub.repository}/tree/{COMMIT}":
                    entries = [
                        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                        for name, content in hub.files.items()
                    ]
                    self._answer(200, json.dumps(entries).encode())
                elif path.startswith(f"/api/models/{hub.repository}") and "/tree/" not in path:
                    siblings = [{"rfilename": name} for name in hub.files]
                    info = {"id": hub.repository, "sha": COMMIT, "siblings": siblings}
                    self._answer(200, json.dumps(info).encode())
                elif path.startswith(f"/{hub.repository}/resolve/"):
                    name = path.split("/")[-1]
                    if name in hub.files:
                        self._answer(200, hub.files[name])
                    else:
                        self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                else:
                    self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

            do_HEAD = do_GET  # noqa: N815 - the standard library's name

            def _answer(
                self, status: int, body: bytes, headers: dict[str, str] | None = None
            ) -> None:
                self.send_response(status)
                etag = hashlib.sha256(body).hexdigest()
                for name, value in {
                    "X-Repo-Commit": COMMIT,
                    "ETag": f'"{etag}"',
                    "Content-Length": str(len(body)),
                    **(headers or {}),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Silence."""

        return Handler
