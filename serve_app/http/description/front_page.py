"""``GET /``: a page with links, for people who open the server's address in a browser."""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from serve_app.http.description.web_chat import WebChat

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>GPT Task Serve</title>
<h1>GPT Task Serve</h1>
<ul>
{links}
</ul>
</html>
"""
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_LINKS = (
    ("/docs", "the API, with a form to try each route"),
    ("/openapi.json", "the same for programs"),
    ("/v1/models", "the models that are served"),
    ("/health", "whether they answer"),
)


class FrontPage:
    """The handler. The page says nothing that the server keeps behind a key."""

    def __init__(self) -> None:
        self._chat = WebChat()

    async def front_page(self, request: Request) -> Response:
        """``GET /``."""
        root = request.scope.get("root_path", "")
        links = [(f"{root}{path}", what) for path, what in _LINKS]
        if (chat := await self._chat.prefix()) is not None:
            links.insert(0, (chat, "the web chat"))
        listed = "\n".join(
            f'<li><a href="{escape(path)}">{escape(path)}</a>: {what}' for path, what in links
        )
        headers = {"content-security-policy": _POLICY}
        return HTMLResponse(_PAGE.format(links=listed), headers=headers)
