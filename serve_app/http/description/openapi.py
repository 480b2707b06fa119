"""``/openapi.json``: the table of routes and the published schemas, as OpenAPI 3.1 writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schema.published.schemas import schemas
from serve_app.http.description.response_schemas import ANSWERS
from serve_app.http.errors import ErrorForm
from serve_app.http.routes import ROUTES, Access, Parameter, Route

VERSION = "1"
"""The version of the interface: the 1 in ``/v1``."""
_REFERENCE = "#/$defs/"
_COMPONENT = "#/components/schemas/"

# Status: what it means here. All have the same shape of errors.
_ERRORS = {
    400: "The request breaks the contract; `param` is the path of the field",
    401: "A key is needed, or this key is not one of the server's",
    403: "The model's licence has not been accepted by this server's account",
    404: "There is no such model, or its files are not here",
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


def openapi(with_keys: bool) -> dict[str, Any]:
    """The document of a server that asks for keys, or of one that does not."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "GPT Task Serve",
            "version": VERSION,
            "description": "LLM and VLM generation tasks: the answer is a function of the task "
            "alone. Errors have one shape on every route but Anthropic's, and are the last event "
            "of a stream that fails after it has begun. Every answer has the header "
            "`x-request-id`.",
        },
        "paths": _paths(with_keys),
        "components": {"schemas": _components(), "headers": _HEADERS},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "plain_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["security"] = [{"key": []}, {"plain_key": []}]
    return document


_HEADERS: dict[str, Any] = {
    "x-request-id": {
        "description": "The id of the request, in all logs too: the client's own or a new one",
        "schema": {"type": "string"},
    },
    "x-seed": {
        "description": "The seed that was used: a request with it gets the same answer",
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
    paths: dict[str, Any] = {}
    for route in ROUTES:
        operation = _operation(route)
        if route.access is Access.OPEN and with_keys:
            operation["security"] = []
        paths.setdefault(route.template, {})[route.method.lower()] = operation
    for item in paths.values():
        item["parameters"] = [request_id]
    return paths


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "parameters": [_parameter(parameter) for parameter in route.parameters],
    }
    if route.request is not None:
        body = {"application/json": {"schema": _reference(route.request)}}
        operation["requestBody"] = {"required": True, "content": body}
    if route.response is not None:
        schema = _reference(route.response)
    else:
        schema = {"type": "string" if route.media_type.startswith("text/") else "object"}
    content: dict[str, Any] = {route.media_type: {"schema": schema}}
    description = "The answer"
    if route.events is not None:
        content["text/event-stream"] = {"schema": _event(route.events)}
        description = "The answer, whole or as a stream"
    operation["responses"] = {
        "200": _answer(description, content, route.headers),
        **_errors((*_EVERYWHERE, *route.errors), route.error_form),
    }
    return operation


def _event(description: str) -> dict[str, Any]:
    """The schema of one event, as OpenAPI 3.2 describes streams."""
    data = {
        "type": "string",
        "description": description,
    }
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    in_path = parameter.place == "path"
    text: dict[str, Any] = {"type": "string"}
    if parameter.choices:
        text["enum"] = list(parameter.choices)
    return {
        "name": parameter.name,
        "in": parameter.place,
        **({"required": True} if in_path else {}),
        "description": parameter.description,
        "schema": text | ({"minLength": 1} if in_path else {}),
    }


def _errors(statuses: Iterable[int], form: ErrorForm) -> dict[str, Any]:
    media = {"application/json": {"schema": _reference(form.value)}}
    return {
        str(status): _answer(_ERRORS[status], media, _ERROR_HEADERS.get(status, []))
        for status in sorted(statuses)
    }


def _answer(description: str, content: dict[str, Any], headers: Iterable[str]) -> dict[str, Any]:
    return {
        "description": description,
        "content": content,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in ["x-request-id", *headers]
        },
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
