"""The table of routes: what the ingress answers, and what ``/openapi.json`` says about it.

Both are made from `ROUTES`, so that a route cannot be in one and not in the other. A new route is
one record here and the method that it names, in one of the classes that `asgi_app` makes.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from starlette import routing
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from serve_app.http.errors import ErrorForm


class Access(enum.Enum):
    """Which clients may ask a route."""

    KEY = enum.auto()
    """Clients with a key, where the server asks for keys. Each request takes a place."""
    DOCS = enum.auto()
    """As ``KEY``; with ``auth.public_docs`` as ``OPEN``: the answer is the same on every server."""
    OPEN = enum.auto()
    """Every client, without a key and without a place."""


@dataclass(frozen=True)
class Parameter:
    """A parameter in the path or in the query of a route.

    Attributes:
        name: its name.
        place: where it stands.
        description: what it is, for clients.
        choices: the values that it may have; any text, if there are none.
    """

    name: str
    place: Literal["path", "query"]
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        method: the HTTP method.
        path: with its parameters, as Starlette writes it.
        handler: the name of the method that answers.
        summary: what it does, for clients.
        request: the component of `openapi` that the body has to match; None: there is no body.
        response: the component that the answer matches; None: it has no schema.
        media_type: of the answer.
        events: what an event of the answer's stream is; None: the answer is not streamed.
        parameters: in the path and in the query.
        headers: of the answer, beside those that each answer has.
        errors: statuses beside those that each route may answer with.
        access: which clients may ask.
        error_form: of errors.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: str
    summary: str
    request: str | None = None
    response: str | None = None
    media_type: str = "application/json"
    events: str | None = None
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()
    access: Access = Access.KEY
    error_form: ErrorForm = ErrorForm.OPENAI

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return re.sub(r":\w+}", "}", self.path)


_THEN = " as JSON; an `error`, if the task fails after the stream has begun; at the end, `[DONE]`"
_GENERATION_ERRORS = (403, 404, 408, 413, 499, 502, 504, 507)

ROUTES = (
    Route(
        "POST",
        "/v1/tasks",
        "create_task",
        "Run a task",
        request="task",
        response="response",
        events="Each event is a `stream_chunk`" + _THEN,
        parameters=(
            Parameter(
                "stream",
                "query",
                "Whether the answer comes as server-sent events",
                choices=("true", "false"),
            ),
        ),
        errors=_GENERATION_ERRORS,
    ),
    Route(
        "POST",
        "/v1/verifications",
        "create_verification",
        "Verify a response: whether it is the answer to a task, without answering it again",
        request="verification_request",
        response="verdict",
        errors=_GENERATION_ERRORS,
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        "chat_completions",
        "Complete a chat, as OpenAI's clients ask",
        request="chat_completion_request",
        response="chat_completion",
        events="Each event is a `chat.completion.chunk`" + _THEN,
        headers=("x-seed",),
        errors=_GENERATION_ERRORS,
    ),
    Route(
        "POST",
        "/v1/completions",
        "completions",
        "Continue a text, as OpenAI's clients ask",
        request="completion_request",
        response="text_completion",
        events="Each event is a `text_completion`" + _THEN,
        headers=("x-seed",),
        errors=_GENERATION_ERRORS,
    ),
    Route(
        "POST",
        "/v1/responses",
        "create_response",
        "Answer as OpenAI's Responses API does",
        request="responses_request",
        response="response_object",
        events="`response.created`, then the events of the items as JSON, and at the end "
        "`response.completed`, `response.incomplete` or `response.failed`",
        headers=("x-seed",),
        errors=_GENERATION_ERRORS,
    ),
    Route(
        "POST",
        "/v1/messages",
        "create_message",
        "Answer as Anthropic's Messages API does",
        request="messages_request",
        response="message",
        events="`message_start`, then the events of the blocks as JSON, and at the end "
        "`message_stop`, or `error`",
        parameters=(Parameter("beta", "query", "Anthropic's clients send it; no effect"),),
        headers=("x-seed",),
        errors=_GENERATION_ERRORS,
        error_form=ErrorForm.ANTHROPIC,
    ),
    Route(
        "GET",
        "/v1/models",
        "list_models",
        "What is served, with the card of each replica",
        response="models",
    ),
    Route(
        "GET",
        "/v1/models/{id:path}",
        "retrieve_model",
        "One model of that list",
        response="model",
        parameters=(Parameter("id", "path", "The name of a model; it may have slashes"),),
        errors=(404,),
    ),
    Route(
        "GET",
        "/v1/receipts/keys",
        "receipt_keys",
        "The public keys of receipts, as a JWK Set; the first is the one that signs",
        response="receipt_keys",
        access=Access.OPEN,
    ),
    Route(
        "GET",
        "/",
        "front_page",
        "A page with links to the others",
        media_type="text/html",
        access=Access.OPEN,
    ),
    Route(
        "GET",
        "/health",
        "health",
        "Whether every model that is always on answers",
        response="health",
        access=Access.OPEN,
    ),
    Route(
        "GET",
        "/metrics",
        "metrics",
        "The server's metrics, for Prometheus",
        media_type="text/plain",
    ),
    Route(
        "GET",
        "/schemas/{name}",
        "json_schema",
        "A JSON Schema",
        media_type="application/schema+json",
        parameters=(
            Parameter("name", "path", "The name of a schema, with or without `.schema.json`"),
        ),
        errors=(404,),
        access=Access.DOCS,
    ),
    Route("GET", "/openapi.json", "openapi_json", "This document", access=Access.DOCS),
    Route(
        "GET",
        "/docs",
        "docs_page",
        "This document as a page",
        media_type="text/html",
        access=Access.DOCS,
    ),
)


def asgi_routes(*handlers: object) -> list[routing.Route]:
    """Starlette's routes; each is answered by the one of ``handlers`` that has its method.

    Raises:
        LookupError: no handler has it, or several have.
    """
    return [
        routing.Route(route.path, _method(route.handler, handlers), methods=[route.method])
        for route in ROUTES
    ]


def error_form(path: str) -> ErrorForm:
    """How errors of a path are written."""
    return _ERROR_FORMS.get(path, ErrorForm.OPENAI)


def path_of(scope: Scope) -> str:
    """The path of a request below the application's own prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


_ERROR_FORMS = {route.path: route.error_form for route in ROUTES}


def paths_with(access: Access) -> tuple[str, ...]:
    """The paths of the routes with that access, without their parameters."""
    return tuple(route.path.partition("/{")[0] for route in ROUTES if route.access is access)


def _method(name: str, handlers: tuple[object, ...]) -> Callable[[Request], Awaitable[Response]]:
    found = [getattr(one, name) for one in handlers if hasattr(one, name)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} classes of handlers have the method {name}; one must")
    method: Callable[[Request], Awaitable[Response]] = found[0]
    return method
