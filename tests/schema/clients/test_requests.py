"""Requests of the Responses API and of the Messages API: their tasks, and their JSON Schemas."""

import copy
import json
from typing import Any, get_args

import pytest
from anthropic.types import MessageCreateParams
from anthropic.types.beta import MessageCreateParams as BetaMessageCreateParams
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openai.types.responses import response_create_params
from pydantic import ValidationError

from schema import Message, TaskArgsInvalid, schemas
from schema.clients.anthropic import MessagesRequest
from schema.clients.openai import ChatCompletionRequest
from schema.clients.request import ClientRequest
from schema.clients.responses import ResponsesRequest
from tests.schema.edges import near, places, respelled
from tests.schema.malformed import PNG
from tests.schema.test_agreement import beyond_schema, same_each_time, values

URL = f"data:image/png;base64,{PNG}"
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}

RESPONSES: list[dict[str, Any]] = [
    {"model": "m", "input": "Hi"},
    {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Now."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "See"},
                    {"type": "input_image", "image_url": URL, "detail": "low"},
                ],
            },
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
                "encrypted_content": None,
            },
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "I ", "annotations": [], "logprobs": []},
                    {"type": "output_text", "text": "look.", "annotations": []},
                ],
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "c1",
                "name": "f",
                "arguments": '{"a": "b"}',
                "status": "completed",
            },
            {"type": "function_call_output", "call_id": "c1", "output": "12"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": PARAMETERS, "strict": None}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "top_logprobs": 3,
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "reasoning": {"effort": "high"},
        "truncation": "disabled",
        "store": True,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
        "top_k": 5,
        "seed": 1,
    },
    {
        "model": "m",
        "input": [
            {
                "type": "additional_tools",
                "role": "developer",
                "tools": [{"type": "function", "name": "late"}],
            },
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "f",
                "namespace": "group",
                "arguments": "{}",
            },
        ],
        "tools": [
            {"type": "web_search", "external_web_access": False},
            {"type": "tool_search", "execution": "client", "parameters": PARAMETERS},
            {
                "type": "namespace",
                "name": "group",
                "description": "",
                "tools": [
                    {"type": "custom", "name": "g", "format": {"type": "text"}},
                    {"type": "function", "name": "f", "parameters": PARAMETERS},
                ],
            },
        ],
    },
    {
        "model": "m",
        "input": [{"role": "user", "content": ""}],
        "text": {"format": {"type": "json_schema", "name": "f", "schema": {}, "strict": True}},
    },
]
MESSAGES: list[dict[str, Any]] = [
    {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]},
    {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "system", "content": "Now."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I "},
                    {"type": "text", "text": "look."},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "b"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "12"}],
            },
        ],
        "tools": [
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
            {"name": "f", "input_schema": PARAMETERS},
        ],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": False},
        "stop_sequences": ["x"],
        "thinking": {"type": "adaptive"},
        "metadata": {"user_id": "u"},
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 1,
        "stream": True,
    },
]
SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "system", "content": "Now."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "See"}, {"type": "image", "base64": PNG}],
    },
    {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "f", "arguments": '{"a": "b"}'},
            }
        ],
    },
    {"role": "tool", "content": "12", "tool_call_id": "c1"},
]
"""What both of the long requests mean."""

KINDS: dict[str, Any] = {"responses_request": ResponsesRequest, "messages_request": MessagesRequest}
GOOD = [("responses_request", one) for one in RESPONSES]
GOOD += [("messages_request", one) for one in MESSAGES]
VALIDATORS = {name: Draft202012Validator(schemas()[name]) for name in KINDS}


def test_every_field_of_the_clients_is_known() -> None:
    fields = {*response_create_params.ResponseCreateParamsBase.__annotations__, "stream"}
    assert fields <= set(ResponsesRequest.model_fields)
    for base in (*get_args(MessageCreateParams), *get_args(BetaMessageCreateParams)):
        fields = set(base.__annotations__) - {"betas"}  # a header
        assert fields <= set(MessagesRequest.model_fields)


@pytest.mark.parametrize(
    ("name", "fields"), [("responses_request", RESPONSES[1]), ("messages_request", MESSAGES[1])]
)
def test_both_mean_the_same_conversation(name: str, fields: dict[str, Any]) -> None:
    task = KINDS[name].parse(json.dumps(fields)).task(seed=7)
    said = [message.model_dump(exclude_none=True) for message in task.messages]
    wanted = [Message.model_validate(one).model_dump(exclude_none=True) for one in SAID]
    texts = [
        {**one, "content": one["content"][0]["text"]}
        if isinstance(one["content"], list) and one["role"] == "system"
        else one
        for one in said
    ]
    assert texts == wanted
    function = {"name": "f", "parameters": PARAMETERS}
    assert task.tools == [{"type": "function", "function": function}]
    assert task.seed == 7
    assert task.answer_format == "message"


@pytest.mark.parametrize(
    "content", [[], "", [{"type": "output_text", "text": "", "annotations": []}]]
)
def test_an_answer_without_text_may_come_back(content: Any) -> None:
    items = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    ResponsesRequest.parse(json.dumps({"model": "m", "input": items})).task(0)
    if isinstance(content, list):
        items[1]["content"] = [{"type": "text", "text": ""}] if content else []
    fields = {"model": "m", "max_tokens": 1, "messages": [*items, {"role": "user", "content": ""}]}
    MessagesRequest.parse(json.dumps(fields)).task(0)


def test_an_answer_that_is_all_reasoning_may_come_back() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    asked = ResponsesRequest.parse(json.dumps({"model": "m", "input": [thought]}))
    thinking = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}]}
    other = MessagesRequest.parse(
        json.dumps({"model": "m", "max_tokens": 1, "messages": [thinking]})
    )
    for task in (asked.task(0), other.task(0)):
        (message,) = task.messages
        assert (message.role, message.reasoning_content) == ("assistant", "Hm.")


@pytest.mark.parametrize("empty", ["", []])
def test_an_empty_input_is_an_empty_text(empty: Any) -> None:
    asked = {"model": "m", "input": empty, "max_output_tokens": 1}
    said = {**asked, "input": [{"role": "user", "content": ""}]}
    assert ResponsesRequest.parse(json.dumps(asked)).task(0) == ResponsesRequest.parse(
        json.dumps(said)
    ).task(0)


def test_images_may_stand_in_any_message() -> None:
    """Whether the model sees one in its own message is up to the template, as in a task."""
    parts = [{"type": "output_text", "text": "I"}, {"type": "input_image", "image_url": URL}]
    asked = {"model": "m", "input": [{"role": "assistant", "content": parts}]}
    (message,) = ResponsesRequest.parse(json.dumps(asked)).task(0).messages
    blocks = [{"type": "text", "text": "I"}, {"type": "image", "base64": PNG}]
    assert message == Message.model_validate({"role": "assistant", "content": blocks})


@pytest.mark.parametrize("strict", [None, False, True])
def test_strict_means_the_same_as_in_chat_completions(strict: bool | None) -> None:
    """It closes objects that the schema leaves open."""
    named = {"name": "f", "schema": PARAMETERS | {"additionalProperties": True}, "strict": strict}
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    asked["response_format"] = {"type": "json_schema", "json_schema": named}
    chat = ChatCompletionRequest.parse(json.dumps(asked)).task(0)
    form = {"format": {"type": "json_schema", **named}}
    other = ResponsesRequest.parse(json.dumps({"model": "m", "input": "Hi", "text": form}))
    assert other.task(0) == chat


def test_an_error_may_have_any_digits() -> None:
    """Of a template that tells what it was given, say."""
    for name, fields in GOOD:
        request = KINDS[name].parse(json.dumps(fields))
        assert "9" in request.renamed(f"messages: not messages.{'9' * 5000}")


@pytest.mark.parametrize(("name", "fields"), GOOD)
def test_good_requests_are_valid(name: str, fields: dict[str, Any]) -> None:
    made = KINDS[name].parse(json.dumps(fields)).task(0)
    for floats in (False, True):
        other = respelled(fields, floats=floats)
        VALIDATORS[name].validate(other)
        assert KINDS[name].parse(json.dumps(other)).task(0) == made


@pytest.mark.parametrize("name", KINDS)
def test_requests_near_a_limit(name: str) -> None:
    """The schema says what the server says: the request is parsed, and then its task is made."""

    @same_each_time
    @given(near([fields for kind, fields in GOOD if kind == name], schemas()[name]))
    def check(body: Any) -> None:
        problem = None
        try:
            KINDS[name].parse(json.dumps(body), ("http", "https", "file")).task(0)
        except TaskArgsInvalid as error:
            problem = error.message
        faults = [fault.message[:200] for fault in VALIDATORS[name].iter_errors(body)]
        if problem is None:
            assert not faults
        else:
            assert faults or beyond_schema(problem), problem

    check()


WORDS = ["user", "assistant", "system", "tool", "message", "text", "tool_result", "input_text"]
NAMES = ["type", "role", "content", "text", "id", "name", "input", "output", "tools", "x"]
whatever = values | st.sampled_from(WORDS)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, Any]:
    """A good request with a few things replaced, removed or added."""
    name, good = draw(st.sampled_from(GOOD))
    request = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, 3))):
        container, key, _ = draw(st.sampled_from(places(request)))
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            container[key] = draw(whatever)
        elif action == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(st.sampled_from(NAMES))] = draw(whatever)
        else:
            container.append(draw(whatever))
        if not places(request):
            break
    return name, request


@same_each_time
@given(mutated())
def test_models_and_schemas_agree(case: tuple[str, Any]) -> None:
    name, request = case
    valid = VALIDATORS[name].is_valid(request)
    try:
        KINDS[name].model_validate(request)
    except ValidationError as error:
        if not valid:
            return
        for detail in error.errors():
            if detail["type"] != "json_value":
                problem = detail.get("ctx", {}).get("problem", "")
                assert beyond_schema(problem), detail
    else:
        assert valid, list(VALIDATORS[name].iter_errors(request))


@same_each_time
@given(mutated())
def test_a_request_is_a_task_or_a_clean_refusal(case: tuple[str, Any]) -> None:
    name, request = case
    try:
        KINDS[name].parse(json.dumps(request)).task(0)
        return
    except TaskArgsInvalid as error:
        refusal = error
    assert len(refusal.message) < 2000
    json.dumps(refusal.to_dict(), ensure_ascii=False).encode()


# An answer that has to be calls has no text, whose form a client could ask for beside them;
# instructor sends both.
FORM = {"type": "object", "properties": {"city": {"type": "string"}}}
BOTH: list[tuple[type[ClientRequest], dict[str, Any], dict[str, Any]]] = [
    (
        ChatCompletionRequest,
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": FORM}}],
            "tool_choice": "required",
        },
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "form", "schema": FORM},
            }
        },
    ),
    (
        ResponsesRequest,
        {
            "input": "Hi",
            "tools": [{"type": "function", "name": "f", "parameters": FORM}],
            "tool_choice": {"type": "function", "name": "f"},
        },
        {"text": {"format": {"type": "json_schema", "name": "form", "schema": FORM}}},
    ),
    (
        MessagesRequest,
        {
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"name": "f", "input_schema": FORM}],
            "tool_choice": {"type": "any"},
        },
        {"output_config": {"format": {"type": "json_schema", "schema": FORM}}},
    ),
]


@pytest.mark.parametrize(("kind", "fields", "form"), BOTH, ids=["chat", "responses", "messages"])
def test_forced_calls_need_no_form(
    kind: type[ClientRequest], fields: dict[str, Any], form: dict[str, Any]
) -> None:
    plain = kind.parse(json.dumps({"model": "m", **fields})).task(0)
    assert kind.parse(json.dumps({"model": "m", **fields, **form})).task(0) == plain
    assert plain.forces_calls


def test_a_name_is_the_same_in_both_apis_of_openai() -> None:
    said = [
        {"role": "system", "name": "rules", "content": "Be brief."},
        {"role": "user", "name": "Ada", "content": "Hi"},
    ]
    chat = ChatCompletionRequest.parse(json.dumps({"model": "m", "messages": said})).task(0)
    responses = ResponsesRequest.parse(json.dumps({"model": "m", "input": said})).task(0)
    names = [message.name for message in responses.messages]
    assert names == [message.name for message in chat.messages] == ["rules", "Ada"]
