"""From a client's request to its answer, whole or streamed: the same for all APIs of clients."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from schema.answers.response import StreamChunk, TaskResponse
from schema.clients.request import ClientRequest
from schema.task import MAX_SEED
from serve_app.graph.dispatcher import Dispatcher
from serve_app.http.bodies import json_response, read_body
from serve_app.http.receipts.signing import ReceiptSigner
from serve_app.http.routes import path_of
from serve_app.http.sse import EventWriter, relay
from serve_app.observability.request_record import entry

SEED_HEADER = "x-seed"


class Answer(EventWriter, Protocol):
    """Translates the answer to one request, whole or in chunks; used once."""

    def whole(self, response: TaskResponse) -> dict[str, Any]:
        """The answer that is not streamed."""
        ...


Asked = TypeVar("Asked", bound=ClientRequest)
Made = TypeVar("Made")


async def asked_body(request: Request, dispatcher: Dispatcher, max_body: int) -> bytes:
    """The body of a request, unless its model was full a moment ago.

    Raises:
        RequestTooLarge: it has more than ``max_body`` bytes.
        TaskArgsInvalid: it is compressed.
        Overloaded: the model was full.
    """
    body = await read_body(request, max_body)
    dispatcher.refuse_if_full(body)
    return body


def receipt_of(answer: TaskResponse | StreamChunk) -> dict[str, Any]:
    """The receipt, to stand beside an answer's other fields; empty where there is none."""
    return {"receipt": answer["receipt"]} if "receipt" in answer else {}


class Begun(NamedTuple, Generic[Made]):
    """What an answer needs before its task runs.

    Attributes:
        seed: of the task: the request's, or drawn.
        answer: translates what the task answers.
        headers: of the HTTP response.
    """

    seed: int
    answer: Made
    headers: dict[str, str]


def begun(asked: Asked, form: Callable[[Asked, str, int, int], Made]) -> Begun[Made]:
    """Begin the answer to a request.

    Args:
        asked: the request.
        form: makes the answer, from the request, its id, the Unix time and the seed.
    """
    seed = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
    made = form(asked, entry().request_id, int(time.time()), seed)
    return Begun(seed, made, {SEED_HEADER: str(seed)})


async def answer(
    dispatcher: Dispatcher,
    signer: ReceiptSigner,
    asked: Asked,
    request: Request,
    body: bytes,
    form: Callable[[Asked, str, int, int], Answer],
) -> Response:
    """Run the task that a request means, and answer in the form of its API.

    Args:
        dispatcher: runs it.
        signer: of receipts.
        asked: the request.
        request: as it came.
        body: of it.
        form: as for `begun`.

    Raises:
        TaskError: in the terms of the request.
    """
    seed, made, headers = begun(asked, form)
    task = asked.task(seed)
    receipt = await signer.begin(task, path_of(request.scope), body)
    if asked.stream:
        chunks = dispatcher.stream(task, len(body))
        return await relay(chunks if receipt is None else receipt.chunks(chunks), made, headers)
    with asked.own_terms():
        response = await dispatcher.run(task, len(body))
    if receipt is not None:
        response = receipt.whole(response)
    return json_response(made.whole(response), headers=headers)
