"""The routes that OpenAI's clients call. They read OpenAI's form and answer in it."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response

from schema.clients.openai import ChatCompletionRequest, CompletionRequest
from schema.errors import ModelInvalid
from schema.json_values import clipped
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.bodies import json_response, refuse_query
from serve_app.http.clients.answering import answer, asked_body
from serve_app.http.clients.openai.answers import ChatAnswer, CompletionAnswer
from serve_app.http.clients.openai.prompt_list import answer_list
from serve_app.http.places import places_of
from serve_app.http.receipts.signing import ReceiptSigner


class OpenAIRoutes:
    """The handlers. Errors leave them as `TaskError` that name the fields of the request."""

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

    async def chat_completions(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        refuse_query(request)
        body = await asked_body(request, self._dispatcher, self._max_body)
        asked = ChatCompletionRequest.parse(body, self._image_schemes)
        return await answer(self._dispatcher, self._signer, asked, request, body, ChatAnswer)

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        refuse_query(request)
        body = await asked_body(request, self._dispatcher, self._max_body)
        asked = CompletionRequest.parse(body)
        if asked.num_prompts > 1:
            places = places_of(request.scope)
            return await answer_list(self._dispatcher, asked, len(body), places)
        return await answer(self._dispatcher, self._signer, asked, request, body, CompletionAnswer)

    async def retrieve_model(self, request: Request) -> Response:
        """``GET /v1/models/{id}``: its entry of the list."""
        wanted = request.path_params["id"]
        for model in await self._dispatcher.deployments.models():
            if model["id"] == wanted:
                return json_response(model)
        raise ModelInvalid(
            f"model {clipped(wanted)!r} is not served now; GET /v1/models lists those that are",
            param="model",
        )
