"""``/openapi.json``: the routes, as OpenAPI 3.1 describes them, made from the published schemas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schema.published.schemas import schemas
from serve_app.http.description.response_schemas import ANSWERS

VERSION = "1"
"""Of the interface: the 1 in ``/v1``."""
_REFERENCE = "#/$defs/"
_COMPONENT = "#/components/schemas/"

# Status: what it means here. Each has the one shape of errors.
_ERRORS = {
    400: "The request breaks the contract; `param` is the path of the field",
    401: "A key is needed, or this is none of the server's keys",
    403: "The model's licence has not been accepted by this server's account",
    404: "No such model, or its files are not here",
    408: "The body did not arrive in time; the connection is closed",
    413: "The body is larger than the server reads",
    429: "The key has too many requests open, or sends them too fast",
    499: "The task was cancelled",
    500: "The server failed",
    502: "The hub did not deliver the model",
    503: "The server is full, or something it needs is not there for the moment",
    504: "The task took longer than the server waits",
    507: "The task does not fit into the memory",
}
_EVERYWHERE = (400, 401, 429, 500, 503)
_GENERATION = (403, 404, 408, 413, 499, 502, 504, 507)


def openapi(with_keys: bool) -> dict[str, Any]:
    """The document of a server that asks for keys, or of one that does not."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "GPT Task Serve",
            "version": VERSION,
            "description": "LLM and VLM generation tasks: the answer is a function of the task "
            "alone. Errors have one shape on every route, and are the last event of a stream that "
            "fails after its beginning. Every answer has the header `x-request-id`.",
        },
        "paths": _paths(with_keys),
        "components": {"schemas": _components(), "headers": _HEADERS},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


_HEADERS: dict[str, Any] = {
    "x-request-id": {
        "description": "The id of the request, in all logs too: the client's own or a new one",
        "schema": {"type": "string"},
    },
    "x-seed": {
        "description": "The seed that was used: with it the answer comes again",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "retry-after": {
        "description": "Seconds after which to try again",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "www-authenticate": {"schema": {"type": "string", "const": "Bearer"}},
}
_ERROR_HEADERS = {401: ["www-authenticate"], 429: ["retry-after"], 503: ["retry-after"]}


def _paths(with_keys: bool) -> dict[str, Any]:
    request_id = {
        "name": "x-request-id",
        "in": "header",
        "description": "An id for this request, which its answer and all logs then carry",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:@+/=~-]{1,128}$"},
    }
    stream = {
        "name": "stream",
        "in": "query",
        "description": "Whether the answer comes as server-sent events",
        "schema": {"type": "string", "enum": ["true", "false"]},
    }
    model_id = _in_path("id", "The name of a model; it may have slashes")
    name = _in_path("name", "The name of a schema, with or without `.schema.json`")
    paths = {
        "/v1/tasks": _generation(
            "Run a task", "task", "response", "Each event is a `stream_chunk`", [stream], []
        ),
        "/v1/chat/completions": _generation(
            "Complete a chat, as OpenAI's clients ask",
            "chat_completion_request",
            "chat_completion",
            "Each event is a `chat.completion.chunk`",
            [],
            ["x-seed"],
        ),
        "/v1/completions": _generation(
            "Go on with a text, as OpenAI's clients ask",
            "completion_request",
            "text_completion",
            "Each event is a `text_completion`",
            [],
            ["x-seed"],
        ),
        "/v1/models": _get("What is served, with the card of each replica", "models"),
        "/v1/models/{id}": _get("One model of that list", "model", [404], [model_id]),
        "/health": _get("Whether every model that is always on answers", "health"),
        "/metrics": _get("The server's metrics, for Prometheus", None, media="text/plain"),
        "/schemas/{name}": _get("A JSON Schema", None, [404], [name], "application/schema+json"),
        "/openapi.json": _get("This document", None),
        "/docs": _get("This document as a page", None, media="text/html"),
    }
    for path, item in paths.items():
        item["parameters"] = [request_id]
        if path == "/health" and with_keys:
            item["get"]["security"] = []
    return paths


def _generation(
    summary: str,
    request: str,
    response: str,
    events: str,
    parameters: list[Any],
    headers: list[str],
) -> dict[str, Any]:
    media = {
        "application/json": {"schema": _reference(response)},
        "text/event-stream": {
            # Of one event, as OpenAPI 3.2 describes streams.
            "schema": {
                "type": "object",
                "required": ["data"],
                "properties": {
                    "data": {
                        "type": "string",
                        "description": f"{events} as JSON; an `error`, if the task fails after the "
                        "stream has begun; at the end, `[DONE]`",
                    }
                },
            }
        },
    }
    body = {"application/json": {"schema": _reference(request)}}
    return {
        "post": {
            "summary": summary,
            "parameters": parameters,
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": _answer("The answer, whole or as a stream", media, headers),
                **_errors(_EVERYWHERE + _GENERATION),
            },
        }
    }


def _get(
    summary: str,
    answer: str | None,
    errors: Iterable[int] = (),
    parameters: Iterable[Any] = (),
    media: str = "application/json",
) -> dict[str, Any]:
    is_text = media.startswith("text/")
    schema = _reference(answer) if answer else {"type": "string" if is_text else "object"}
    return {
        "get": {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {
                "200": _answer("It is here", {media: {"schema": schema}}, []),
                **_errors((*_EVERYWHERE, *errors)),
            },
        }
    }


def _errors(statuses: Iterable[int]) -> dict[str, Any]:
    media = {"application/json": {"schema": _reference("error")}}
    return {
        str(status): _answer(_ERRORS[status], media, _ERROR_HEADERS.get(status, []))
        for status in sorted(statuses)
    }


def _answer(description: str, content: dict[str, Any], headers: list[str]) -> dict[str, Any]:
    return {
        "description": description,
        "content": content,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in ["x-request-id", *headers]
        },
    }


def _in_path(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"{_COMPONENT}{name}"}


def _components() -> dict[str, Any]:
    """The published schemas, with their parts beside them: OpenAPI has one place for all."""
    components: dict[str, Any] = {}
    for name, published in schemas().items():
        moved = _moved(published, f"{_COMPONENT}{name}.")
        components |= {f"{name}.{part}": made for part, made in moved.pop("$defs", {}).items()}
        components[name] = {key: moved[key] for key in moved if key not in ("$schema", "$id")}
    return components | ANSWERS


def _moved(value: Any, prefix: str) -> Any:
    """A copy in which references (and the mappings of discriminators) point to ``prefix``."""
    if isinstance(value, dict):
        return {key: _moved(inner, prefix) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, prefix) for inner in value]
    if isinstance(value, str) and value.startswith(_REFERENCE):
        return prefix + value.removeprefix(_REFERENCE)
    return value
