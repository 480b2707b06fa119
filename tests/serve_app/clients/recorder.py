"""A proxy between clients and a server, which notes what the clients send and what comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

_TIMEOUT_S = 120.0
# Of a connection, not of a message; and what the proxy or its client adds by itself.
_OWN = {"connection", "content-length", "host", "transfer-encoding", "accept-encoding"}


@dataclass(frozen=True)
class Exchange:
    """A request and the beginning of its answer.

    Attributes:
        path: with the query.
        headers: names in lower case.
        body: JSON; None without one.
        status: of the answer.
        error: text of the answer, if it is an error.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int
    error: str | None = None


class Recorder:
    """Forwards ``/NAME/path`` to ``/path`` of a server; `exchanges` has them by that name."""

    def __init__(self, server: str) -> None:
        self.exchanges: dict[str, list[Exchange]] = {}
        self._client = httpx.AsyncClient(base_url=server, timeout=_TIMEOUT_S)

    async def forward(self, request: Request) -> Response:
        """Called by Starlette."""
        name, path = request.path_params["name"], f"/{request.path_params['path']}"
        if request.url.query:
            path += f"?{request.url.query}"
        body = await request.body()
        headers = {k: v for k, v in request.headers.items() if k not in _OWN}
        sent = self._client.build_request(request.method, path, headers=headers, content=body)
        answer = await self._client.send(sent, stream=True)
        error = None if answer.is_success else (await answer.aread()).decode()
        self.exchanges.setdefault(name, []).append(
            Exchange(
                request.method,
                path,
                headers,
                json.loads(body) if body else None,
                answer.status_code,
                error,
            )
        )
        kept = {k: v for k, v in answer.headers.items() if k not in _OWN | {"content-encoding"}}
        if error is not None:
            return Response(error, answer.status_code, kept)
        return StreamingResponse(
            _bytes_of(answer), answer.status_code, kept, background=BackgroundTask(answer.aclose)
        )


async def _bytes_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for piece in answer.aiter_bytes():
        yield piece


@contextmanager
def recording(server: str) -> Iterator[tuple[str, Recorder]]:
    """A recorder in front of a server, on a thread of its own; gives its address too."""
    recorder = Recorder(server)
    methods = ["GET", "POST"]
    app = Starlette(routes=[Route("/{name}/{path:path}", recorder.forward, methods=methods)])
    proxy = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    listening = proxy.config.bind_socket()
    thread = threading.Thread(target=proxy.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", recorder
    finally:
        proxy.should_exit = True
        thread.join()
