"""The handler of ``GET /v1/receipts/keys``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from serve_app.http.bodies import json_response, refuse_query
from serve_app.http.receipts.keys import ReceiptKeys


class ReceiptRoutes:
    """The handler. What it says is public."""

    def __init__(self, keys: ReceiptKeys | None) -> None:
        self._published = [] if keys is None else keys.published

    async def receipt_keys(self, request: Request) -> Response:
        """``GET /v1/receipts/keys``: the public keys as a JWK Set; the first is the one that signs.

        The set is empty on a server that signs no receipts.
        """
        refuse_query(request)
        return json_response({"keys": self._published})
