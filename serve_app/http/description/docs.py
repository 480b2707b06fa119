"""``/openapi.json`` and ``/docs``: the description of the API, for programs and for people."""

from __future__ import annotations

import functools

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from serve_app.http.description.openapi import openapi
from serve_app.http.sse import encode

_STATIC = "docs/static"
# The page loads nothing from other hosts.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


class DocsRoutes:
    """The handlers."""

    def __init__(self, with_keys: bool) -> None:
        self._with_keys = with_keys

    async def openapi_json(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        return Response(_document(self._with_keys), media_type="application/json")

    async def docs_page(self, request: Request) -> Response:
        """``GET /docs``: Swagger UI, whose files come from a package and not from the network."""
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


def static_files() -> Mount:
    """Swagger UI's files. They are not part of the API, and so not in its description."""
    return Mount(f"/{_STATIC}", StaticFiles(packages=[("fastapi_offline", "static")]))


@functools.cache
def _document(with_keys: bool) -> bytes:
    return encode(openapi(with_keys))
