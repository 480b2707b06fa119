"""Requests of OpenAI's clients: the tasks that they become, and errors."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openai.types import completion_create_params
from openai.types.chat import ChatCompletionAssistantMessageParam
from openai.types.chat import completion_create_params as chat_create_params

from schema import OutOfMemory, Task, TaskArgsInvalid, schemas
from schema.clients.openai import ChatCompletionRequest, CompletionRequest
from schema.clients.openai.messages import ChatMessage
from schema.message import MAX_BLOCKS_OF_TASK
from schema.structured import JsonSchemaForm
from tests.schema.malformed import PNG, TOOL

CHAT = Draft202012Validator(schemas()["chat_completion_request"])
ASK: list[Any] = [{"role": "user", "content": "Hi"}]
URL = f"data:image/png;base64,{PNG}"
SDK_MESSAGE: dict[str, Any] = {
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
}


def chat(**fields: Any) -> ChatCompletionRequest:
    asked = {"model": "m", "messages": ASK} | fields
    return ChatCompletionRequest.parse(json.dumps(asked))


STRICT: Any = {"type": "function", "function": TOOL["function"] | {"strict": True}}


def _named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def refused(**fields: Any) -> TaskArgsInvalid:
    with pytest.raises(TaskArgsInvalid) as caught:
        chat(**fields).task(seed=0)
    return caught.value


def task(**fields: Any) -> Task:
    common = {"model": "m", "messages": ASK, "answer_format": "message"}
    return Task.from_fields(**common | fields)


def test_every_field_of_the_client_is_known() -> None:
    """So none of them is answered with "not a known field": it is honoured or refused by name."""
    fields = {*chat_create_params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert fields <= set(ChatCompletionRequest.model_fields)
    fields = {*completion_create_params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert fields <= set(CompletionRequest.model_fields)
    message = set(ChatCompletionAssistantMessageParam.__annotations__) | {"annotations"}
    assert message <= set(ChatMessage.model_fields)


DEFAULTS = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "num_return_sequences": 1}
GREEDY = DEFAULTS | {"do_sample": False, "temperature": 0.0}


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({}, {"generation_config": DEFAULTS}),
        ({"temperature": 0}, {"generation_config": GREEDY}),
        (
            {"temperature": 0.5, "top_p": 0.9, "n": 3, "stop": "a", "max_tokens": 7},
            {
                "generation_config": {
                    "do_sample": True,
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "num_return_sequences": 3,
                    "stop_strings": ["a"],
                    "max_new_tokens": 7,
                }
            },
        ),
        (
            {"max_completion_tokens": 7, "stop": ["a", "b"], "user": "u", "logprobs": False},
            {"generation_config": DEFAULTS | {"max_new_tokens": 7, "stop_strings": ["a", "b"]}},
        ),
        (
            {
                "top_k": 4,
                "min_p": 0.1,
                "typical_p": 0.9,
                "repetition_penalty": 1.2,
                "num_beams": 2,
                "chat_template_kwargs": {"enable_thinking": False},
                "dtype": "bfloat16",
                "quantize_bits": 4,
            },
            {
                "generation_config": DEFAULTS
                | {
                    "top_k": 4,
                    "min_p": 0.1,
                    "typical_p": 0.9,
                    "repetition_penalty": 1.2,
                    "num_beams": 2,
                },
                "template_args": {"enable_thinking": False},
                "dtype": "bfloat16",
                "quantize_bits": 4,
            },
        ),
        ({"tools": [TOOL]}, {"tools": [TOOL], "generation_config": DEFAULTS}),
        (
            {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False},
            {"generation_config": DEFAULTS, "parallel_tool_calls": False},
        ),
        (
            {"tools": [STRICT], "tool_choice": "required", "parallel_tool_calls": False},
            {
                "tools": [STRICT],
                "tool_choice": "required",
                "parallel_tool_calls": False,
                "generation_config": DEFAULTS,
            },
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
            {
                "tools": [TOOL],
                "tool_choice": {"function": "clock"},
                "generation_config": DEFAULTS,
            },
        ),
        (
            {"stop": [], "tools": [], "logprobs": False, "logit_bias": {}, "n": None},
            {"generation_config": DEFAULTS},
        ),
        (
            {
                "frequency_penalty": 0.5,
                "presence_penalty": -2,
                "logit_bias": {"50256": -100, "0": 1.5},
                "logprobs": True,
            },
            {
                "generation_config": DEFAULTS
                | {
                    "frequency_penalty": 0.5,
                    "presence_penalty": -2,
                    "logit_bias": {"50256": -100, "0": 1.5},
                    "logprobs": 0,
                }
            },
        ),
        (
            {"logprobs": True, "top_logprobs": 5},
            {"generation_config": DEFAULTS | {"logprobs": 5}},
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is it?"},
                            {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
                        ],
                    },
                    {
                        "role": "assistant",
                        "content": None,
                        "reasoning_content": "It wants the time.",
                        "tool_calls": [TOOL],
                        **SDK_MESSAGE,
                    },
                    {"role": "tool", "tool_call_id": "a", "content": "12:00"},
                ]
            },
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is it?"},
                            {"type": "image", "base64": PNG},
                        ],
                    },
                    {
                        "role": "assistant",
                        "reasoning_content": "It wants the time.",
                        "tool_calls": [TOOL],
                    },
                    {"role": "tool", "tool_call_id": "a", "content": "12:00"},
                ],
                "generation_config": DEFAULTS,
            },
        ),
    ],
)
def test_what_a_request_means(fields: dict[str, Any], meant: dict[str, Any]) -> None:
    CHAT.validate({"model": "m", "messages": ASK} | fields)
    assert chat(**fields).task(seed=5) == task(seed=5, **meant)


def test_tools_reach_the_template_in_the_order_they_came_in() -> None:
    tools = [{"function": {"parameters": {"b": 1, "a": 2}, "name": "f"}, "type": "function"}]
    assert json.dumps(chat(tools=tools).task(0).tools) == json.dumps(tools)


def _image(**image_url: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": image_url}]}]


ADDRESS = "messages.0.content.0.image_url.url"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"frequency_penalty": False}, "frequency_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1": None}}, "logit_bias.1"),
        ({"logit_bias": {"fox": 1}}, "logit_bias.fox"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logprobs": 0}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": True, "logprobs": True}, "top_logprobs"),
        ({"logprobs": True, "num_beams": 2}, "logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {}, "strct": True},
                }
            },
            "response_format.json_schema.strct",
        ),
        ({"response_format": {"type": "regex", "pattern": "a"}}, "response_format.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "function": "clock"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tools": [TOOL], "tool_choice": _named("f")}, "tool_choice.function.name"),
        ({"tool_choice": _named("clock", nam="f")}, "tool_choice.function.nam"),
        ({"tools": [TOOL], "tool_choice": "required", "num_beams": 2}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"n": 3, "num_beams": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"guided_json": {}}, "guided_json"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 3}, "stop"),
        ({"tools": [{"type": "custom"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"do_sample": True}, "do_sample"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
        ({"generation_config": {}}, "generation_config"),
        ({"image_url": 1}, "image_url"),
        ({"model": "../x"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": "x", "nam": "y"}]}, "messages.0.nam"),
        (
            {"messages": [{"role": "assistant", "content": "x", "prefix": True}]},
            "messages.0.prefix",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [TOOL]}]},
            "messages.0.tool_calls",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages.0.content.0.type",
        ),
        ({"messages": _image(url="http://h/a.png")}, ADDRESS),
        ({"messages": _image(url="HTTPS://h/a.png")}, ADDRESS),
        ({"messages": _image(url="file:///etc/passwd")}, ADDRESS),
        ({"messages": _image(url="/etc/passwd")}, ADDRESS),
        ({"messages": _image(url="data:image/png,AAAA")}, ADDRESS),
        ({"messages": _image(url="data:image/png;base64,AA%2")}, ADDRESS),
        ({"messages": _image(url="data:image/png;base64,AAAAA")}, ADDRESS),
        ({"messages": _image(url="data:image/png;base64,A")}, ADDRESS),
        ({"messages": _image(url="data:image/png;base64,")}, ADDRESS),
        ({"messages": _image(url=URL, size=3)}, "messages.0.content.0.image_url.size"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert param in error.message
    for name in ("generation_config.", "stop_strings", "num_return_sequences"):
        assert name not in error.message


def test_what_would_be_refused_is_not_suggested() -> None:
    message = refused(zzz=1).message
    assert "max_tokens" in message
    assert "functions" not in message
    assert "min_tokens" not in message
    assert "did you mean parsed" not in refused(messages=[ASK[0] | {"parse": "x"}]).message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "empty"),
        ("[]", "must be an object"),
        ("{", "not valid JSON"),
        ('{"n": 1, "n": 2}', "twice"),
    ],
)
def test_a_body_that_is_no_request(body: str, said: str) -> None:
    with pytest.raises(TaskArgsInvalid, match=said):
        ChatCompletionRequest.parse(body)


def test_a_million_parts_are_counted_first() -> None:
    parts = [{"type": "text", "text": "x"}] * (MAX_BLOCKS_OF_TASK + 1)
    assert refused(messages=[{"role": "user", "content": parts}]).param == "messages"
    deep = {"a": [[0] * 1000] * 101}
    assert "chat_template_kwargs" in refused(chat_template_kwargs=deep).message


@pytest.mark.parametrize(
    ("limit", "param", "renamed"),
    [
        ({}, "generation_config.max_new_tokens", "max_tokens"),
        ({"max_completion_tokens": 5}, "generation_config.max_new_tokens", "max_completion_tokens"),
        ({}, "generation_config.num_return_sequences", "n"),
        ({}, "generation_config.top_p", "top_p"),
        ({}, "generation_config.logit_bias.7", "logit_bias.7"),
        ({}, "generation_config", None),
        ({}, "template_args.tools", "chat_template_kwargs.tools"),
        ({}, "messages.3.content.1.base64", "messages.3.content.1.image_url.url"),
        ({}, None, None),
    ],
)
def test_later_errors_name_the_fields_of_the_request(
    limit: dict[str, Any], param: str | None, renamed: str | None
) -> None:
    with pytest.raises(OutOfMemory) as caught, chat(**limit).own_terms():
        raise OutOfMemory(f"{param}: too much", param, 3.0)
    assert caught.value.param == renamed
    assert caught.value.retry_after_s == 3.0
    assert (renamed or "too much") in caught.value.message
    assert "generation_config" not in caught.value.message


@pytest.mark.parametrize("strict", [None, False, True])
def test_strict_schemas_have_declared_keys_only(strict: bool | None) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": True}
    named = {"name": "a", "schema": schema, "strict": strict}
    made = chat(response_format={"type": "json_schema", "json_schema": named}).task(seed=0)
    assert isinstance(made.structured_output, JsonSchemaForm)
    assert ("additionalProperties" in made.structured_output.json_schema) == (strict is not True)
