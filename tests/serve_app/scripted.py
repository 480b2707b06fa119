"""The ingress without a cluster, in front of a replica that fails on demand."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from schema import Overloaded, StreamChunk, Task, TaskArgsInvalid, TaskExecutionError, TaskResponse
from serve_app.config.app_args import AppArgs
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.ingress import asgi_app

cancelled = threading.Event()


def chunk(text: str, finish_reason: Any = None) -> StreamChunk:
    delta: Any = {"role": "assistant", "content": text}
    return {
        "model": "demo",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


class ScriptedReplica:
    """Does what the task's first message says."""

    async def run(
        self, task: Task, images: Any, caller: str = ""
    ) -> AsyncIterator[TaskResponse | str]:
        yield "replica"
        act = str(task.messages[0].content)
        await self._act(act)
        said = act.removeprefix("say ") if act.startswith("say ") else "é ok"
        message: Any = {"role": "assistant", "content": said}
        yield {
            "model": "demo",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }

    async def stream(self, task: Task, images: Any, caller: str = "") -> AsyncIterator[StreamChunk]:
        act = str(task.messages[0].content)
        if not act.startswith("later "):
            await self._act(act)
        if act == "nothing":
            return
        if act.startswith("say "):
            yield chunk(act.removeprefix("say "), "stop")
            return
        yield chunk("é ")
        await self._act(act.removeprefix("later "))
        yield chunk("ok", "stop")

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


class NoImages:
    """Stands where the preprocessor stands; these tasks have no images."""


def _local(deployment: type, name: str) -> DeploymentHandle[Any]:
    application = serve.deployment(name=name)(deployment).bind()
    handle: DeploymentHandle[Any] = serve.run(application, name=name, _local_testing_mode=True)
    return handle


def app_maker(scripted: type = ScriptedReplica) -> Callable[..., ASGIApp]:
    """Makes applications with the limits (and other arguments) that it is called with.

    In front of such a replica.
    """
    replica = _local(scripted, scripted.__name__)
    preprocessor = _local(NoImages, "images")

    def make(
        auth: dict[str, Any] | None = None, cors: dict[str, Any] | None = None, **limits: float
    ) -> ASGIApp:
        args = AppArgs.model_validate({"models": [{"id": "demo"}], "auth": auth, "cors": cors})
        # Not validated: tests do not wait for as long as operators must.
        args = args.model_copy(update={"limits": args.limits.model_copy(update=limits)})
        return asgi_app(args, Dispatcher(args, preprocessor, {"Model:demo": replica}))

    return make


def client(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def task(act: str) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": act}]}


def events_of(body: str) -> list[Any]:
    lines = [line for line in body.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
