"""HTTP without a cluster: limits, errors and events, against a replica that fails on demand.

The real graph is tested in test_server.py. What it does only when something breaks is tested here,
so the replica is scripted; the ingress, the dispatcher and Ray's handles are the real ones.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
from starlette.types import ASGIApp

from tests.serve_app.scripted import app_maker, cancelled, chunk, client, events_of, task


@pytest.fixture(scope="module")
def app() -> Callable[..., ASGIApp]:
    return app_maker()


async def test_answers(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        whole = await http.post("/v1/tasks", json=task("go"))
        streamed = await http.post("/v1/tasks?stream=true", json=task("go"))
    assert whole.status_code == streamed.status_code == 200
    assert whole.headers["content-type"] == "application/json"
    assert "é ok".encode() in whole.content  # UTF-8, not \u escapes
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["cache-control"] == "no-cache"
    assert events_of(streamed.text) == [chunk("é "), chunk("ok", "stop")]


@pytest.mark.parametrize("query", ["", "?stream=true"])
@pytest.mark.parametrize(
    ("act", "status", "code", "param"),
    [
        ("refuse", 400, "invalid_value", "messages.0.content"),
        ("overload", 503, "server_is_overloaded", None),
        ("fail", 500, "server_error", None),
        ("bug", 500, "server_error", None),
    ],
)
async def test_an_error_before_the_first_chunk_is_an_http_error(
    app: Callable[..., ASGIApp], query: str, act: str, status: int, code: str, param: str | None
) -> None:
    async with client(app()) as http:
        response = await http.post(f"/v1/tasks{query}", json=task(act))
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert "secret" not in error["message"]
    assert response.headers.get("retry-after") == ("3" if act == "overload" else None)


@pytest.mark.parametrize(("act", "code"), [("fail", "server_error"), ("bug", "server_error")])
async def test_an_error_after_the_first_chunk_is_the_last_event(
    app: Callable[..., ASGIApp], act: str, code: str
) -> None:
    async with client(app()) as http:
        response = await http.post("/v1/tasks?stream=true", json=task(f"later {act}"))
    first, last = events_of(response.text)
    assert first == chunk("é ")
    assert last["error"]["code"] == code


async def test_a_stream_without_a_chunk_is_an_error(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        response = await http.post("/v1/tasks?stream=true", json=task("nothing"))
    assert response.status_code == 500


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_deadline_ends_and_cancels_the_task(
    app: Callable[..., ASGIApp], query: str
) -> None:
    cancelled.clear()
    async with client(app(request_timeout_s=0.2)) as http:
        response = await http.post(f"/v1/tasks{query}", json=task("hang"))
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "request_timeout"
    assert await asyncio.to_thread(cancelled.wait, 30)


async def test_a_deadline_after_the_first_chunk(app: Callable[..., ASGIApp]) -> None:
    async with client(app(request_timeout_s=0.2)) as http:
        response = await http.post("/v1/tasks?stream=true", json=task("later hang"))
    assert [event.get("error", {}).get("code") for event in events_of(response.text)] == [
        None,
        "request_timeout",
    ]


async def _pieces(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // 1000):
        yield b" " * 1000


async def test_a_body_that_is_too_large(app: Callable[..., ASGIApp]) -> None:
    async with client(app(max_body_mb=0.01)) as http:
        by_length = await http.post("/v1/tasks", content=b" " * 10_001)
        chunked = await http.post("/v1/tasks", content=_pieces(20_000))
        fits = await http.post("/v1/tasks", content=json.dumps(task("go")).ljust(10_000))
    for response in (by_length, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert "0.01 MB" in response.json()["error"]["message"]
    assert fits.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/none", 404, "not_found"),
        ("POST", "/v1/task", 404, "not_found"),
        ("GET", "/v1/tasks", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("GET", "/schemas/none", 404, "not_found"),
        ("POST", "/v1/tasks?steam=true", 400, "unknown_parameter"),
        ("POST", "/v1/tasks?stream=yes", 400, "invalid_value"),
        ("POST", "/v1/tasks", 400, "invalid_value"),
        ("POST", "/v1/chat/completions", 400, "invalid_value"),
        ("POST", "/v1/chat/completions?stream=true", 400, "unknown_parameter"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/org%2Fname", 404, "model_not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
    ],
)
async def test_every_error_is_json(
    app: Callable[..., ASGIApp], method: str, path: str, status: int, code: str
) -> None:
    async with client(app()) as http:
        response = await http.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code
