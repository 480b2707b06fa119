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


# https://docs.anthropic.com/en/api/errors; other statuses have the type of the error itself, or
# ``api_error``.
_BY_STATUS = {
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
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
    kind: str = error["error"]["type"]
    return {
        "type": "error",
        "error": {
            "type": _BY_STATUS.get(
                HTTPStatus(status) if status in HTTPStatus._value2member_map_ else HTTPStatus.OK,
                "api_error" if kind == "server_error" else kind,
            ),
            "message": error["error"]["message"],
        },
        "request_id": entry().request_id,
    }
