"""`python -m serve_app.ready`: says when the server answers."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.app_args import REPOSITORY
from serve_app.protocol.failures import NotReady
from serve_app.ready import address_of, main


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"host": "0.0.0.0", "port": 81}, "http://127.0.0.1:81"),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:8000"),
        (None, "http://127.0.0.1:8000"),
    ],
)
def test_the_address(options: dict[str, object] | None, address: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"http_options": options}), encoding="utf-8")
    assert address_of(path) == address


def test_it_reports_that_the_server_is_ready(address: str, tmp_path: Path) -> None:
    port = int(address.rsplit(":", 1)[1])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"http_options": {"port": port}}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.ready", path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"ready: {address}\n"


class _Starting(BaseHTTPRequestHandler):
    """A server that starts: first only Ray's proxy answers, then ours."""

    said: Iterator[tuple[int, str]]

    def do_GET(self) -> None:
        status, text = next(self.said)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


def test_each_reason_is_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        (503, json.dumps(NotReady(text).to_dict())) for text in ("a: starts", "a: too large")
    )
    _Starting.said = iter([(404, "Path '/health' not found"), first, first, second, (200, "{}")])
    monkeypatch.setattr("serve_app.ready.POLL_S", 0.01)
    with HTTPServer(("127.0.0.1", 0), _Starting) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"http_options": {"port": server.server_port}}))
        monkeypatch.setattr("sys.argv", ["ready", str(path)])
        main()
        server.shutdown()
        serving.join()
    assert capsys.readouterr().out.splitlines() == [
        "not ready: a: starts",
        "not ready: a: too large",
        f"ready: http://127.0.0.1:{server.server_port}",
    ]
