"""Makes receipts of answers and signs them, for the requests that ask for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from schema.answers.canonical import NotCanonicalError, digest
from schema.answers.receipt import VERSION, Receipt
from schema.answers.response import StreamChunk, TaskResponse, collect
from schema.answers.signature import SIGNATURE, sign
from schema.errors import TaskArgsInvalid, TaskExecutionError
from schema.json_values import parse_json
from schema.task import Task
from serve_app.http.receipts.keys import ReceiptKeys


class ReceiptSigner:
    """Begins the receipts of requests. Without keys it refuses the requests that ask for one."""

    def __init__(self, keys: ReceiptKeys | None) -> None:
        self._keys = keys

    async def begin(self, task: Task, route: str, body: bytes) -> PendingReceipt | None:
        """The receipt of a request before its answer; None if the task does not ask for one.

        Args:
            task: what the request means.
            route: its path.
            body: its body, JSON that has been parsed before.

        Raises:
            TaskArgsInvalid: there is no key, or the body has no canonical form.
        """
        if not task.receipt:
            return None
        if self._keys is None:
            raise TaskArgsInvalid(
                "receipt: this server has no key to sign receipts with; leave it out, or ask the "
                "operator for one (`receipts` in the configuration)",
                param="receipt",
            )
        try:
            # A body of 32 MB takes seconds, and the event loop has other requests.
            asked = await asyncio.to_thread(_body_digest, body)
        except NotCanonicalError as error:
            place = ".".join(map(str, error.path))
            raise TaskArgsInvalid(
                f"{place or 'The body'} {error.problem}; or leave out receipt, which has a digest "
                "of that form",
                param=place or None,
            ) from None
        return PendingReceipt(self._keys, task.seed, route, asked)


class PendingReceipt:
    """The receipt of one answer that is not there yet."""

    def __init__(self, keys: ReceiptKeys, seed: int, route: str, request_digest: str) -> None:
        self._keys = keys
        self._seed = seed
        self._route = route
        self._request_digest = request_digest

    def whole(self, response: TaskResponse) -> TaskResponse:
        """The response with its receipt in the place of the engine's record."""
        receipt = self._receipt(response)
        rest = {name: value for name, value in response.items() if name != "record"}
        return cast(TaskResponse, {**rest, "receipt": receipt})

    async def chunks(
        self, chunks: AsyncGenerator[StreamChunk, None]
    ) -> AsyncGenerator[StreamChunk, None]:
        """The same chunks, of which the last one has the receipt."""
        told: list[StreamChunk] = []
        async with aclosing(chunks):
            async for chunk in chunks:
                told.append(chunk)
                if "record" in chunk:
                    receipt = self._receipt(collect(told))
                    rest = {name: value for name, value in chunk.items() if name != "record"}
                    yield cast(StreamChunk, {**rest, "receipt": receipt})
                else:
                    yield chunk

    def _receipt(self, response: TaskResponse) -> Receipt:
        if "record" not in response:
            raise TaskExecutionError("the engine has kept no record of the answer for its receipt")
        record = response["record"]
        choices = [
            {
                "index": choice["index"],
                "message_digest": digest(choice["message"]),
                "token_ids_digest": kept["token_ids_digest"],
                "finish_reason": choice["finish_reason"],
                "trace": kept["trace"],
            }
            for choice, kept in zip(response["choices"], record["choices"], strict=True)
        ]
        fields: dict[str, Any] = {
            "version": VERSION,
            "route": self._route,
            "request_digest": self._request_digest,
            "model": response["model"],
            "system_fingerprint": response["system_fingerprint"],
            "dtype": record["dtype"],
            "quantize_bits": record["quantize_bits"],
            "layout": record["layout"],
            "seed": self._seed,
            "choices": choices,
            "usage": response["usage"],
            "key_id": self._keys.key_id,
        }
        return cast(Receipt, {**fields, SIGNATURE: sign(fields, self._keys.private)})


def _body_digest(body: bytes) -> str:
    return digest(parse_json(body))
