"""HAProxy as Ray starts it: what it listens on, and what becomes of an unknown configuration."""

import queue
import re
import socket
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from benchmarks.harness.server import free_port
from gpt_task_serve import serve, tuned
from gpt_task_serve.haproxy import UnknownListenerError, closed


def _written_by_ray(folder: Path, port: int) -> Path:
    """A configuration as Ray's manager writes it, for the server at that port of loopback."""
    backend = BackendConfig(
        name="default",
        path_prefix="/",
        app_name="default",
        servers=[ServerConfig(name="one", host="127.0.0.1", port=free_port())],
    )
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        is_head=True,
        has_received_routes=True,
        has_received_servers=True,
    )
    file = folder / "haproxy.cfg"
    api = HAProxyApi(cfg=config, backend_configs={"default": backend}, config_file_path=str(file))
    api._generate_config_file_internal()
    return file


def _listeners(process: psutil.Process) -> set[tuple[str, int]]:
    found = process.net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}


@contextmanager
def _running(file: Path) -> Iterator[psutil.Process]:
    """HAProxy with a configuration, as Ray starts it, once it listens."""
    command = [sys.executable, "-m", "gpt_task_serve.haproxy", "-db", "-f", str(file)]
    with subprocess.Popen(command) as started:
        try:
            haproxy = psutil.Process(started.pid)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not _listeners(haproxy):
                time.sleep(0.02)
            yield haproxy
        finally:
            started.kill()


def test_it_listens_where_the_server_does_and_nowhere_else(tmp_path: Path) -> None:
    port = free_port()
    file = _written_by_ray(tmp_path, port)
    assert len(re.findall(r"^\s+bind ", file.read_text(), re.MULTILINE)) == 3  # as Ray has it
    with _running(file) as haproxy:
        # Ray waits for an answer of the very process that it has started.
        assert haproxy.name() == "haproxy"
        assert _listeners(haproxy) == {("127.0.0.1", port)}
        assert httpx.get(f"http://127.0.0.1:{port}/-/routes").status_code == 200
        admin = tmp_path / "admin.sock"
        assert stat.S_IMODE(admin.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as asked:  # as Ray asks for its statistics
            asked.connect(str(admin))
            asked.sendall(b"show info\n")
            assert f"Pid: {haproxy.pid}".encode() in asked.recv(65536)


def test_a_client_that_leaves_is_noticed_behind_it(tmp_path: Path) -> None:
    port, clients = free_port(), 24
    file = _written_by_ray(tmp_path, port)
    (behind,) = re.findall(r"server one 127\.0\.0\.1:(\d+)", file.read_text())
    left: queue.Queue[None] = queue.Queue()

    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connection: socket.socket = self.request
            received = connection.recv(65536)
            while received.startswith(b"GET"):  # health checks
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                received = connection.recv(65536)
            if received:
                with suppress(ConnectionError):
                    while connection.recv(65536):
                        pass
                left.put(None)

    def leave(_: int) -> None:
        with suppress(httpx.TimeoutException):
            httpx.post(f"http://127.0.0.1:{port}/v1/tasks", content=b"{}", timeout=2.0)

    with socketserver.ThreadingTCPServer(("127.0.0.1", int(behind)), Silent) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with _running(file), ThreadPoolExecutor(clients) as pool:
                list(pool.map(leave, range(clients)))
                for _ in range(clients):
                    left.get(timeout=20)
        finally:
            server.shutdown()


def test_a_listener_that_is_not_known_is_refused(tmp_path: Path) -> None:
    text = _written_by_ray(tmp_path, free_port()).read_text()
    assert closed(closed(text)) == closed(text)
    with pytest.raises(UnknownListenerError, match=r"listen news: bind \*:1"):
        closed(f"{text}\nlisten news\n  bind *:1\n")


def _environment(
    monkeypatch: pytest.MonkeyPatch, folder: Path, **variables: str
) -> SimpleNamespace:
    """What the command sets, without changing that of the tests."""
    environ: dict[str, Any] = dict(variables)
    monkeypatch.setattr("gpt_task_serve.tuned.os", SimpleNamespace(environ=environ))
    monkeypatch.setattr("gpt_task_serve.serve.os", SimpleNamespace(environ=environ))
    with suppress(SystemExit):
        serve._set_environment(folder)
    return SimpleNamespace(**environ)


def test_the_tuned_mode_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = vars(_environment(monkeypatch, tmp_path))
    assert tuned.TUNED.items() <= found.items()
    assert found["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(tuned.script())


def test_the_operator_turns_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = vars(_environment(monkeypatch, tmp_path, RAY_SERVE_ENABLE_HA_PROXY="0"))
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED" not in found


def test_without_haproxy_it_is_off_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
    broken.chmod(0o755)
    for script, reason in ((broken, "no such library"), (tmp_path / "none", "there is no ")):
        monkeypatch.setattr("gpt_task_serve.tuned.script", lambda script=script: script)
        found = vars(_environment(monkeypatch, tmp_path, RAY_SERVE_ENABLE_HA_PROXY="1"))
        assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
        assert "RAY_SERVE_THROUGHPUT_OPTIMIZED" not in found
        (line,) = capsys.readouterr().out.splitlines()
        assert reason in line
        assert "plain mode" in line


def test_a_second_server_has_a_fallback_port_of_its_own(tmp_path: Path) -> None:
    name = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
    first = int(tuned.variables(tmp_path)[name])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert int(tuned.variables(tmp_path)[name]) > first
