"""The ingress without a cluster, in front of a replica that fails on demand."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from engine.requests.verification.verdict import verdict
from schema import (
    ModelInvalid,
    Overloaded,
    StreamChunk,
    Task,
    TaskArgsInvalid,
    TaskExecutionError,
)
from schema.answers.response import collect
from schema.answers.verification import Claim
from serve_app.config.app_args import AppArgs
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.ingress import asgi_app
from serve_app.protocol.messages import Alive, Chunk, Judged, Message, Started, TokenIds

cancelled = threading.Event()


def chunk(text: str, finish_reason: Any = None) -> StreamChunk:
    delta: Any = {"role": "assistant", "content": text}
    return {
        "model": "demo",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        "system_fingerprint": "one",
    }


class StandIn:
    """Keeps the protocol of the real replicas around what a subclass answers.

    It takes what they take and says what they say, in the same order: an answer that is not
    streamed comes as one chunk, and tasks that they cannot get from the ingress are refused.
    """

    models: tuple[str, ...] = ("demo",)

    async def stream(
        self,
        task: Task,
        images: None,
        caller: str = "",
        *,
        streamed: bool = True,
        known: TokenIds = (),
        claim: Claim | None = None,
    ) -> AsyncGenerator[Message, None]:
        if task.model not in self.models:
            raise ModelInvalid(f"model {task.model!r} is not served here", param="model")
        assert images is None, "these tasks have no images"
        yield Started("replica")
        async with aclosing(self.chunks(task)) as chunks:
            if streamed:
                async for each in chunks:
                    yield Chunk(each)
                return
            yield Alive()
            if told := [each async for each in chunks]:
                if claim is None:
                    yield Chunk(whole(told))
                else:
                    yield Judged(verdict(claim, collect(told)))

    def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        """The answer."""
        raise NotImplementedError


def whole(chunks: Sequence[StreamChunk]) -> StreamChunk:
    """All chunks of an answer as one, as an engine makes it that has waited for the end."""
    response = collect(chunks)
    choices: list[Any] = []
    for choice in response["choices"]:
        message: dict[str, Any] = dict(choice["message"])
        calls = message.pop("tool_calls", [])
        if calls:
            message["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        rest = {name: value for name, value in choice.items() if name != "message"}
        choices.append({**rest, "delta": message})
    return {**chunks[-1], "choices": choices}


class ScriptedReplica(StandIn):
    """Does what the task's first message says."""

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        act = str(task.messages[0].content) if task.messages else ""
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
    """Stands for the preprocessor, which finds no image in any file."""

    async def prepare(self, *args: object) -> None:
        """What the real one does with a file that is no image."""
        raise TaskArgsInvalid("must be an image", param="messages.0.content.0.base64")


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
        auth: dict[str, Any] | None = None,
        cors: dict[str, Any] | None = None,
        receipts: dict[str, Any] | None = None,
        **limits: float,
    ) -> ASGIApp:
        given = {"auth": auth, "cors": cors, "receipts": receipts}
        args = AppArgs.model_validate({"models": [{"id": "demo"}], **given})
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
