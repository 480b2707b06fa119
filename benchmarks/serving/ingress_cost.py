"""What the ingress does for each request and chunk: ``python -m benchmarks.serving.ingress_cost``.

The real application, called as a server calls it, in front of a handle that answers at once. So
neither Ray nor a network nor a model is in the figures: processor time, the least of many runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any

from starlette.types import ASGIApp
from starlette.types import Message as AsgiMessage

from benchmarks.harness.report import aligned
from schema.answers.response import StreamChunk
from serve_app.config.app_args import AppArgs
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.ingress import asgi_app
from serve_app.protocol.messages import Chunk, Message, Started

_MODEL = "demo"
_CHUNKS = 2000
_MESSAGES = [{"role": "user", "content": "Count from 3 to 99."}]
_REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/tasks": {"model": _MODEL, "messages": _MESSAGES, "seed": 3},
    "/v1/chat/completions": {"model": _MODEL, "messages": _MESSAGES, "seed": 3, "stream": True},
}


class _Handle:
    """In the place of a Ray Serve handle, and of the generator that a call gives."""

    chunks = 1

    def __init__(self) -> None:
        self._told = -1

    def options(self, **_: Any) -> _Handle:
        return self

    def remote(self, *_: Any, **__: Any) -> _Handle:
        return _Handle()

    def cancel(self) -> None:
        pass

    def __aiter__(self) -> _Handle:
        return self

    async def __anext__(self) -> Message:
        self._told += 1
        if self._told == 0:
            return Started("replica")
        if self._told > _Handle.chunks:
            raise StopAsyncIteration
        return Chunk(_chunk(self._told, last=self._told == _Handle.chunks))


def _chunk(tokens: int, *, last: bool) -> StreamChunk:
    return {
        "model": _MODEL,
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": " token"},
                "finish_reason": "stop" if last else None,
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens},
        "system_fingerprint": "demo-0123456789abcdef",
    }


async def _call(app: ASGIApp, path: str, body: bytes) -> None:
    messages: list[AsgiMessage] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> AsgiMessage:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: AsgiMessage) -> None:
        if message.get("status", 200) != 200:
            raise RuntimeError(f"refused: {message}")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "query_string": b"stream=true" if path == "/v1/tasks" else b"",
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"cost")],
    }
    await app(scope, receive, send)


async def _least(app: ASGIApp, path: str, body: bytes, chunks: int, times: int) -> float:
    """Seconds of processor time."""
    _Handle.chunks = chunks
    found = []
    for _ in range(times):
        begun = time.process_time()
        await _call(app, path, body)
        found.append(time.process_time() - begun)
    return min(found)


def main() -> int:
    """Measure and print a table."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    args = AppArgs.model_validate({"models": [{"id": _MODEL}]})
    handle: Any = _Handle()
    app = asgi_app(args, Dispatcher(args, handle, {args.models[0].deployment: handle}))
    lines = [["path", "request with a chunk", "each further chunk"]]
    for path, request in _REQUESTS.items():
        body = json.dumps(request).encode()
        one = asyncio.run(_least(app, path, body, 1, times=500))
        many = asyncio.run(_least(app, path, body, 1 + _CHUNKS, times=20))
        each = (many - one) / _CHUNKS
        lines.append([path, f"{one * 1e6:.0f} us", f"{each * 1e6:.1f} us"])
    print(aligned(lines, names=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
