"""Answers as clients of Anthropic's Messages API read them.

Events: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic_core import PydanticCustomError, from_json

from schema.answers.response import FinishReason, StreamChunk, TaskResponse, Usage
from schema.clients.anthropic import MessagesRequest
from schema.errors import TaskError
from schema.json_values import check_json
from serve_app.http.clients.answering import receipt_of
from serve_app.http.clients.parts import Change, Part, Parts, parts_of
from serve_app.http.errors import ErrorForm, told
from serve_app.http.sse import event

SIGNATURE = "unsigned"
"""Of thinking. Clients send back only thinking that has a signature; here nothing checks it."""

_REASONS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}
INVALID_JSON = "INVALID_JSON"
"""The key under which Anthropic's documentation lets clients wrap arguments that are not JSON."""


class MessagesAnswer:
    """A message, whole or as events.

    Beside Anthropic's fields a message has ``seed``: a request with it gets the same answer.
    """

    closing = b""

    def __init__(self, asked: MessagesRequest, request_id: str, created: int, seed: int) -> None:
        self._asked = asked
        self._id = f"msg_{request_id}"
        self._seed = seed
        self._parts = Parts()
        self._ending: dict[str, Any] = _ending("stop", None)
        self._last: StreamChunk | None = None

    def whole(self, response: TaskResponse) -> dict[str, Any]:
        """The message that is not streamed."""
        (choice,) = response["choices"]
        content = [_block(part) for part in parts_of(choice)]
        ending = _ending(choice["finish_reason"], choice.get("stop_string"))
        return self._message(response, content, ending) | receipt_of(response)

    def chunk(self, chunk: StreamChunk) -> bytes:
        """The events of the next chunk of the stream; empty if it has nothing new."""
        made: list[dict[str, Any]] = []
        if self._last is None:
            open_end = {"stop_reason": None, "stop_sequence": None}
            made.append({"type": "message_start", "message": self._message(chunk, [], open_end)})
        self._last = chunk
        (choice,) = chunk["choices"]
        for change in self._parts.push(choice):
            made += _events(change)
        if (reason := choice["finish_reason"]) is not None:
            self._ending = _ending(reason, choice.get("stop_string"))
        return _written(made)

    def end(self) -> bytes:
        """The end of the last block, and of the message."""
        if self._last is None:
            return b""
        made = [one for change in self._parts.end() for one in _events(change)]
        usage = _usage(self._last["usage"])
        ending = {"type": "message_delta", "delta": self._ending, "usage": usage}
        made.append(ending | receipt_of(self._last))
        made.append({"type": "message_stop"})
        return _written(made)

    def failed(self, error: TaskError) -> bytes:
        """The event of an error that ends the stream."""
        return _written([told(error.to_dict(), error.http_status, ErrorForm.ANTHROPIC)])

    def error(self, error: TaskError) -> TaskError:
        """An error of the task, which names the fields of this request."""
        return self._asked.in_own_terms(error)

    def _message(
        self,
        answer: TaskResponse | StreamChunk,
        content: list[dict[str, Any]],
        ending: Mapping[str, Any],
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": answer["model"],
            "content": content,
            **ending,
            "usage": _usage(answer["usage"]),
            "seed": self._seed,
            "system_fingerprint": answer.get("system_fingerprint"),
        }


def _ending(reason: FinishReason, stop_string: str | None) -> dict[str, Any]:
    stopped = reason == "stop" and stop_string is not None
    return {
        "stop_reason": "stop_sequence" if stopped else _REASONS[reason],
        "stop_sequence": stop_string if stopped else None,
    }


def _usage(usage: Usage) -> dict[str, int]:
    """Tokens of caches are not counted apart."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
    }


def _block(part: Part) -> dict[str, Any]:
    if part.kind == "call":
        arguments = _arguments(part.text)
        return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": arguments}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": part.text, "signature": SIGNATURE}
    return {"type": "text", "text": part.text}


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object; those that were cut as far as they go.

    Anthropic's clients read the pieces of a stream in the same way. What a request may not have
    (NaN, which is not JSON, or integers of many digits) could not be sent back as it is.
    """
    try:
        read = from_json(text or "{}", allow_partial="trailing-strings")
        if isinstance(read, dict):
            return check_json(read)
    except (ValueError, PydanticCustomError):
        pass
    return {INVALID_JSON: text}


def _events(change: Change) -> Iterator[dict[str, Any]]:
    part = change.part
    place = {"index": part.index}
    if change.kind == "begun":
        yield {"type": "content_block_start", **place, "content_block": _empty(part)}
        return
    if change.kind == "grown":
        if part.kind == "call":
            delta = {"type": "input_json_delta", "partial_json": change.text}
        elif part.kind == "reasoning":
            delta = {"type": "thinking_delta", "thinking": change.text}
        else:
            delta = {"type": "text_delta", "text": change.text}
        yield {"type": "content_block_delta", **place, "delta": delta}
        return
    if part.kind == "reasoning":
        signed = {"type": "signature_delta", "signature": SIGNATURE}
        yield {"type": "content_block_delta", **place, "delta": signed}
    yield {"type": "content_block_stop", **place}


def _empty(part: Part) -> dict[str, Any]:
    """A block as it begins."""
    empty = _block(Part(part.index, part.kind, call_id=part.call_id, name=part.name))
    return empty | {"signature": ""} if part.kind == "reasoning" else empty


def _written(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(event(one, one["type"]) for one in events)
