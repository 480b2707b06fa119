"""``/openapi.json`` and ``/docs``: the description of the API, for programs and for people."""

from __future__ import annotations

import functools

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from serve_app.http.description.openapi import openapi
from serve_app.http.sse import encode

_STATIC = "docs/static"
# The page loads nothing from elsewhere, whatever it is made to show.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


def docs_routes(with_keys: bool) -> list[BaseRoute]:
    """The routes; Swagger UI's files come from a package, not from the network."""

    async def openapi_json(request: Request) -> Response:
        return Response(_document(with_keys), media_type="application/json")

    return [
        Route("/openapi.json", openapi_json, methods=["GET"]),
        Route("/docs", _page, methods=["GET"]),
        Mount(f"/{_STATIC}", StaticFiles(packages=[("fastapi_offline", "static")])),
    ]


@functools.cache
def _document(with_keys: bool) -> bytes:
    return encode(openapi(with_keys))


async def _page(request: Request) -> Response:
    # Relative addresses: the application may be served below a prefix.
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="GPT Task Serve",
        swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{_STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{_STATIC}/favicon.png",
        swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": 0},
    )
    page.headers["content-security-policy"] = _POLICY
    return page
