"""A real server for a measurement, in its own processes and on a free port."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from gpt_task_serve import tuned

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO: dict[str, Any] = {
    "id": "demo",
    "source": "./demo/model",
    "dtype": "float32",
    "device": "cpu",
}
"""How the demo model is served, to be extended."""
DEMO_DEPLOYMENT = "Model:demo:float32"
APPLICATION = "serve_app.app:build"
TUNED = {
    **tuned.TUNED,
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(tuned.script()),
    # Otherwise each stop of a server takes half a minute.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
"""The environment of the tuned mode (docs/operations.md)."""

# Ports of Ray's proxy behind HAProxy; they are fixed, and two servers would share them.
_OTHER_PORTS = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT")
_START_TIMEOUT_S = 900.0  # vLLM compiles the model when it first starts
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.1
_LOG = "server.log"
_SESSION = "--session_dir="
_LOG_TIME = "%Y-%m-%d %H:%M:%S,%f"
_STARTED = re.compile(
    r"\S+ (?P<when>\S+ \S+) .*deployment='(?P<deployment>[^']+)'.* started successfully .*"
    r"\(PID: (?P<pid>\d+)\)"
)


class NotReadyError(RuntimeError):
    """A server did not start; the message has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that runs. ``log`` is what it and its replicas wrote."""

    address: str
    process: psutil.Process
    log: Path

    def processes(self) -> list[psutil.Process]:
        """The command's process and all that it has started."""
        return [self.process, *self.process.children(recursive=True)]

    def starts(self, deployment: str) -> list[tuple[float, int]]:
        """When Serve's controller had each replica of a deployment running, and its process.

        From the controller's log; the times are those of `time.time`, to a millisecond.
        """
        found = []
        for log in (self._session() / "logs" / "serve").glob("controller_*.log"):
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                started = _STARTED.match(line)
                if started and started["deployment"] == deployment:
                    when = datetime.strptime(started["when"], _LOG_TIME).timestamp()
                    found.append((when, int(started["pid"])))
        return sorted(found)

    def _session(self) -> Path:
        """The folder of Ray's session, which its raylet is told."""
        for process in self.processes():
            for argument in process.cmdline():
                if argument.startswith(_SESSION):
                    return Path(argument.removeprefix(_SESSION))
        raise RuntimeError("no process of this server is a raylet")

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas that have started.

        A name that ends with a colon stands for all deployments whose names begin with it.
        """
        title = f"ray::ServeReplica:default:{deployment}"
        return [
            one
            for one in self.processes()
            if (found := _title(one)) == title or (title[-1] == ":" and found.startswith(title))
        ]


def _title(process: psutil.Process) -> str:
    """What a process calls itself; a replica that starts or is asked something adds the method."""
    try:
        return "".join(process.cmdline()[:1])
    except psutil.Error:  # it has gone meanwhile
        return ""


@contextmanager
def serving(
    args: Mapping[str, Any],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    deployments: Sequence[Mapping[str, Any]] = (),
    import_path: str = APPLICATION,
) -> Iterator[Server]:
    """Serve an application of Ray Serve by ``serve run`` until the body ends.

    Args:
        args: of the application, for this project's own see `serve_app.config.app_args`.
        folder: where the configuration and the log are written; None takes a temporary one.
        environment: variables beside those of this process.
        deployments: Ray's own settings of deployments, over ours.
        import_path: of the application.

    Raises:
        NotReadyError: it did not start.
    """
    if folder is None:
        with (
            tempfile.TemporaryDirectory(prefix="benchmark-") as made,
            serving(args, Path(made), environment, deployments, import_path) as server,
        ):
            yield server
        return
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
    """A port of this machine on which nothing listens.

    Not one of those that Linux gives to whoever asks for any, nor of those of Ray's workers: before
    the server listens on it, a process that it starts could have it.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
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
                pass  # nothing listens yet
            time.sleep(_POLL_S)
    raise NotReadyError(f"the server did not become ready; {log_tail(server.log.parent)}")


def log_tail(folder: Path) -> str:
    """The end of the log of the server that has last run with this folder."""
    text = (folder / _LOG).read_text(encoding="utf-8", errors="replace")
    return f"its log ends with:\n{text[-10_000:]}"
