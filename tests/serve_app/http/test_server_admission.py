"""End to end: ids in logs, malformed HTTP and large bodies, which need a real server."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serve_app.tasks import image_task, text_of, text_task

ODD = {
    "no HTTP": b"\x16\x03\x01\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"POST /v1/tasks HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": b"POST /v1/tasks HTTP/1.1\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n{}",
    "negative length": b"POST /v1/tasks HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "control character": b"GET /health HTTP/1.1\r\nX-A: a\x01b\r\n\r\n",
}
FOLDED = b"GET /health HTTP/1.1\r\nX-A: a\r\n b\r\n\r\n"


def _connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def _processes() -> Iterator[psutil.Process]:
    """Ray's proxy and the ingress, among those that this test run started."""
    for process in psutil.Process().children(recursive=True):
        name = "".join(process.cmdline()[:1])
        if name.startswith(("ray::ProxyActor", "ray::ServeReplica:default:Ingress")):
            yield process


def _serve_logs() -> Path:
    for process in psutil.Process().children(recursive=True):
        if found := re.search(r"/\S+/session_[\w-]+", " ".join(process.cmdline())):
            return Path(found[0]) / "logs" / "serve"
    raise AssertionError("no process of a local Ray")


@pytest.mark.parametrize("given", ["mine:2026/a.b+c=~_-@", None])
def test_all_logs_have_the_id_that_the_client_saw(client: httpx.Client, given: str | None) -> None:
    headers = {"x-request-id": given} if given else {}
    response = client.post("/v1/tasks?stream=true", json=image_task(1)[0], headers=headers)
    assert response.status_code == 200
    (request_id,) = response.headers.get_list("x-request-id")
    assert given in (None, request_id)
    deadline = time.monotonic() + 30
    lines: list[str] = []
    wanted = {"Ingress", "ImagePreprocessor", "Model:demo:float32"}
    while wanted and time.monotonic() < deadline:
        # The deployments that wrote lines with the id.
        lines = [
            line
            for path in _serve_logs().glob("*.log")
            for line in path.read_text(encoding="utf-8").splitlines()
            if f" {request_id} -- " in line
        ]
        wanted = {name for name in wanted if not any(f"{name} " in x for x in lines)}
        time.sleep(0.2)
    assert wanted == set()
    (ours,) = [line for line in lines if "key=" in line]
    assert re.search(r'POST "/v1/tasks" 200 [\d.]+ms key=- model="demo" tokens=\d+\+\d+ ', ours)


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD)
def test_malformed_http_is_refused(address: str, client: httpx.Client, sent: bytes) -> None:
    with _connected(address) as connection:
        connection.sendall(sent)
        assert connection.recv(12) == b"HTTP/1.1 400"
    assert text_of(client.post("/v1/tasks", json=text_task("hello")))


def test_a_folded_header_has_one_meaning(address: str, client: httpx.Client) -> None:
    """RFC 9112 (5.2) lets a server refuse it, or read it as one line, as HAProxy does."""
    with _connected(address) as connection:
        connection.sendall(FOLDED)
        assert connection.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 200")
    assert text_of(client.post("/v1/tasks", json=text_task("hello")))


@pytest.mark.parametrize("header", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
def test_a_large_body_takes_no_memory(address: str, header: bytes) -> None:
    piece = bytes(1_000_000)
    if header.startswith(b"Transfer"):
        piece = b"f4240\r\n" + piece + b"\r\n"
    before = sum(process.memory_info().rss for process in _processes())
    with _connected(address) as connection:
        connection.sendall(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
        for _ in range(50):  # the limit is 32; how much is on its way then varies
            connection.sendall(piece)
        assert connection.recv(12) == b"HTTP/1.1 413"
        for _ in range(950):  # uvicorn reads on and drops what comes
            connection.sendall(piece)
        after = sum(process.memory_info().rss for process in _processes())
    assert after - before < 200 * 2**20
