"""What a client reads in an answer: by the types of the official clients, whatever the route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anthropic.types as messages
import httpx
import openai.types.chat as chat
import openai.types.responses as responses
from pydantic import TypeAdapter

_EVENT: TypeAdapter[responses.ResponseStreamEvent] = TypeAdapter(responses.ResponseStreamEvent)
_MESSAGES_EVENT: TypeAdapter[messages.RawMessageStreamEvent] = TypeAdapter(
    messages.RawMessageStreamEvent
)


@dataclass
class Said:
    """What a model has said: its text, and its calls as names and arguments."""

    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)


def read(path: str, answer: httpx.Response) -> Said:
    """An answer of one of the routes, whole or streamed."""
    assert answer.status_code == 200, answer.text
    streamed = answer.headers["content-type"].startswith("text/event-stream")
    match path.partition("?")[0]:
        case "/v1/chat/completions":
            return _of_chunks(answer) if streamed else _of_completion(answer)
        case "/v1/responses":
            return _of_response(_last_response(answer) if streamed else answer.json())
        case "/v1/messages":
            return _of_message_events(answer) if streamed else _of_message(answer)
    raise AssertionError(f"no client reads {path} here")


def calls_in(body: Any) -> list[tuple[str, Any]]:
    """The calls that a request brings back, in the messages of any of the routes."""
    found: list[tuple[str, Any]] = []
    for message in body.get("messages") or body["input"]:
        for call in message.get("tool_calls") or ():
            found.append(_call(call["function"]["name"], call["function"]["arguments"]))
        if message.get("type") == "function_call":
            found.append(_call(message["name"], message["arguments"]))
        if isinstance(content := message.get("content"), list):
            found += [(b["name"], b["input"]) for b in content if b["type"] == "tool_use"]
    return found


def _call(name: str, arguments: str) -> tuple[str, Any]:
    return name, json.loads(arguments)


def _events(answer: httpx.Response) -> Iterator[Any]:
    """The data of server-sent events, up to the end that OpenAI's have."""
    for line in answer.text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _of_completion(answer: httpx.Response) -> Said:
    (choice,) = chat.ChatCompletion.model_validate(answer.json()).choices
    calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    return Said(
        choice.message.content or "",
        [_call(call.function.name, call.function.arguments) for call in calls],
    )


def _of_chunks(answer: httpx.Response) -> Said:
    text = ""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    reasons = []
    for event in _events(answer):
        for choice in chat.ChatCompletionChunk.model_validate(event).choices:
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                if call.function.name:
                    names[call.index] = call.function.name
                written = arguments.get(call.index, "") + (call.function.arguments or "")
                arguments[call.index] = written
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert reasons == ["tool_calls" if names else "stop"]
    assert answer.text.endswith("data: [DONE]\n\n")
    return Said(text, [_call(names[index], arguments[index]) for index in sorted(names)])


def _of_response(body: Any) -> Said:
    response = responses.Response.model_validate(body)
    assert response.status == "completed"
    calls = [item for item in response.output if item.type == "function_call"]
    return Said(response.output_text, [_call(call.name, call.arguments) for call in calls])


def _last_response(answer: httpx.Response) -> Any:
    events = [(_EVENT.validate_python(event), event) for event in _events(answer)]
    assert [event.sequence_number for event, _ in events] == list(range(len(events)))
    assert events[-1][0].type == "response.completed"
    return events[-1][1]["response"]


def _of_message(answer: httpx.Response) -> Said:
    message = messages.Message.model_validate(answer.json())
    calls = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == ("tool_use" if calls else "end_turn")
    text = "".join(block.text for block in message.content if block.type == "text")
    return Said(text, [(call.name, call.input) for call in calls])


def _of_message_events(answer: httpx.Response) -> Said:
    said = Said()
    arguments = ""
    for each in _events(answer):
        event = _MESSAGES_EVENT.validate_python(each)
        if event.type == "content_block_start" and event.content_block.type == "tool_use":
            said.calls.append((event.content_block.name, None))
            arguments = ""
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            said.text += event.delta.text
        elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
            arguments += event.delta.partial_json
            said.calls[-1] = (
                said.calls[-1][0],
                json.loads(arguments) if _whole(arguments) else None,
            )
    assert each["type"] == "message_stop"
    return said


def _whole(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
