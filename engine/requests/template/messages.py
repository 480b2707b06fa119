"""A task's messages as a chat template reads them: dictionaries, in the form that it takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from schema.errors import TaskArgsInvalid
from schema.json_values import check_json, parse_json
from schema.message import ImageBlock, Message


@dataclass(frozen=True)
class MessageForm:
    """How a template takes what can be written in several ways.

    Attributes:
        blocks: contents are lists of blocks, as for vision-language models; else strings.
        arguments: of calls: objects, or strings of JSON, as templates need them that write them
            without `tojson` (DeepSeek V3 and R1).
        no_content: of a message that has calls and no text: an empty text, no such key, or null,
            as templates need it that look for null (DeepSeek V3 and R1).
        nested: name and arguments of a call are in its ``function``, as OpenAI has them.
    """

    blocks: bool = False
    arguments: Literal["object", "string"] = "object"
    no_content: Literal["text", "absent", "null"] = "text"
    nested: bool = True


def conversation(messages: Sequence[Message], form: MessageForm) -> list[dict[str, Any]]:
    """The messages in the form that a template takes."""
    return [_message(message, form) for message in messages]


def _message(message: Message, form: MessageForm) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": message.role}
    if message.content is None and message.tool_calls and form.no_content != "text":
        if form.no_content == "null":
            rendered["content"] = None
    elif not form.blocks:
        rendered["content"] = message.text
    elif not message.content or isinstance(message.content, str):
        rendered["content"] = [{"type": "text", "text": message.content or ""}]
    else:
        rendered["content"] = [
            {"type": "image"} if isinstance(b, ImageBlock) else {"type": "text", "text": b.text}
            for b in message.content
        ]
    if message.name is not None:
        rendered["name"] = message.name
    if message.reasoning_content is not None:
        rendered["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls is not None:
        rendered["tool_calls"] = [_call(call, form) for call in message.tool_calls]
    return rendered


def _call(call: dict[str, Any], form: MessageForm) -> dict[str, Any]:
    """OpenAI's clients send arguments as a string of JSON; most templates expect the object."""
    function = call.get("function")
    if not isinstance(function, dict):
        return _with_arguments(call, form)
    function = _with_arguments(function, form)
    if form.nested:
        return {**call, "function": function}
    return {**{name: value for name, value in call.items() if name != "function"}, **function}


def _with_arguments(function: dict[str, Any], form: MessageForm) -> dict[str, Any]:
    arguments = function.get("arguments")
    if form.arguments == "object" and isinstance(arguments, str):
        try:
            parsed = parse_json(arguments)
            if isinstance(parsed, dict):
                return {**function, "arguments": check_json(parsed)}
        except (TaskArgsInvalid, PydanticCustomError):
            pass  # not a JSON object: the template gets the string
    if form.arguments == "string" and isinstance(arguments, dict):
        return {**function, "arguments": as_json(arguments)}
    return function


def as_json(value: Any) -> str:
    """JSON as templates write it with `tojson`."""
    return json.dumps(value, ensure_ascii=False)
