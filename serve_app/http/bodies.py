"""Bodies of requests and answers: read within limits, written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from schema.errors import RequestTooLarge, TaskArgsInvalid, TaskError, UnknownParameter
from schema.json_values import clipped
from serve_app.http.errors import told
from serve_app.http.sse import encode
from serve_app.observability.request_record import entry
from serve_app.protocol.failures import headers_of

BYTES_PER_MB = 1_000_000
MAX_DIGITS = 18


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is too large: by its length, or (chunked) while reading.

    Raises:
        RequestTooLarge: it has more than ``limit`` bytes.
        TaskArgsInvalid: it is compressed.
    """
    encoding = request.headers.get("content-encoding", "")
    if encoding.lower() not in ("", "identity"):  # the header ignores upper and lower case
        raise TaskArgsInvalid(
            f"the body is compressed ({clipped(encoding)}); send it uncompressed",
            param="content-encoding",
        )
    too_large = RequestTooLarge(
        f"the body is larger than {limit / BYTES_PER_MB:g} MB; send smaller or fewer images"
    )
    length = request.headers.get("content-length", "")
    # `int` refuses to read a number with thousands of digits.
    if length.isdecimal() and (len(length) > MAX_DIGITS or int(length) > limit):
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large
    return bytes(body)


def refuse_query(request: Request, allowed: str | None = None) -> None:
    """Refuse query parameters. A misspelt one would silently give the wrong kind of answer.

    Raises:
        UnknownParameter: there is a parameter other than ``allowed``.
    """
    for name in request.query_params:
        if name != allowed:
            name = clipped(name)
            rest = "there are none here" if allowed is None else f"the only one is {allowed}"
            raise UnknownParameter(f"unknown query parameter {name!r}; {rest}", param=name)


def json_response(
    value: Any,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """An answer with ``value`` as JSON."""
    return Response(encode(value), status, headers, media_type)


def error_response(error: TaskError) -> Response:
    """The answer to a client for an error."""
    entry().error = error.code
    body = told(error.to_dict(), error.http_status)
    return json_response(body, error.http_status, headers_of(error))
