"""The web chat's access to the server: through OpenAI's client, like any other client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, get_args

from openai import (
    APIConnectionError,
    APIError,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    Omit,
    OpenAIError,
)
from openai.types.chat import ChatCompletionChunk

from schema.model_variant import Dtype, ModelVariant, QuantizeBits
from serve_app.ui.answer import Answer

_DTYPES = {"auto": "the model's own dtype"}


class ChatError(Exception):
    """An error that is shown to the user; its text is the message."""


def label_of(variant: ModelVariant) -> str:
    """The name of a variant in the list of its model's variants."""
    return replace(variant, dtype=_DTYPES.get(variant.dtype, variant.dtype)).label


def variants_of(served: Sequence[ModelVariant], model: str) -> list[ModelVariant]:
    """The variants of a model. A model that is not listed may be loaded on demand, in any."""
    if found := [variant for variant in served if variant.id == model]:
        return found
    dtypes = sorted(get_args(Dtype), key=lambda dtype: dtype != "auto")
    return [
        ModelVariant(model, dtype, bits)
        for bits in (None, *get_args(QuantizeBits))
        for dtype in dtypes
    ]


class Server:
    """The server at one address. Used from one event loop.

    A key is given with each call and not kept; "" sends no key.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        # Errors are shown; the client does not try again by itself. The address is the operator's,
        # often this machine's, so no proxy of the environment is used.
        self._client = AsyncOpenAI(
            base_url=f"{address}/v1",
            api_key="none",
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(trust_env=False),
        )

    async def variants(self, key: str) -> list[ModelVariant]:
        """The variants that the server has. Raises `ChatError`."""
        try:
            listed = await self._client.models.list(extra_headers=_authorization(key))
        except OpenAIError as error:
            raise ChatError(self._explained(error)) from None
        return [
            ModelVariant(entry.id, variant.get("dtype", "auto"), variant.get("quantize_bits", None))
            for entry in listed.data
            for variant in getattr(entry, "variants", None) or [{}]
        ]

    async def fill(self, answer: Answer, request: dict[str, Any], key: str) -> None:
        """Stream a chat completion into ``answer``; when cancelled, the connection is closed.

        Args:
            request: the body, without the fields of streaming. Fields that OpenAI does not have are
                allowed.

        Raises:
            ChatError: with the server's own message. Text that came before is in ``answer``.
        """
        body = {"stream": True, "stream_options": {"include_usage": True}, **request}
        try:
            async for chunk in self._chunks(body, key):
                _add(answer, chunk)
        except OpenAIError as error:
            raise ChatError(self._explained(error)) from None
        if answer.finish_reason is None:
            raise ChatError("The server ended the answer before it was complete.")

    async def _chunks(
        self, body: dict[str, Any], key: str
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        fields = {name: body[name] for name in ("model", "messages", "stream")}
        others = {name: value for name, value in body.items() if name not in fields}
        stream = await self._client.chat.completions.create(
            **fields, extra_body=others, extra_headers=_authorization(key)
        )
        async with stream:
            async for chunk in stream:
                yield chunk

    def _explained(self, error: OpenAIError) -> str:
        if isinstance(error, APIConnectionError):
            return f"The server at {self._address} does not answer: {error}"
        if isinstance(error, APIError) and isinstance(error.body, dict):
            return str(error.body.get("message") or error)
        return str(error)


def _authorization(key: str) -> dict[str, Any]:
    if not key:
        return {"Authorization": Omit()}
    if not (key.isascii() and key.isprintable()):
        raise ChatError("The API key has characters that are not allowed in a key.")
    return {"Authorization": f"Bearer {key}"}


def _add(answer: Answer, chunk: ChatCompletionChunk) -> None:
    answer.seed = getattr(chunk, "seed", None)
    answer.fingerprint = chunk.system_fingerprint
    if chunk.usage is not None:
        answer.prompt_tokens = chunk.usage.prompt_tokens
        answer.completion_tokens = chunk.usage.completion_tokens
    for choice in chunk.choices:
        answer.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        answer.content += choice.delta.content or ""
        answer.finish_reason = choice.finish_reason or answer.finish_reason
