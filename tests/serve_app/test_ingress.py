"""HTTP without a cluster: limits, errors and events, against a replica that fails on demand.

The real graph is tested in test_server.py. What it does only when something breaks is tested here,
so the replica is scripted; the ingress, the dispatcher and Ray's handles are the real ones.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from schema import Overloaded, StreamChunk, Task, TaskArgsInvalid, TaskExecutionError, TaskResponse
from serve_app.config import AppArgs
from serve_app.dispatch import Dispatcher
from serve_app.ingress import asgi_app

cancelled = threading.Event()


def _chunk(text: str, finish_reason: Any = None) -> StreamChunk:
    delta: Any = {"role": "assistant", "content": text}
    return {
        "model": "demo",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


class ScriptedReplica:
    """Does what the task's first message says."""

    async def run(self, task: Task, images: Any) -> TaskResponse:
        await self._act(str(task.messages[0].content))
        message: Any = {"role": "assistant", "content": "é ok"}
        return {
            "model": "demo",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }

    async def stream(self, task: Task, images: Any) -> AsyncIterator[StreamChunk]:
        act = str(task.messages[0].content)
        if not act.startswith("later "):
            await self._act(act)
        if act == "nothing":
            return
        yield _chunk("é ")
        await self._act(act.removeprefix("later "))
        yield _chunk("ok", "stop")

    async def status(self) -> dict[str, Any]:
        return {"tasks": {"ongoing": 0}}

    async def _act(self, act: str) -> None:
        match act:
            case "refuse":
                raise TaskArgsInvalid("no", param="messages.0.content")
            case "overload":
                raise Overloaded("full", retry_after_s=2.5)
            case "fail":
                raise TaskExecutionError("NaN")
            case "bug":
                raise KeyError("secret")
            case "hang":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    cancelled.set()
                    raise


class NoPictures:
    """Stands where the preprocessor stands; these tasks have no pictures."""


def _local(deployment: type, name: str) -> DeploymentHandle[Any]:
    application = serve.deployment(name=name)(deployment).bind()
    handle: DeploymentHandle[Any] = serve.run(application, name=name, _local_testing_mode=True)
    return handle


@pytest.fixture(scope="module")
def app() -> Callable[..., ASGIApp]:
    replica, preprocessor = _local(ScriptedReplica, "replica"), _local(NoPictures, "pictures")

    def make(**limits: float) -> ASGIApp:
        args = AppArgs.model_validate({"models": [{"id": "demo"}], "limits": limits})
        return asgi_app(args, Dispatcher(args, preprocessor, {"Model:demo": replica}))

    return make


def _client(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def _task(act: str) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": act}]}


def _events(body: str) -> list[Any]:
    lines = [line for line in body.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_answers(app: Callable[..., ASGIApp]) -> None:
    async with _client(app()) as client:
        whole = await client.post("/v1/tasks", json=_task("go"))
        streamed = await client.post("/v1/tasks?stream=true", json=_task("go"))
    assert whole.status_code == streamed.status_code == 200
    assert whole.headers["content-type"] == "application/json"
    assert "é ok".encode() in whole.content  # UTF-8, not \u escapes
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["cache-control"] == "no-cache"
    assert _events(streamed.text) == [_chunk("é "), _chunk("ok", "stop")]


@pytest.mark.parametrize("query", ["", "?stream=true"])
@pytest.mark.parametrize(
    ("act", "status", "code", "param"),
    [
        ("refuse", 400, "task_args_invalid", "messages.0.content"),
        ("overload", 503, "overloaded", None),
        ("fail", 500, "task_execution_failed", None),
        ("bug", 500, "task_execution_failed", None),
    ],
)
async def test_an_error_before_the_first_chunk_is_an_http_error(
    app: Callable[..., ASGIApp], query: str, act: str, status: int, code: str, param: str | None
) -> None:
    async with _client(app()) as client:
        response = await client.post(f"/v1/tasks{query}", json=_task(act))
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert "secret" not in error["message"]
    assert response.headers.get("retry-after") == ("3" if act == "overload" else None)


@pytest.mark.parametrize(
    ("act", "code"), [("fail", "task_execution_failed"), ("bug", "task_execution_failed")]
)
async def test_an_error_after_the_first_chunk_is_the_last_event(
    app: Callable[..., ASGIApp], act: str, code: str
) -> None:
    async with _client(app()) as client:
        response = await client.post("/v1/tasks?stream=true", json=_task(f"later {act}"))
    first, last = _events(response.text)
    assert first == _chunk("é ")
    assert last["error"]["code"] == code


async def test_a_stream_without_a_chunk_is_an_error(app: Callable[..., ASGIApp]) -> None:
    async with _client(app()) as client:
        response = await client.post("/v1/tasks?stream=true", json=_task("nothing"))
    assert response.status_code == 500


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_deadline_ends_and_cancels_the_task(
    app: Callable[..., ASGIApp], query: str
) -> None:
    cancelled.clear()
    async with _client(app(request_timeout_s=0.2)) as client:
        response = await client.post(f"/v1/tasks{query}", json=_task("hang"))
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "request_timeout"
    assert await asyncio.to_thread(cancelled.wait, 30)


async def test_a_deadline_after_the_first_chunk(app: Callable[..., ASGIApp]) -> None:
    async with _client(app(request_timeout_s=0.2)) as client:
        response = await client.post("/v1/tasks?stream=true", json=_task("later hang"))
    assert [event.get("error", {}).get("code") for event in _events(response.text)] == [
        None,
        "request_timeout",
    ]


async def _pieces(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // 1000):
        yield b" " * 1000


async def test_a_body_that_is_too_large(app: Callable[..., ASGIApp]) -> None:
    async with _client(app(max_body_mb=0.01)) as client:
        by_length = await client.post("/v1/tasks", content=b" " * 10_001)
        chunked = await client.post("/v1/tasks", content=_pieces(20_000))
        fits = await client.post("/v1/tasks", content=json.dumps(_task("go")).ljust(10_000))
    for response in (by_length, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert "0.01 MB" in response.json()["error"]["message"]
    assert fits.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/task", 404, "not_found"),
        ("GET", "/v1/tasks", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("GET", "/schemas/none", 404, "not_found"),
        ("POST", "/v1/tasks?steam=true", 400, "task_args_invalid"),
        ("POST", "/v1/tasks?stream=yes", 400, "task_args_invalid"),
        ("POST", "/v1/tasks", 400, "task_args_invalid"),
    ],
)
async def test_every_error_is_json(
    app: Callable[..., ASGIApp], method: str, path: str, status: int, code: str
) -> None:
    async with _client(app()) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code
