"""The routes that OpenAI's clients call. They read OpenAI's form and answer in it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response

from schema.errors import ModelInvalid
from schema.json_values import clipped
from schema.openai import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from schema.task import MAX_SEED
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.bodies import json_response, read_body, refuse_query
from serve_app.http.openai.prompt_list import PromptList
from serve_app.http.openai.responses import Answer, ChatAnswer, CompletionAnswer
from serve_app.http.places import FurtherPlaces, places_of
from serve_app.http.sse import relay
from serve_app.observability.request_record import entry

SEED_HEADER = "x-seed"


class OpenAIRoutes:
    """The handlers. Errors leave them as `TaskError` that name the fields of the request."""

    def __init__(
        self, dispatcher: Dispatcher, max_body: int, image_schemes: Collection[str] = ()
    ) -> None:
        self._dispatcher = dispatcher
        self._max_body = max_body
        self._image_schemes = image_schemes

    async def chat_completions(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        refuse_query(request)
        body = await read_body(request, self._max_body)
        self._dispatcher.refuse_if_full(body)
        asked = ChatCompletionRequest.parse(body, self._image_schemes)
        return await self._answer(asked, len(body), ChatAnswer, places_of(request.scope))

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        refuse_query(request)
        body = await read_body(request, self._max_body)
        self._dispatcher.refuse_if_full(body)
        asked = CompletionRequest.parse(body)
        return await self._answer(asked, len(body), CompletionAnswer, places_of(request.scope))

    async def retrieve_model(self, request: Request) -> Response:
        """``GET /v1/models/{id}``: its entry of the list; the first, if there are variants."""
        wanted = request.path_params["id"]
        for model in await self._dispatcher.deployments.models():
            if model["id"] == wanted:
                return json_response(model)
        raise ModelInvalid(f"model {clipped(wanted)!r} is not served now", param="model")

    async def _answer(
        self, asked: OpenAIRequest, num_bytes: int, form: type[Answer], places: FurtherPlaces
    ) -> Response:
        seed = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
        task, *others = [asked.task(seed, number) for number in range(asked.num_prompts)]
        answer = form(asked, entry().request_id, int(time.time()), seed)
        headers = {SEED_HEADER: str(seed)}
        if others:
            tasks = PromptList(self._dispatcher, asked, [task, *others], num_bytes, places)
            if asked.stream:
                return await relay(tasks.stream(), answer, headers)
            return json_response(answer.whole(await tasks.run()), headers=headers)
        if asked.stream:
            return await relay(self._dispatcher.stream(task, num_bytes), answer, headers)
        with asked.own_terms():
            response = await self._dispatcher.run(task, num_bytes)
        return json_response(answer.whole([response]), headers=headers)
