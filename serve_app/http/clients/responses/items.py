"""The items of a response's output, and the events of their growth.

Types: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from schema.answers.response import TokenLogprob, TopLogprob
from schema.clients.offered import OfferedTool
from serve_app.http.clients.parts import Change, Part

_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}


class Items:
    """The items of one response; an item is a part of the answer under an id."""

    def __init__(self, response_id: str, offered: Iterable[OfferedTool]) -> None:
        """``offered`` are the functions that the model may call."""
        self._response_id = response_id
        self._offered = {tool.value["function"]["name"]: tool for tool in offered}

    def item(self, part: Part, status: str) -> dict[str, Any]:
        """A part as an item of the output.

        Args:
            part: the part.
            status: completed, incomplete or in_progress.
        """
        common = {"id": self._id(part), "status": status}
        if part.kind == "call":
            return {
                "type": "function_call",
                **common,
                "call_id": part.call_id,
                **self._function(part),
                "arguments": part.text,
            }
        begun = part.is_whole or bool(part.pieces)
        content = [_content(part, part.text)] if begun else []
        if part.kind == "reasoning":
            return {"type": "reasoning", **common, "summary": [], "content": content}
        return {"type": "message", **common, "role": "assistant", "content": content}

    def events(self, change: Change, status: str) -> Iterator[dict[str, Any]]:
        """The events of a change, without their numbers.

        Args:
            change: what has happened to a part.
            status: of the item, if it has ended.
        """
        part = change.part
        place = {"item_id": self._id(part), "output_index": part.index}
        added = {"output_index": part.index}
        if change.kind == "begun":
            item = self.item(part, "in_progress")
            yield {"type": "response.output_item.added", **added, "item": item}
            if part.kind != "call":
                shown = {"content_index": 0, "part": _content(part, "")}
                yield {"type": "response.content_part.added", **place, **shown}
        elif change.kind == "grown":
            yield {"type": f"{_NAMES[part.kind]}.delta", **place, **_grown(change)}
        else:
            yield {"type": f"{_NAMES[part.kind]}.done", **place, **self._whole(part)}
            if part.kind != "call":
                shown = {"content_index": 0, "part": _content(part, part.text)}
                yield {"type": "response.content_part.done", **place, **shown}
            item = self.item(part, status)
            yield {"type": "response.output_item.done", **added, "item": item}

    def _whole(self, part: Part) -> dict[str, Any]:
        if part.kind == "call":
            return {"name": self._function(part)["name"], "arguments": part.text}
        whole: dict[str, Any] = {"content_index": 0, "text": part.text}
        return whole | _told(part, part.logprobs)

    def _function(self, part: Part) -> dict[str, str]:
        """The function that a call names, as the client knows it."""
        tool = self._offered.get(part.name)
        if tool is None or tool.namespace is None:
            return {"name": part.name}
        return {"name": tool.name, "namespace": tool.namespace}

    def _id(self, part: Part) -> str:
        return f"{_PREFIXES[part.kind]}_{self._response_id}_{part.index}"


_NAMES = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


def _content(part: Part, text: str) -> dict[str, Any]:
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    told = _logprobs(part.logprobs) if text else []
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": told}


def _grown(change: Change) -> dict[str, Any]:
    if change.part.kind == "call":
        return {"delta": change.text}
    grown: dict[str, Any] = {"content_index": 0, "delta": change.text}
    return grown | _told(change.part, change.logprobs)


def _told(part: Part, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"logprobs": _logprobs(listed)} if part.kind == "text" else {}


def _logprobs(listed: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """The engine's entries are in OpenAI's form already, but for tokens without bytes."""
    return [
        {**_token(token), "top_logprobs": [_token(other) for other in token["top_logprobs"]]}
        for token in listed
    ]


def _token(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
    return {**token, "bytes": token["bytes"] or []}
