"""For all options of a request, the joined deltas of a stream are the answer without streaming.

OpenAI's client against the real server, feature by feature; everything that it reads is compared.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openai import OpenAI

from tests.serve_app.http.clients.openai.test_openai import COUNT, STORY, image

COLOURS = {"enum": ["red", "green", "blue"]}
PARAMETERS = {
    "paint": {
        "type": "object",
        "properties": {"shape": {"enum": ["circle", "star"]}, "colour": COLOURS},
        "required": ["shape", "colour"],
        "additionalProperties": False,
    },
    "mix": {
        "type": "object",
        "properties": {"colours": {"type": "array", "items": COLOURS, "maxItems": 2}},
        "required": ["colours"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in PARAMETERS.items()
]
PAINT = {"type": "function", "function": {"name": "paint"}}
LOOK = [
    {"type": "image_url", "image_url": {"url": image("red_circle.png")}},
    {"type": "image_url", "image_url": {"url": image("blue_star.png")}},
    {"type": "text", "text": "What is in these images?"},
]
CLOSED = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "star"]}, "plain": {"type": "boolean"}},
    "required": ["shape", "plain"],
    "additionalProperties": False,
}

# What is asked for, and the part of every choice that shows it.
FEATURES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({"messages": COUNT, "temperature": 0}, "content"),
    "three": ({"n": 3, "temperature": 1.3, "top_p": 0.9}, "content"),
    "equal choices": ({"messages": COUNT, "temperature": 0, "n": 3, "logprobs": True}, "content"),
    "stop strings": ({"n": 2, "stop": [" the", "o", "w."]}, "content"),
    "limit": ({"max_completion_tokens": 5}, "content"),
    "logprobs": ({"n": 2, "logprobs": True, "top_logprobs": 3, "stop": "fox"}, "logprobs"),
    "penalties": (
        {"frequency_penalty": 1.2, "presence_penalty": -0.5, "logit_bias": {"70": 8, "5": -100}},
        "content",
    ),
    "beams": ({"n": 2, "temperature": 0, "extra_body": {"num_beams": 3}}, "content"),
    "images": ({"messages": [{"role": "user", "content": LOOK}]}, "content"),
    "template arguments": (
        {
            "messages": [*COUNT, {"role": "assistant", "content": "3, 4"}],
            "extra_body": {"chat_template_kwargs": {"continue_final_message": True}},
        },
        "content",
    ),
    "tools": ({"tools": TOOLS, "tool_choice": "auto"}, "content"),
    "required": (
        {"tools": TOOLS, "tool_choice": "required", "n": 3, "logprobs": True, "max_tokens": 200},
        "tool_calls",
    ),
    "one": (
        {
            "tools": TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": 200,
        },
        "tool_calls",
    ),
    "named": ({"tools": TOOLS, "tool_choice": PAINT, "n": 2, "max_tokens": 200}, "tool_calls"),
    "a call that is cut": ({"tools": TOOLS, "tool_choice": PAINT, "max_tokens": 50}, "tool_calls"),
    "JSON": ({"response_format": {"type": "json_object"}, "n": 2}, "content"),
    "JSON Schema": (
        {
            "n": 2,
            "max_tokens": 120,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "schema": CLOSED},
            },
        },
        "content",
    ),
}
COMPLETIONS: dict[str, tuple[dict[str, Any], str]] = {
    "completion": ({"n": 2, "stop": ["e"]}, "text"),
    "completion's logprobs": ({"n": 2, "logprobs": 3}, "logprobs"),
}


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """The fields of an answer beside its choices, without those that are new in each answer."""
    return {key: answer[key] for key in ("model", "system_fingerprint", "seed", "usage")}


def without_nothing(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice without its empty parts: null, empty text, empty lists."""
    return {name: value for name, value in choice.items() if value not in (None, "", [])}


def whole_choices(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices, each as one flat object."""
    choices = []
    for choice in answer["choices"]:
        flat = {**choice, **choice.pop("message", {})}
        flat.pop("message", None)
        if "content" in (flat.get("logprobs") or {}):
            flat["logprobs"] = flat["logprobs"]["content"]
        choices.append(without_nothing(flat))
    return choices


def joined_choices(chunks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the deltas of a stream add up to, in the same form."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            index = choice["index"]
            flat = found.setdefault(index, {"index": index})
            assert "finish_reason" not in flat, "a choice went on after its end"
            delta = choice.get("delta", {"text": choice.get("text")})
            for name in ("role", "refusal"):
                if delta.get(name):
                    flat[name] = delta[name]
            for name in ("content", "reasoning_content", "text"):
                flat[name] = flat.get(name, "") + (delta.get(name) or "")
            for call in delta.get("tool_calls") or ():
                _add_call(flat.setdefault("tool_calls", []), call)
            _add_logprobs(flat, choice.get("logprobs"))
            if choice["finish_reason"] is not None:
                flat["finish_reason"] = choice["finish_reason"]
    return [without_nothing(found[index]) for index in sorted(found)]


def _add_call(calls: list[Any], call: dict[str, Any]) -> None:
    if call["index"] == len(calls):
        function = {"name": call["function"]["name"], "arguments": ""}
        calls.append({"id": call["id"], "type": call["type"], "function": function})
    assert call["index"] == len(calls) - 1
    calls[-1]["function"]["arguments"] += call["function"]["arguments"]


def _add_logprobs(flat: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
    if logprobs is None:
        return
    if "content" in logprobs:
        flat["logprobs"] = flat.get("logprobs", []) + logprobs["content"]
        return
    lists = flat.setdefault("logprobs", {name: [] for name in logprobs})
    for name, values in logprobs.items():
        lists[name] += values


def both_ways(create: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, which are the same in all ways to get it."""
    whole = create(**asked).to_dict()
    stream = create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk.to_dict() for chunk in stream]
    *parts, last = chunks
    assert not last["choices"]
    assert all(part["usage"] is None for part in parts)
    assert told(last) == told(whole)
    choices = whole_choices(whole)
    assert joined_choices(chunks) == choices
    assert len(choices) == asked.get("n", 1)
    return choices


@pytest.mark.parametrize("feature", FEATURES)
def test_chat(api: OpenAI, feature: str) -> None:
    fields, part = FEATURES[feature]
    asked = {"model": "demo", "messages": STORY, "seed": 11, "max_tokens": 24} | fields
    if "max_completion_tokens" in fields:
        del asked["max_tokens"]
    for choice in both_ways(api.chat.completions.create, asked):
        assert choice[part]
        if part == "tool_calls":
            assert "content" not in choice
            _check_calls(choice, fields)
        if feature == "JSON Schema":
            Draft202012Validator(CLOSED).validate(json.loads(choice["content"]))


def _check_calls(choice: dict[str, Any], fields: dict[str, Any]) -> None:
    """They are what was required; only the last one may be cut, by the limit of tokens."""
    calls = [call["function"] for call in choice["tool_calls"]]
    if fields["tool_choice"] == PAINT:
        assert [call["name"] for call in calls] == ["paint"]
    if fields.get("parallel_tool_calls") is False:
        assert len(calls) == 1
    if choice["finish_reason"] == "length":
        calls.pop()
    else:
        assert choice["finish_reason"] == "tool_calls"
    for call in calls:
        Draft202012Validator(PARAMETERS[call["name"]]).validate(json.loads(call["arguments"]))


@pytest.mark.parametrize("feature", COMPLETIONS)
def test_completions(api: OpenAI, feature: str) -> None:
    fields, part = COMPLETIONS[feature]
    asked = {"model": "demo", "prompt": "A fox", "seed": 11, "max_tokens": 24} | fields
    assert all(choice[part] for choice in both_ways(api.completions.create, asked))
