"""The web chat as a Ray Serve application of its own."""

# No `from __future__ import annotations` here: see serve_app/app.py.

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config.ray_options import HEALTH, MAX_QUEUED, NO_GPU, NUM_CPUS
from serve_app.ui.config import DEPLOYMENT, ChatArgs, missing

# Every open tab holds one connection, and another one while it waits for an answer.
MAX_ONGOING = 4096
KEPT_S = 86_400.0
# Nothing runs before the first visitor, who waits for the process some seconds. It keeps the
# conversations of its tabs, and an open tab keeps it.
VISITED: dict[str, Any] = {
    "min_replicas": 0,
    "initial_replicas": 0,
    "max_replicas": 1,
    "target_ongoing_requests": MAX_ONGOING,
    "metrics_interval_s": 1.0,
    "look_back_period_s": 5.0,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": KEPT_S,
    "downscale_to_zero_delay_s": KEPT_S,
}
# The connections that are open when the server stops are of tabs, which do not end by themselves.
SHUTDOWN: dict[str, Any] = {
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 1.0,
}
# Nothing is loaded from other hosts, even if a model's answer names an image there. Gradio's page
# contains scripts and styles and makes functions out of text.
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


def build(args: ChatArgs) -> Application:
    """The application builder that ``serve_config.yaml`` names."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        autoscaling_config=VISITED,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        ray_actor_options={"num_cpus": NUM_CPUS, "runtime_env": NO_GPU},
        **SHUTDOWN,
        **HEALTH,
    )(serve.ingress()(WebChat))
    return deployment.bind(args)


class WebChat:
    """The deployment: gradio's application, or a page that says what to install."""

    def __init__(self, args: ChatArgs) -> None:
        self._args = args

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve after the constructor."""
        return chat_app(self._args)


def chat_app(args: ChatArgs) -> ASGIApp:
    """The ASGI application, which may be served below any prefix."""
    advice = missing()
    return _with_headers(_unavailable(advice) if advice else _OnFirstVisit(args).app())


class _OnFirstVisit:
    """Gradio's application, made for its first request: until then it takes no time and no memory.

    Importing it takes seconds, which the start of a server would share with its models.
    """

    def __init__(self, args: ChatArgs) -> None:
        self._args = args
        self._making: asyncio.Task[FastAPI] | None = None
        self._life: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    def app(self) -> ASGIApp:
        """The application of all requests."""
        return Starlette(routes=[Mount("/", app=self)], lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        try:
            made = await asyncio.shield(self._making)  # a visitor who leaves must not end it
        except Exception:
            self._making = None
            raise
        await made(scope, receive, send)

    async def _make(self) -> FastAPI:
        uploads = TemporaryDirectory(prefix="gpt-task-serve-chat-")
        # Gradio reads these when it is imported. Without them it reports its use, and all users of
        # a machine share one directory of uploads, which belongs to the first of them.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = uploads.name
        await asyncio.to_thread(import_module, "serve_app.ui.page")
        made = _gradio_app(self._args)
        made.state.uploads = uploads  # deleted with it
        started = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(made, started))
        await started
        return made

    async def _live(self, made: FastAPI, started: asyncio.Future[None]) -> None:
        """The life of gradio's application, in one task from its begin to its end."""
        try:
            async with made.router.lifespan_context(made):
                started.set_result(None)
                await self._stop.wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._stop.set()
        if self._life is not None:
            await self._life


def _gradio_app(args: ChatArgs) -> FastAPI:
    import gradio as gr  # noqa: PLC0415 - an optional package, and seconds to import

    from serve_app.ui.page import CSS, Page, theme  # noqa: PLC0415

    blocks = Page(args).blocks
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        # It would keep the inputs, the API key too, in the browser's storage.
        run_history=False,
        max_file_size=int(args.max_picture_mb * 10**6),
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=CSS,
    )
    # Gradio checks that a message's files are uploads only in launched applications, and this one
    # was mounted: without this a message could name any image on the server's disk.
    blocks.has_launched = True
    return app


def _unavailable(advice: str) -> ASGIApp:
    async def say(request: Request) -> Response:
        return PlainTextResponse(f"{advice}\n", status_code=503)

    return Starlette(routes=[Route("/{path:path}", say)])


def _with_headers(app: ASGIApp) -> ASGIApp:
    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await app(scope, receive, send_more)

    return with_headers
