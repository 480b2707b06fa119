"""Ray Serve with nothing behind it: what the framework alone costs.

Two deployments, as in this project's graph: one streams as many short texts as tokens were asked
for, as fast as it can; the other passes each on as an event.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve_app.replicas.autoscaling_policy import KV_RESERVED

_MANY = 4096
_SMALL = {"num_cpus": 0.1}


@serve.deployment(max_ongoing_requests=_MANY, ray_actor_options=_SMALL)
class Echo:
    """In the place of a model."""

    async def stream(self, count: int) -> AsyncIterator[str]:
        """As many texts as asked for."""
        for _ in range(count):
            yield " echo"

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray every second where the deployment scales, as a model's replica is."""
        return {KV_RESERVED: 0.0}


class EchoIngress:
    """In the place of the ingress."""

    def __init__(self, echo: DeploymentHandle[Any]) -> None:
        self._echo = echo.options(stream=True)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Called by Ray Serve."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/health", self._health),
            ]
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _complete(self, request: Request) -> Response:
        count = (await request.json())["max_tokens"]
        return StreamingResponse(self._events(count), media_type="text/event-stream")

    async def _events(self, count: int) -> AsyncIterator[bytes]:
        texts: Any = self._echo.stream.remote(count)
        async for text in texts:
            yield _event({"content": text}, None)
        yield _event({}, "length", {"prompt_tokens": 0, "completion_tokens": count})
        yield b"data: [DONE]\n\n"


def _event(delta: dict[str, Any], reason: str | None, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n"


def build(args: dict[str, str]) -> serve.Application:
    """The application. It takes no arguments."""
    ingress: Any = serve.deployment(
        name="Ingress", max_ongoing_requests=_MANY, ray_actor_options=_SMALL
    )(serve.ingress()(EchoIngress))
    application: serve.Application = ingress.bind(Echo.bind())  # type: ignore[attr-defined]
    return application
