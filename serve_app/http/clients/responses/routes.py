"""The handler of ``POST /v1/responses``."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response

from schema.clients.responses import ResponsesRequest
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.bodies import refuse_query
from serve_app.http.clients.answering import answer, asked_body
from serve_app.http.clients.responses.answer import ResponsesAnswer
from serve_app.http.receipts.signing import ReceiptSigner


class ResponsesRoutes:
    """The handler. Errors leave it as `TaskError` that name the fields of the request."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        signer: ReceiptSigner,
        max_body: int,
        image_schemes: Collection[str] = (),
    ) -> None:
        self._dispatcher = dispatcher
        self._signer = signer
        self._max_body = max_body
        self._image_schemes = image_schemes

    async def create_response(self, request: Request) -> Response:
        """``POST /v1/responses``."""
        refuse_query(request)
        body = await asked_body(request, self._dispatcher, self._max_body)
        asked = ResponsesRequest.parse(body, self._image_schemes)
        return await answer(self._dispatcher, self._signer, asked, request, body, ResponsesAnswer)
