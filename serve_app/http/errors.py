"""Errors in the form of the API that was asked."""

from __future__ import annotations

import enum
from http import HTTPStatus
from typing import Any

from schema.errors import ErrorResponse
from serve_app.observability.request_record import entry


class ErrorForm(enum.Enum):
    """The forms; the values are the components of ``/openapi.json`` that describe them."""

    OPENAI = "error"
    ANTHROPIC = "anthropic_error"


# https://docs.anthropic.com/en/api/errors; any other status of 500 and more is an api_error.
_ANTHROPIC_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}

# Anthropic's clients look for it, and then send the whole conversation at each turn instead.
_DETAILS: dict[str | None, Any] = {
    "thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
}


def told(error: ErrorResponse, status: int, form: ErrorForm | None = None) -> Any:
    """An error's body.

    Args:
        error: in OpenAI's form, which is that of most routes.
        status: the HTTP status that it is answered with.
        form: of the answer; None: that of the route that is asked.
    """
    if (form or ErrorForm(entry().error_form)) is ErrorForm.OPENAI:
        return error
    other = "api_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    body = {
        "type": _ANTHROPIC_TYPES.get(status, other),
        "message": error["error"]["message"],
    }
    if details := _DETAILS.get(error["error"]["param"]):
        body["details"] = details
    return {"type": "error", "error": body, "request_id": entry().request_id}
