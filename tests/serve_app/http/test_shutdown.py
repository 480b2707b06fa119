"""The end of an ingress: running requests get their time, then an error; new ones are refused."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from schema import StreamChunk, Task
from serve_app.config.app_args import AppArgs
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.ingress import asgi_app
from serve_app.http.shutdown import Shutdown
from tests.serve_app.scripted import ScriptedReplica, _local, chunk, client, events_of, task

LONG = 60.0


class Slow(ScriptedReplica):
    """Also tasks that take a moment: four chunks in a second."""

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        if str(task.messages[0].content) != "slowly":
            async for each in super().chunks(task):
                yield each
            return
        for word in ("a ", "b ", "c "):
            yield chunk(word)
            await asyncio.sleep(0.25)
        yield chunk("d", "stop")


@pytest.fixture(scope="module")
def make() -> Callable[[float], tuple[ASGIApp, Shutdown]]:
    replica, preprocessor = _local(Slow, "Slow"), _local(Slow, "images")

    def made(grace_s: float) -> tuple[ASGIApp, Shutdown]:
        args = AppArgs.model_validate({"models": [{"id": "demo"}]})
        shutdown = Shutdown(grace_s)
        dispatcher = Dispatcher(args, preprocessor, {"Model:demo": replica})
        return asgi_app(args, dispatcher, shutdown), shutdown

    return made


async def _whole_and_stream(
    app: ASGIApp, shutdown: Shutdown, act: str
) -> tuple[httpx.Response, httpx.Response, int]:
    """Two requests that run when the ingress is stopped, and what `drain` returned."""
    async with client(app) as http, asyncio.TaskGroup() as group:
        whole = group.create_task(http.post("/v1/tasks", json=task(act)))
        stream = group.create_task(http.post("/v1/tasks?stream=true", json=task(act)))
        await asyncio.sleep(0.3)
        cut = await shutdown.drain()
    return whole.result(), stream.result(), cut


Maker = Callable[[float], tuple[ASGIApp, Shutdown]]


async def test_running_requests_end_as_if_nothing_was(make: Maker) -> None:
    whole, stream, cut = await _whole_and_stream(*make(LONG), "slowly")
    assert cut == 0
    assert whole.json()["choices"][0]["message"]["content"] == "a b c d"
    texts = [each["choices"][0]["delta"]["content"] for each in events_of(stream.text)]
    assert "".join(texts) == "a b c d"


async def test_what_has_not_ended_in_time_ends_with_an_error(make: Maker) -> None:
    whole, stream, cut = await _whole_and_stream(*make(0.5), "later hang")
    assert cut == 2
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "server_stopping")
    assert int(whole.headers["retry-after"]) >= 1
    assert stream.status_code == 200
    first, last = events_of(stream.text)
    assert first["choices"][0]["delta"]["content"] == "é "
    assert last["error"]["code"] == "server_stopping"


async def test_a_stream_that_has_not_begun_gets_a_status(make: Maker) -> None:
    _, stream, _ = await _whole_and_stream(*make(0.5), "hang")
    assert (stream.status_code, stream.json()["error"]["code"]) == (503, "server_stopping")


async def test_an_openai_stream_ends_with_an_error_too(make: Maker) -> None:
    app, shutdown = make(0.5)
    body: dict[str, Any] = {**task("later hang"), "stream": True}
    async with client(app) as http, asyncio.TaskGroup() as group:
        stream = group.create_task(http.post("/v1/chat/completions", json=body))
        await asyncio.sleep(0.3)
        await shutdown.drain()
    assert events_of(stream.result().text)[-1]["error"]["code"] == "server_stopping"


async def test_a_body_that_has_not_arrived_does_not_hold_the_end_up(make: Maker) -> None:
    app, shutdown = make(0.5)

    async def never() -> AsyncGenerator[bytes, None]:
        yield b"{"
        await asyncio.sleep(LONG)

    async with client(app) as http, asyncio.TaskGroup() as group:
        sent = group.create_task(http.post("/v1/tasks", content=never()))
        await asyncio.sleep(0.1)
        assert await shutdown.drain() == 1
    assert (sent.result().status_code, sent.result().json()["error"]["code"]) == (
        503,
        "server_stopping",
    )


async def test_new_requests_are_refused_and_health_says_so(make: Maker) -> None:
    app, shutdown = make(LONG)
    async with client(app) as http:
        assert (await http.get("/health")).status_code == 200
        running = asyncio.create_task(http.post("/v1/tasks", json=task("slowly")))
        await asyncio.sleep(0.1)
        draining = asyncio.create_task(shutdown.drain())
        await asyncio.sleep(0)
        for refused in (
            await http.post("/v1/tasks", json=task("say hi")),
            await http.post("/v1/chat/completions", json=task("say hi")),
            await http.get("/v1/models"),
            await http.get("/health"),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                503,
                "server_stopping",
            )
            assert int(refused.headers["retry-after"]) >= 1
        assert await draining == 0
        assert (await running).status_code == 200


async def test_an_ingress_without_requests_is_drained_at_once(make: Maker) -> None:
    _, shutdown = make(LONG)
    async with asyncio.timeout(LONG / 2):
        assert await shutdown.drain() == 0
        assert await shutdown.drain() == 0
