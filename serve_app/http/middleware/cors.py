"""CORS: calls from web pages of other origins."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from schema.errors import TaskArgsInvalid
from serve_app.config.limit_args import CorsArgs
from serve_app.http.bodies import error_response


class Cors(CORSMiddleware):
    """Starlette's, with the API's methods, headers and shape of errors."""

    def __init__(self, app: ASGIApp, args: CorsArgs) -> None:
        super().__init__(
            app,
            allow_origins=args.allow_origins,
            allow_methods=["GET", "POST"],
            # OpenAI's client for browsers sends a dozen headers of its own.
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "x-seed", "retry-after"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether a page may call the API."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        return error_response(TaskArgsInvalid(bytes(response.body).decode()))
