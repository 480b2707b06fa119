"""One real server for all end-to-end tests: `serve run` on the committed configuration.

It runs in the tuned mode, as users' servers do. Tests that start servers of their own start them in
the plain mode, so that both are tested.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.harness.server import TUNED, free_port
from serve_app.config.app_args import REPOSITORY
from serve_app.ui import config as chat
from tests.engine.models.tiny_adapters import VISION, save_adapters
from tests.serve_app.replicas.images.image_host import IMAGES, ImageHost

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0

LINEARS = r".*language_model.*\.(q_proj|v_proj|down_proj)"
ADAPTERS: dict[str, dict[str, Any]] = {
    name: {"r": 4, "lora_alpha": 4, "target_modules": LINEARS} for name in ("one", "two")
}
"""Of the demo model, in its first variant."""


def _is_ready(health: httpx.Response) -> bool:
    return health.status_code == 200


def _wait_until_ready(
    process: subprocess.Popen[bytes],
    address: str,
    log: Path,
    ready: Callable[[httpx.Response], bool],
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if ready(httpx.get(f"{address}/health", timeout=10)):
                return
        except httpx.TransportError:
            pass  # the proxy does not listen yet
        time.sleep(0.5)
    pytest.fail(f"the server did not become ready; its log:\n{_tail(log)}", pytrace=False)


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """As Ctrl-C does; if that fails, end its whole process group and say so."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail(f"the server did not stop on SIGINT; its log:\n{_tail(log)}", pytrace=False)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-20_000:]


@contextmanager
def running_server(
    config: dict[str, Any],
    folder: Path,
    environment: dict[str, str] | None = None,
    ready: Callable[[httpx.Response], bool] = _is_ready,
) -> Iterator[tuple[str, int]]:
    """Serve a configuration on a free port; gives the address and the process id.

    ``ready`` says by an answer of ``/health`` whether it has started. Everything that the server
    logged is shown if it does not start.
    """
    port = free_port()
    config = config | {"http_options": {"host": "127.0.0.1", "port": port}}
    for application in config["applications"]:
        if application["import_path"] == chat.BUILDER:
            application["args"]["server"] = f"http://127.0.0.1:{port}"
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    log = folder / "server.log"
    address = f"http://127.0.0.1:{port}"
    # Where the tests run in the background, SIGINT is ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", folder / "config.yaml"],
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
    try:
        _wait_until_ready(process, address, log, ready)
        yield address, process.pid
    finally:
        _stop(process, log)


@pytest.fixture(scope="session")
def drawings() -> Iterator[ImageHost]:
    """A host of images that the server may fetch from."""
    with ImageHost() as host:
        yield host


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory, drawings: ImageHost) -> Iterator[str]:
    """The address of a server that runs the committed configuration, with what it leaves out."""
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text(encoding="utf-8"))
    config["applications"][0]["args"]["image_urls"] = {
        "allow_hosts": [f"localhost:{drawings.port}"],
        "allow_http": True,
        "allow_networks": ["127.0.0.0/8", "::1/128"],
        "file_roots": [str(IMAGES)],
        "timeout_s": 300.0,  # the tests disconnect before
    }
    demo = config["applications"][0]["args"]["models"][0]
    demo["adapters"] = save_adapters(
        REPOSITORY / demo["source"], tmp_path_factory.mktemp("adapters"), ADAPTERS, VISION
    )
    config["applications"][0]["args"]["receipts"] = {"key_env": "RECEIPTS_KEY"}
    environment = {
        **TUNED,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        # Otherwise Ray's agent gets metrics every 10 seconds, and a test waits.
        "RAY_metrics_report_interval_ms": "1000",
        "RECEIPTS_KEY": Ed25519PrivateKey.generate()
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        .decode(),
    }
    with running_server(config, tmp_path_factory.mktemp("server"), environment) as (address, _):
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    """A client of the running server."""
    with httpx.Client(base_url=address, timeout=120) as client:
        yield client
