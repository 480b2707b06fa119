"""Hostile requests: refused with a reason, or harmless."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message

from tests.schema.malformed import MALFORMED, NOT_JSON, Malformed
from tests.serve_app.scripted import app_maker, client, events_of, task

MAKE = app_maker()
APP = MAKE()
POSTS = ("/v1/tasks", "/v1/chat/completions", "/v1/completions")
GIGABYTE = 10**9
MEGABYTE = bytes(10**6)


async def _post(
    headers: list[tuple[bytes, bytes]], receive: Callable[[], Message], app: ASGIApp = APP
) -> tuple[Any, Any]:
    """Post to /v1/tasks without a client that would mend or refuse it; gives status and error."""
    sent: list[Message] = []

    async def received() -> Message:
        return receive()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/tasks", "query_string": b""}
    await app(scope | {"headers": headers}, received, send)
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


@pytest.mark.parametrize("length", [GIGABYTE, 10**30, int("9" * 4000), "9" * 5000])
async def test_a_gigabyte_by_content_length_is_refused_unread(length: object) -> None:
    def receive() -> Message:
        raise AssertionError("the body was read")

    declared = [(b"content-length", str(length).encode())]
    status, error = await _post(declared, receive)
    assert (status, error["code"]) == (413, "request_too_large")


async def test_a_gigabyte_in_chunks_is_refused_at_the_limit() -> None:
    read = 0

    def receive() -> Message:
        nonlocal read
        read += len(MEGABYTE)
        return {"type": "http.request", "body": MEGABYTE, "more_body": read < GIGABYTE}

    tracemalloc.start()
    status, error = await _post([(b"transfer-encoding", b"chunked")], receive)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (status, error["code"]) == (413, "request_too_large")
    assert read == 33 * len(MEGABYTE)
    assert peak < 3 * read


async def test_a_small_body_under_a_false_length() -> None:
    body: Message = {"type": "http.request", "body": b"{", "more_body": False}
    for length in (b"-1", b"x", b"", b"2", "²".encode()):
        assert (await _post([(b"content-length", length)], lambda: body))[0] == 400


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "case", [case for case in MALFORMED if case.beyond_schema == NOT_JSON], ids=lambda c: c.name
)
async def test_invalid_json_is_refused_on_every_route(path: str, case: Malformed) -> None:
    async with client(APP) as http:
        response = await http.post(path, content=case.body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_compressed_body_is_refused() -> None:
    async with client(APP) as http:
        response = await http.post(
            "/v1/tasks", content=b"\x1f\x8b" + bytes(99), headers={"content-encoding": "gzip"}
        )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "content-encoding"


@pytest.mark.parametrize("encoding", ["identity", "Identity", "IDENTITY", ""])
async def test_an_uncompressed_body_with_an_encoding_header_is_read(encoding: str) -> None:
    async with client(APP) as http:
        headers = {"content-encoding": encoding}
        response = await http.post("/v1/tasks", json=task("go"), headers=headers)
    assert response.status_code == 200


INJECTED = "demo\r\nx-evil: 1\r\n\r\ndata: [DONE]\n\n"


@pytest.mark.parametrize("path", POSTS)
async def test_a_models_name_cannot_inject_headers_or_events(path: str) -> None:
    body: dict[str, Any] = {"model": INJECTED, "prompt": "a"}
    if path != "/v1/completions":
        body = {"model": INJECTED, "messages": [{"role": "user", "content": "a"}]}
    if path != "/v1/tasks":
        body["stream"] = True
    query = "?stream=true" if path == "/v1/tasks" else ""
    async with client(APP) as http:
        response = await http.post(f"{path}{query}", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model"
    assert "x-evil" not in response.headers


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/demo%0d%0ax-evil:%201",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%ff%fe",
        "/schemas/..%2f..%2fpyproject.toml",
        "/schemas/%2fetc%2fpasswd",
        "/docs/static/..%2f..%2f..%2fetc%2fpasswd",
        "/docs/static/%2e%2e/core.py",
        "/docs/static//etc/passwd",
        "/docs/static/%00",
        "//v1/tasks",
        "/" + "a" * 60_000,
    ],
)
async def test_a_path_cannot_escape(path: str) -> None:
    async with client(APP) as http:
        response = await http.get(httpx.URL("http://test").copy_with(raw_path=path.encode()))
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert len(response.content) < 1000
    assert "x-evil" not in response.headers


async def test_a_long_query_is_refused() -> None:
    async with client(APP) as http:
        response = await http.get(f"/v1/models?{'a=b&' * 10_000}")
    assert response.status_code == 400
    assert "longer than 4096" in response.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/tasks"), ("POST", "/v1/models")])
async def test_a_method_cannot_be_overridden(method: str, path: str) -> None:
    other = "POST" if method == "GET" else "GET"
    names = ("x-http-method-override", "x-http-method", "x-method-override")
    async with client(APP) as http:
        response = await http.request(method, path, headers=dict.fromkeys(names, other))
    assert response.status_code == 405
    assert other in response.headers["allow"]


HOSTILE = ["\n\ndata: [DONE]\n\n", "\r", "\u2028", "\u2029\x85", "\x0b\x0c\x1c\x1d\x1e", "data: a"]


async def _streamed(path: str, text: str) -> tuple[str, httpx.Response]:
    query, more = ("?stream=true", {}) if path == "/v1/tasks" else ("", {"stream": True})
    async with client(APP) as http:
        response = await http.post(f"{path}{query}", json=task(f"say {text}") | more)
    joined = "".join(
        choice["delta"].get("content", "")
        for event in events_of(response.text)
        for choice in event["choices"]
    )
    return joined, response


def _check_text(path: str, text: str) -> None:
    joined, response = asyncio.run(_streamed(path, text))
    assert joined == text
    # However a client splits the stream: by bytes, as httpx, or as str.splitlines does.
    lines = [line for line in response.text.splitlines() if line]
    assert lines == [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.count("data: [DONE]") == 1


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/chat/completions"])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_cannot_inject_an_event(path: str, text: str) -> None:
    _check_text(path, text)


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_character_injects_an_event(text: str) -> None:
    _check_text("/v1/tasks", text)
