"""A real server for a measurement, in processes of its own, on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.config.app_args import REPOSITORY

DEMO: dict[str, Any] = {
    "id": "demo",
    "source": "./demo/model",
    "dtype": "float32",
    "device": "cpu",
}
"""How the demo model is served, to be extended."""
TUNED = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # so that the server ends soon
}
"""The environment of the tuned mode (docs/operations.md)."""
_OTHER_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
"""Ports that it opens beside the server's; they are fixed, and a second server would not start."""
DEPLOYMENT = "Model:demo:float32"
"""Its deployment."""

_START_TIMEOUT_S = 900.0  # vLLM compiles the model when it first starts
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.1
_LOG = "server.log"


class NotReadyError(RuntimeError):
    """A server did not start; the message has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that runs. ``log`` is what it and its replicas wrote."""

    address: str
    process: psutil.Process
    log: Path

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas that have started."""
        title = f"ray::ServeReplica:default:{deployment}"
        return [child for child in self.process.children(recursive=True) if _title(child) == title]


def _title(process: psutil.Process) -> str:
    """What a process calls itself; a replica that starts or is asked something adds the method."""
    try:
        return "".join(process.cmdline()[:1])
    except psutil.Error:  # it has gone meanwhile
        return ""


@contextmanager
def serving(
    args: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    deployments: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Server]:
    """Serve this project's application with these ``args`` (see `serve_app.config.app_args`).

    Args:
        args: of the application.
        folder: where the configuration and the log are written.
        environment: variables beside those of this process.
        deployments: Ray's own settings of deployments, over ours.

    Raises:
        NotReadyError: it did not start.
    """
    with serving_graph("serve_app.app:build", args, folder, environment, deployments) as server:
        yield server


@contextmanager
def serving_graph(
    import_path: str,
    args: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    deployments: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Server]:
    """Serve an application of Ray Serve until the body ends. Arguments as those of `serving`."""
    port = free_port()
    application = {
        "name": "default",
        "route_prefix": "/",
        "import_path": import_path,
        "args": dict(args),
        "deployments": [dict(deployment) for deployment in deployments],
    }
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("serve")), "run", str(file)]
    with running(command, port, folder, environment) as server:
        yield server


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run a server that answers ``GET /health`` on a port when it is ready, until the body ends.

    It runs in the repository. What it leaves behind of its process group is ended with it.

    Raises:
        NotReadyError: it did not start.
    """
    log = folder / _LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ
            | {"PYTHONPATH": str(REPOSITORY)}
            | {name: str(free_port()) for name in _OTHER_PORTS}
            | dict(environment or {}),
        )
    server = Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid), log)
    try:
        _wait_until_ready(process, server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):  # nothing is left of it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], server: Server) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    with httpx.Client(base_url=server.address, timeout=10) as http:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # nobody listens yet
            time.sleep(_POLL_S)
    raise NotReadyError(f"the server did not become ready; {log_tail(server.log.parent)}")


def log_tail(folder: Path) -> str:
    """The end of the log of the server that has last run with this folder."""
    text = (folder / _LOG).read_text(encoding="utf-8", errors="replace")
    return f"its log ends with:\n{text[-10_000:]}"
