"""The tuned mode of Ray Serve: HAProxy takes the requests, and calls between processes are gRPC.

It is the default of ``gpt-task-serve serve``. ``RAY_SERVE_ENABLE_HA_PROXY=0`` turns it off: then
Ray's own proxy, which is Python, takes them, and calls go through Ray's actors (the plain mode).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
SCRIPT = "gpt-task-serve-haproxy"
TUNED = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    SWITCH: "1",
    # Otherwise Ray keeps back a thousand lines of the log about requests.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
}
"""For every process of Ray, beside ``RAY_SERVE_HAPROXY_BINARY_PATH``, which names `SCRIPT`."""

_FALLBACK_PORT = 8500  # Ray's default
_CHECK_S = 30.0


def is_wanted() -> bool:
    """Whether the operator has not turned the tuned mode off."""
    return os.environ.get(SWITCH, "1") == "1"


def script() -> Path:
    """Where `gpt_task_serve.haproxy` is installed as a program: beside this interpreter."""
    return Path(sys.executable).with_name(SCRIPT)


def why_not() -> str | None:
    """Why HAProxy cannot be run by this environment; None if it can."""
    if not script().exists():
        return f"there is no {script()}: install this version of gpt-task-serve again"
    try:
        done = subprocess.run(
            [script(), "-v"], capture_output=True, text=True, timeout=_CHECK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr or done.stdout).strip()
    return None if done.returncode == 0 else said or f"exit status {done.returncode}"


def variables(folder: Path) -> dict[str, str]:
    """The environment of a Ray on this machine that serves in the tuned mode.

    Args:
        folder: for HAProxy's files and sockets. Its path must be short: that of a socket in it may
            have a hundred characters, and Ray adds seventy.
    """
    return TUNED | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script()),
        # The word is what an orphaned HAProxy is known by (`gpt_task_serve.processes`).
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy-serve" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # Ray's proxy, to which HAProxy turns when there is no ingress. A second server on the
        # machine would share the port, and get the other's requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_from(_FALLBACK_PORT)),
        # As in the plain mode: what replicas log is seen where the server was started.
        "RAY_SERVE_LOG_TO_STDERR": "1",
        # For load balancers of others; HAProxy is told at once.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }


def _free_from(port: int) -> int:
    """The first port from this one on that nothing uses."""
    while True:
        with socket.socket() as trial:
            trial.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # ignores closed connections
            try:
                trial.bind(("", port))
            except OSError:
                port += 1
            else:
                return port
