"""A chunk's way from the engine to the socket, through the real parts in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import Message

import engine
import serve_app
from schema import Task
from serve_app.config.app_args import AppArgs
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.ingress import asgi_app
from serve_app.replicas.image_replica import PreprocessorReplica
from serve_app.replicas.model_replica import ModelReplica
from tests.serve_app.tasks import text_task

ARGS = AppArgs.model_validate(
    {
        "models": [
            {
                "id": "demo",
                "source": "./demo/model",
                "dtype": "float32",
                "device": "cpu",
                "engine": {"threads": 1},
            }
        ]
    }
)
LONG: dict[str, Any] = {
    "do_sample": True,
    "temperature": 100.0,
    "top_k": 0,
    "max_new_tokens": 1900,
    "num_return_sequences": 16,
}
PRODUCT = [Path(str(package.__file__)).parent for package in (engine, serve_app)]


class Parts:
    """The dispatcher in front of a real replica with a real engine."""

    def __init__(self) -> None:
        (model,) = ARGS.models
        self.replica = _local(
            serve.deployment(name="replica")(ModelReplica).bind(model, "cpu"), "path-replica"
        )
        images = _local(
            serve.deployment(name="images")(PreprocessorReplica).bind([model]), "path-images"
        )
        self.dispatcher = Dispatcher(ARGS, images, {model.deployment: self.replica})

    async def status(self) -> Any:
        return await self.replica.status.remote()

    async def wait_until_idle(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                status = await self.status()
                load = status["load"]
                if not load["running"] and not load["waiting"] and not status["tasks"]["ongoing"]:
                    return dict(status)
                await asyncio.sleep(0.02)


def _local(application: serve.Application, name: str) -> DeploymentHandle[Any]:
    handle: DeploymentHandle[Any] = serve.run(application, name=name, _local_testing_mode=True)
    return handle


@pytest.fixture(scope="module")
def begun() -> Iterator[list[str]]:
    """The names of the product's async generators that event loops have begun; not Ray's own.

    An event loop takes its hook when it starts, so this comes before the replica.
    """
    names: list[str] = []
    hook = asyncio.BaseEventLoop._asyncgen_firstiter_hook  # type: ignore[attr-defined]

    def noted(loop: Any, generator: Any) -> None:
        code = generator.ag_code
        if any(folder in Path(code.co_filename).parents for folder in PRODUCT):
            names.append(code.co_qualname)
        hook(loop, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "_asyncgen_firstiter_hook", noted)
        yield names


@pytest.fixture(scope="module")
def parts(begun: list[str]) -> Parts:
    return Parts()


async def _post(parts: Parts, path: str, body: dict[str, Any], leave_after: int) -> None:
    """Send a request and disconnect after so many messages of the answer."""
    app = asgi_app(ARGS, parts.dispatcher)
    bodies: list[Message] = [
        {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
    ]
    sent: list[Message] = []
    left = asyncio.Event()

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) >= leave_after:
            left.set()

    name, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"spec_version": "2.3"},
        "method": "POST",
        "path": name,
        "query_string": query.encode(),
        "headers": [],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent


PATHS: dict[str, dict[str, Any]] = {
    "/v1/tasks?stream=true": text_task("hello", generation_config=LONG),
    "/v1/chat/completions": {
        "model": "demo",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 100.0,
        "max_tokens": 1900,
        "n": 16,
        "stream": True,
    },
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_chunk_passes_at_most_four_generators(
    parts: Parts, path: str, begun: list[str]
) -> None:
    """A process of the pool adds one."""
    begun.clear()
    await _post(parts, path, PATHS[path], leave_after=3)
    assert sorted(begun) == ["Dispatcher.stream", "ModelReplica.stream"]
    await parts.wait_until_idle()


@pytest.mark.parametrize("path", PATHS)
async def test_a_disconnect_ends_the_task_and_frees_its_pages(parts: Parts, path: str) -> None:
    before = await parts.wait_until_idle()
    await _post(parts, path, PATHS[path], leave_after=3)
    after = await parts.wait_until_idle()
    assert after["tasks"]["cancelled"] == before["tasks"]["cancelled"] + 1
    load = after["load"]
    assert load["kv_pages_free"] + load["kv_pages_kept"] == load["kv_pages"]


async def test_a_whole_answer_is_the_stream_collected(parts: Parts) -> None:
    config = {**LONG, "max_new_tokens": 60, "num_return_sequences": 3, "logprobs": 2}
    task = Task.from_fields(**text_task("hello", generation_config=config))
    streamed = [chunk async for chunk in parts.dispatcher.stream(task, 100)]
    once = [chunk async for chunk in parts.dispatcher.stream(task, 100, streamed=False)]
    assert len(streamed) > len(once) == 1
    text = {
        index: "".join(
            choice["delta"]["content"]
            for chunk in streamed
            for choice in chunk["choices"]
            if choice["index"] == index
        )
        for index in range(3)
    }
    whole = await parts.dispatcher.run(task, 100)
    assert {choice["index"]: choice["message"]["content"] for choice in whole["choices"]} == text
    assert all(choice["logprobs"] for choice in whole["choices"])
