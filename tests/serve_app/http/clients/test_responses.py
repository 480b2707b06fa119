"""The Responses API as OpenAI's own client reads it, against the real server."""

from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.serve_app.http.clients.openai.test_openai import COUNT, STORY
from tests.serve_app.tasks import events_of_stream

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PAINT: Any = {
    "type": "function",
    "name": "paint",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}

GROUPED: Any = [
    {"type": "web_search"},
    {"type": "namespace", "name": "art", "description": "Art.", "tools": [PAINT]},
]
"""The same in a namespace, as Codex sends tools of MCP servers, after one that is not offered."""


class Shape(BaseModel):
    shape: Literal["circle", "star"]
    plain: bool


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def _asked(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "input": STORY, "max_output_tokens": 60, **fields}


def test_a_response(api: OpenAI) -> None:
    made: Any = api.responses.create(
        model="demo",
        input="Count from 3 to 9.",
        temperature=0,
        metadata={"a": "b"},
        store=True,
        user="u",
        reasoning={"effort": "low", "summary": "auto"},
        truncation="auto",
        include=["reasoning.encrypted_content"],
    )
    assert made.output_text == "3, 4, 5, 6, 7, 8, 9."
    assert (made.status, made.error, made.incomplete_details) == ("completed", None, None)
    assert (made.metadata, made.store, made.temperature) == ({"a": "b"}, False, 0)
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens


def test_a_drawn_seed_repeats_the_answer(api: OpenAI) -> None:
    first: Any = api.responses.create(**_asked())
    again: Any = api.responses.create(**_asked(extra_body={"seed": first.seed}))
    assert (again.output_text, again.seed) == (first.output_text, first.seed)


def test_a_limit_makes_a_response_incomplete(api: OpenAI) -> None:
    made = api.responses.create(**_asked(max_output_tokens=3))
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    with api.responses.stream(**_asked(max_output_tokens=3)) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_logprobs(api: OpenAI) -> None:
    asked = _asked(include=["message.output_text.logprobs"], top_logprobs=2, extra_body={"seed": 4})
    whole: Any = api.responses.create(**asked)
    chat: Any = api.chat.completions.create(
        model="demo", messages=STORY, max_tokens=60, logprobs=True, top_logprobs=2, seed=4
    )
    told = whole.output[0].content[0].logprobs
    assert [(t.token, t.logprob) for t in told] == [
        (t.token, t.logprob) for t in chat.choices[0].logprobs.content
    ]
    assert all(len(token.top_logprobs) == 2 for token in told)
    with api.responses.stream(**asked) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
        last: Any = stream.get_final_response()
    assert [t.token for event in deltas for t in event.logprobs] == [t.token for t in told]
    assert len(last.output[0].content[0].logprobs) == len(told)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [PAINT], "tool_choice": "required"},
        {"tools": GROUPED, "tool_choice": "required"},
        {"include": ["message.output_text.logprobs"]},
        {"max_output_tokens": 2},
    ],
)
def test_events_are_as_openai_defines_them(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = client.post("/v1/responses", json=_asked(stream=True, seed=3, **fields))
    assert answer.headers["x-seed"] == "3"
    events = events_of_stream(answer.text)
    assert [name for name, _ in events] == [event["type"] for _, event in events]
    told = [event for _, event in events]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        EVENT.validate_python(event)
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]
    whole = client.post("/v1/responses", json=_asked(seed=3, **fields)).json()
    last = told[-1]["response"]
    assert [_said(item) for item in last["output"]] == [_said(item) for item in whole["output"]]
    assert (last["status"], last["usage"]) == (whole["status"], whole["usage"])
    added = [event["item"]["id"] for event in told if event["type"].endswith("item.added")]
    done = [event["item"] for event in told if event["type"].endswith("item.done")]
    assert added == [item["id"] for item in done] == [item["id"] for item in last["output"]]
    assert [_said(item) for item in done] == [_said(item) for item in last["output"]]


def _said(item: dict[str, Any]) -> Any:
    return item.get("arguments") or [part["text"] for part in item["content"]]


def test_parse_reads_a_model(api: OpenAI) -> None:
    # Enough tokens for all the white space that the grammar allows.
    asked = _asked(text_format=Shape, max_output_tokens=400, extra_body={"seed": 5})
    made = api.responses.parse(**asked)
    assert isinstance(made.output_parsed, Shape)
    turns: Any = [*COUNT, *made.output, *STORY]
    again = api.responses.create(model="demo", input=turns, max_output_tokens=3)
    assert again.status == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("tools", "namespace"), [([PAINT], None), (GROUPED, "art")])
def test_a_loop_with_tools(
    api: OpenAI, stream: bool, tools: list[Any], namespace: str | None
) -> None:
    turns: list[Any] = [*STORY]
    asked: Any = {"model": "demo", "tools": tools, "max_output_tokens": 100}
    asked |= {"extra_body": {"seed": 5}}
    if stream:
        with api.responses.stream(**asked, input=turns, tool_choice="required") as events:
            list(events)
            first: Any = events.get_final_response()
    else:
        first = api.responses.create(**asked, input=turns, tool_choice="required")
    calls = [item for item in first.output if item.type == "function_call"]
    assert {(call.name, call.namespace) for call in calls} == {("paint", namespace)}
    turns += first.output
    turns += [
        {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
        for call in calls
    ]
    last = api.responses.create(**asked, input=turns, tool_choice="none")
    # The same conversation, as chat completions have it.
    messages: list[Any] = [
        *STORY,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {
                        "name": f"{namespace}__paint" if namespace else "paint",
                        "arguments": call.arguments,
                    },
                }
                for call in calls
            ],
        },
        *({"role": "tool", "tool_call_id": call.call_id, "content": "done"} for call in calls),
    ]
    chat = api.chat.completions.create(model="demo", messages=messages, max_tokens=100, seed=5)
    assert last.output_text == chat.choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"tools": [PAINT], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        (
            {
                "input": [
                    {"role": "user", "content": "x"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": ""},
                            {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
                        ],
                    },
                ]
            },
            "input.1.content.1.image_url",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "f", "schema": {"not": {}}}}},
            "text.format.schema",
        ),
    ],
)
def test_errors_name_the_field(api: OpenAI, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            api.responses.create(**_asked(stream=stream, **fields))
        assert caught.value.param == param
        assert param in caught.value.message


def test_an_unknown_model_is_not_found(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.responses.create(model="org/none", input="Hi")
    assert caught.value.code == "model_not_found"
