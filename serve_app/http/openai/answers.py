"""Answers as OpenAI's clients read them, made from the responses and chunks of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from schema.clients.openai import ChatCompletionRequest, OpenAIRequest
from schema.errors import TaskError
from schema.response import (
    Choice,
    Delta,
    FinishReason,
    StreamChoice,
    StreamChunk,
    TaskResponse,
    TokenLogprob,
)
from serve_app.http.openai.logprobs import CompletionLogprobs, chat_logprobs
from serve_app.http.sse import DONE, event


class Answer(ABC):
    """Translates the answer to one request, whole or in chunks; used once.

    Beside OpenAI's fields every object has ``seed``: a request with it gets the same answer.
    """

    prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    closing = DONE

    def __init__(self, asked: OpenAIRequest, request_id: str, created: int, seed: int) -> None:
        self._asked = asked
        self._id = f"{self.prefix}-{request_id}"
        self._created = created
        self._seed = seed
        self._last: StreamChunk | None = None

    def whole(self, response: TaskResponse) -> dict[str, Any]:
        """The answer that is not streamed."""
        choices = []
        for choice in response["choices"]:
            listed = choice.get("logprobs")
            logprobs = None if listed is None else self._logprobs(choice["index"], listed)
            choices.append(self._choice(choice, logprobs))
        return self._object(self.whole_kind, response, choices) | {"usage": response["usage"]}

    def chunk(self, chunk: StreamChunk) -> bytes:
        """The events of the next chunk of the stream; empty if it has nothing new."""
        choices = [] if self._last is not None else self._begin(self._asked.n or 1)
        for choice in chunk["choices"]:
            choices += self._grown(choice)
        self._last = chunk
        return b"".join(event(self._chunk(chunk, [choice])) for choice in choices)

    def end(self) -> bytes:
        """The event with the usage, if the request asks for it."""
        if self._last is None or not self._asked.wants_usage:
            return b""
        return event(self._chunk(self._last, []) | {"usage": self._last["usage"]})

    def failed(self, error: TaskError) -> bytes:
        """The error's body, as an HTTP error has it."""
        return event(error.to_dict())

    def error(self, error: TaskError) -> TaskError:
        """An error of the task, which names the fields of this request."""
        return self._asked.in_own_terms(error)

    def _grown(self, choice: StreamChoice) -> Iterator[dict[str, Any]]:
        """What a choice grew by and its end come one after the other, as OpenAI sends them."""
        index, delta, reason = choice["index"], choice["delta"], choice["finish_reason"]
        listed = choice.get("logprobs")
        if listed or any(value for name, value in delta.items() if name != "role"):
            yield self._delta(index, delta, None, self._logprobs(index, listed) if listed else None)
        if reason is not None:
            yield self._delta(index, {"role": "assistant", "content": ""}, reason, None)

    def _chunk(self, chunk: StreamChunk, choices: list[dict[str, Any]]) -> dict[str, Any]:
        made = self._object(self.chunk_kind, chunk, choices)
        return made | {"usage": None} if self._asked.wants_usage else made

    def _object(
        self, kind: str, answer: TaskResponse | StreamChunk, choices: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": answer["model"],
            "system_fingerprint": answer.get("system_fingerprint"),
            "seed": self._seed,
            "choices": choices,
        }

    @abstractmethod
    def _choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def _begin(self, count: int) -> list[dict[str, Any]]:
        """What a stream says of its choices before their text."""

    @abstractmethod
    def _delta(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None,
        logprobs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """What was added to a choice, or its end."""

    @abstractmethod
    def _logprobs(self, index: int, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next log probabilities of a choice. Of its text a stop string is cut, here not."""


class ChatAnswer(Answer):
    """``chat.completion`` and ``chat.completion.chunk``."""

    prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        message: dict[str, Any] = {**choice["message"], "refusal": None}
        return {
            "index": choice["index"],
            "message": message | {"content": message["content"] or self._no_content},
            "logprobs": logprobs,
            "finish_reason": choice["finish_reason"],
        }

    def _begin(self, count: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": self._no_content}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(count)
        ]

    def _delta(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None,
        logprobs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        sent = {name: value for name, value in delta.items() if value and name != "role"}
        if reason is None and not sent:  # only log probabilities, of text that is held back
            sent = {"content": self._no_content}
        return {"index": index, "delta": sent, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
        return chat_logprobs(listed)

    @property
    def _no_content(self) -> str | None:
        """As with OpenAI, null where calls may stand in the text's place."""
        assert isinstance(self._asked, ChatCompletionRequest)
        return None if self._asked.tools else ""


class CompletionAnswer(Answer):
    """``text_completion``, which is what the chunks are called too."""

    prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"

    def __init__(self, asked: OpenAIRequest, request_id: str, created: int, seed: int) -> None:
        super().__init__(asked, request_id, created, seed)
        self._forms = [CompletionLogprobs() for _ in range(asked.n or 1)]

    def _choice(self, choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        text = choice["message"]["content"]
        return self._text(choice["index"], text, choice["finish_reason"], logprobs)

    def _begin(self, count: int) -> list[dict[str, Any]]:
        return []

    def _delta(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None,
        logprobs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        return self._text(index, delta["content"], reason, logprobs)

    def _logprobs(self, index: int, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self._forms[index].push(listed)

    @staticmethod
    def _text(
        index: int, text: str, reason: FinishReason | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
