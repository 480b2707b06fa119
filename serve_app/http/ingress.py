"""HTTP: the routes, their limits and their errors. It validates and relays; it computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from schema.answers.verification import VerificationRequest
from schema.errors import (
    Cancelled,
    ErrorResponse,
    TaskArgsInvalid,
    TaskError,
    TaskExecutionError,
)
from schema.json_values import clipped
from schema.published.schemas import schemas
from schema.task import Task
from serve_app.config.app_args import AppArgs
from serve_app.config.image_url_args import opened_schemes
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.bodies import (
    BYTES_PER_MB,
    error_response,
    json_response,
    read_body,
    refuse_query,
)
from serve_app.http.clients.anthropic.routes import AnthropicRoutes
from serve_app.http.clients.openai.routes import OpenAIRoutes
from serve_app.http.clients.responses.routes import ResponsesRoutes
from serve_app.http.description.docs import DocsRoutes, static_files
from serve_app.http.description.front_page import FrontPage
from serve_app.http.errors import told
from serve_app.http.middleware.access_log import RequestLog
from serve_app.http.middleware.admission import Gate
from serve_app.http.middleware.api_keys import keys_at_start
from serve_app.http.middleware.cors import Cors
from serve_app.http.receipts.keys import receipt_keys_at_start
from serve_app.http.receipts.routes import ReceiptRoutes
from serve_app.http.receipts.signing import ReceiptSigner
from serve_app.http.routes import asgi_routes, error_form, path_of
from serve_app.http.shutdown import Shutdown
from serve_app.http.sse import TaskEvents, relay
from serve_app.observability.metrics_page import CONTENT_TYPE as METRICS_CONTENT_TYPE
from serve_app.observability.metrics_page import metrics_page
from serve_app.observability.request_record import entry


class Ingress:
    """The deployment that speaks HTTP. Stateless: any number of replicas may run."""

    def __init__(
        self,
        args: AppArgs,
        preprocessor: DeploymentHandle[Any],
        models: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        self._args = args
        self._dispatcher = Dispatcher(args, preprocessor, models)
        self._shutdown = Shutdown(args.limits.shutdown_timeout_s)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve after the constructor."""
        return asgi_app(self._args, self._dispatcher, self._shutdown)

    async def drain(self) -> int:
        """Called by the command that stops the server: see `Shutdown.drain`."""
        return await self._shutdown.drain()


def asgi_app(args: AppArgs, dispatcher: Dispatcher, shutdown: Shutdown | None = None) -> Starlette:
    """The ASGI application: middlewares, routes and error handlers around a dispatcher.

    Raises:
        ValueError: keys cannot be read.
    """
    # Now, because Starlette makes the middlewares with the first request.
    keys = None if args.auth is None else keys_at_start(args.auth)
    receipt_keys = None if args.receipts is None else receipt_keys_at_start(args.receipts)
    signer = ReceiptSigner(receipt_keys)
    max_body = int(args.limits.max_body_mb * BYTES_PER_MB)
    shutdown = shutdown or Shutdown(args.limits.shutdown_timeout_s)
    routes = _Routes(args, dispatcher, signer, max_body, shutdown)
    of_clients = [
        kind(dispatcher, signer, max_body, opened_schemes(args.image_urls))
        for kind in (OpenAIRoutes, ResponsesRoutes, AnthropicRoutes)
    ]
    public = ReceiptRoutes(receipt_keys)
    pages = [DocsRoutes(with_keys=args.auth is not None), FrontPage()]
    app = Starlette(
        routes=[*asgi_routes(routes, public, *of_clients, *pages), static_files()],
        exception_handlers={
            TaskError: _on_task_error,
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_disconnect,
            Exception: _on_bug,
        },
        middleware=[
            Middleware(RequestLog, metrics=dispatcher.metrics),
            # Before the gate: a browser's preflight has no key, and a page must see a 401.
            *([Middleware(Cors, args=args.cors)] if args.cors else []),
            Middleware(Gate, args=args, keys=keys, shutdown=shutdown),
        ],
    )
    # `/v1/tasks/` is another path, and gets the JSON of one that does not exist.
    app.router.redirect_slashes = False
    return app


class _Routes:
    """The handlers. Errors leave them as `TaskError`; the handlers below turn them into JSON."""

    def __init__(
        self,
        args: AppArgs,
        dispatcher: Dispatcher,
        signer: ReceiptSigner,
        max_body: int,
        shutdown: Shutdown,
    ) -> None:
        self._args = args
        self._signer = signer
        self._shutdown = shutdown
        self._dispatcher = dispatcher
        self._max_body = max_body

    async def create_task(self, request: Request) -> Response:
        """``POST /v1/tasks``: task in, response out; with ``?stream=true`` server-sent events."""
        streamed = _wants_stream(request)
        body = await read_body(request, self._max_body)
        self._dispatcher.refuse_if_full(body)
        task = Task.parse(body)
        receipt = await self._signer.begin(task, path_of(request.scope), body)
        if not streamed:
            response = await self._dispatcher.run(task, len(body))
            return json_response(response if receipt is None else receipt.whole(response))
        chunks = self._dispatcher.stream(task, len(body))
        return await relay(chunks if receipt is None else receipt.chunks(chunks), TaskEvents())

    async def create_verification(self, request: Request) -> Response:
        """``POST /v1/verifications``: task and response in, verdict out."""
        refuse_query(request)
        body = await read_body(request, self._max_body)
        self._dispatcher.refuse_if_full(body)
        asked = VerificationRequest.parse(body)
        try:
            return json_response(await self._dispatcher.verify(asked, len(body)))
        except TaskError as error:
            raise asked.in_own_terms(error) from error

    async def list_models(self, request: Request) -> Response:
        """``GET /v1/models``: what is served, with the cards of what is loaded."""
        answer = {
            "object": "list",
            "data": await self._dispatcher.deployments.models(),
            "ingress": self._dispatcher.metrics.counts(),
        }
        return json_response(answer)

    async def health(self, request: Request) -> Response:
        """``GET /health``: 200 when every model that is always on has a replica that answers.

        Models with ``min_replicas: 0`` do not count: they start with their first task. Until then,
        and while the last replica of one is being replaced, 503, with the reasons that are known.
        503 too while the server is being stopped.
        """
        self._shutdown.refuse_if_stopping()
        running = await self._dispatcher.deployments.running()
        return json_response({"status": "ok", "replicas": running})

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``: for Prometheus."""
        # Bytes, because Starlette would name the charset a second time.
        return Response(
            (await metrics_page()).encode(), headers={"content-type": METRICS_CONTENT_TYPE}
        )

    async def json_schema(self, request: Request) -> Response:
        """``GET /schemas/{name}``: the published JSON Schemas, as they are in ``schema/``."""
        name = request.path_params["name"].removesuffix(".schema.json")
        published = schemas()
        if name not in published:
            raise HTTPException(404, f"No such schema; there are {', '.join(published)}")
        return json_response(published[name], media_type="application/schema+json")


def _wants_stream(request: Request) -> bool:
    """The one query parameter."""
    refuse_query(request, allowed="stream")
    values = request.query_params.getlist("stream") or ["false"]
    if values not in (["true"], ["false"]):
        got = clipped(", ".join(values))
        raise TaskArgsInvalid(f"stream must be true or false, got {got!r}", param="stream")
    return values == ["true"]


# Coroutines, because Starlette runs a plain function in a thread, which takes more time than the
# rest of a refusal.


async def _on_task_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TaskError)
    return error_response(error)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """A client that disconnects before its body is there: not sent, but logged and counted."""
    return error_response(Cancelled("the client disconnected while it sent the body"))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path (404), no such method (405)."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = entry().error = status.name.lower()
    body: ErrorResponse = {
        "error": {
            "message": f"{error.detail}: {request.method} {clipped(request.url.path)}",
            "type": "invalid_request_error",
            "param": None,
            "code": code,
        }
    }
    return json_response(told(body, error.status_code), error.status_code, error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    """Anything else is our fault. Starlette raises it again, so that Ray Serve logs it."""
    # It runs outside of all middlewares, so that there is no record of the request.
    form = error_form(path_of(request.scope))
    return json_response(told(TaskExecutionError("internal error").to_dict(), 500, form), 500)
