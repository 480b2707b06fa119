"""Answers as clients of OpenAI's Responses API read them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from schema.answers.response import FinishReason, StreamChunk, TaskResponse, Usage
from schema.clients.responses import ResponsesRequest
from schema.errors import RateLimited, TaskArgsInvalid, TaskError
from serve_app.http.clients.answering import receipt_of
from serve_app.http.clients.parts import Part, Parts, parts_of
from serve_app.http.clients.responses.items import Items
from serve_app.http.sse import event

_ERROR_CODES = {TaskArgsInvalid: "invalid_prompt", RateLimited: "rate_limit_exceeded"}
"""OpenAI has a list of codes for a response that has failed; any other error is server_error."""


class ResponsesAnswer:
    """A response, whole or as events. Each event has its number in the stream.

    Beside OpenAI's fields a response has ``seed``: a request with it gets the same answer.
    """

    closing = b""
    """As with OpenAI, the last event says that it is the last."""

    def __init__(self, asked: ResponsesRequest, request_id: str, created: int, seed: int) -> None:
        self._asked = asked
        self._created = created
        self._seed = seed
        self._id = f"resp_{request_id}"
        self._items = Items(request_id, asked.offered)
        self._parts = Parts()
        self._number = 0
        self._reason: FinishReason = "stop"
        self._last: StreamChunk | None = None

    def whole(self, response: TaskResponse) -> dict[str, Any]:
        """The response that is not streamed."""
        (choice,) = response["choices"]
        self._reason = choice["finish_reason"]
        return self._ended(parts_of(choice), response)

    def chunk(self, chunk: StreamChunk) -> bytes:
        """The events of the next chunk of the stream; empty if it has nothing new."""
        told: list[dict[str, Any]] = []
        if self._last is None:
            begun = self._response("in_progress", [], chunk)
            told += [
                {"type": "response.created", "response": begun},
                {"type": "response.in_progress", "response": begun},
            ]
        self._last = chunk
        (choice,) = chunk["choices"]
        for change in self._parts.push(choice):
            told += self._items.events(change, "completed")
        self._reason = choice["finish_reason"] or self._reason
        return self._events(told)

    def end(self) -> bytes:
        """The end of the last item, and the event with the whole response."""
        if self._last is None:
            return b""
        told: list[dict[str, Any]] = []
        for change in self._parts.end():
            told += self._items.events(change, self._status)
        response = self._ended(self._parts.parts, self._last)
        told.append({"type": f"response.{self._status}", "response": response})
        return self._events(told)

    def failed(self, error: TaskError) -> bytes:
        """The event of an error that ends the stream."""
        output = [
            self._items.item(part, "completed" if part.is_whole else "incomplete")
            for part in self._parts.parts
        ]
        response = self._response("failed", output, self._last)
        response["error"] = {
            "code": next(
                (code for kind, code in _ERROR_CODES.items() if isinstance(error, kind)),
                "server_error",
            ),
            "message": error.message,
            "param": error.param,
            "type": error.type,
        }
        return self._events([{"type": "response.failed", "response": response}])

    def error(self, error: TaskError) -> TaskError:
        """An error of the task, which names the fields of this request."""
        return self._asked.in_own_terms(error)

    @property
    def _status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _events(self, told: Iterable[dict[str, Any]]) -> bytes:
        made = []
        for each in told:
            made.append(event({**each, "sequence_number": self._number}, each["type"]))
            self._number += 1
        return b"".join(made)

    def _ended(self, parts: list[Part], answer: TaskResponse | StreamChunk) -> dict[str, Any]:
        last = len(parts) - 1
        output = [
            self._items.item(part, self._status if part.index == last else "completed")
            for part in parts
        ]
        response = self._response(self._status, output, answer)
        response["usage"] = _usage(answer["usage"])
        response |= receipt_of(answer)
        if self._status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        return response

    def _response(
        self, status: str, output: list[dict[str, Any]], answer: TaskResponse | StreamChunk | None
    ) -> dict[str, Any]:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {
                "effort": asked.reasoning.effort if asked.reasoning is not None else None,
                "summary": None,
            },
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": _plain(asked.text, {"format": {"type": "text"}}),
            "tool_choice": _plain(asked.tool_choice, "auto"),
            "tools": list(asked.tools or ()),
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": asked.metadata or {},
            "seed": self._seed,
            "system_fingerprint": answer.get("system_fingerprint") if answer else None,
        }


def _plain(value: Any, default: Any) -> Any:
    """A part of the request as JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, exclude_none=True) or default
    return default if value is None else value


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens of caches and of reasoning are not counted apart; clients want a number there."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
