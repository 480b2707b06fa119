"""The Messages API as Anthropic's own client reads it, against the real server."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.serve_app.http.clients.openai.test_openai import COUNT, STORY
from tests.serve_app.tasks import events_of_stream

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
PAINT: Any = {
    "name": "paint",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def _asked(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": STORY, "max_tokens": 60, **fields}


def _text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message(api: Anthropic) -> None:
    made: Any = api.messages.create(
        model="demo",
        max_tokens=64,
        system=[{"type": "text", "text": " ", "cache_control": {"type": "ephemeral"}}],
        messages=COUNT,
        metadata={"user_id": "u"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        service_tier="auto",
        extra_body={"temperature": 0},
        extra_headers={"anthropic-version": "2023-06-01", "anthropic-beta": "tools-2024-05-16"},
    )
    assert (made.role, made.stop_reason, made.stop_sequence) == ("assistant", "end_turn", None)
    assert made.usage.output_tokens > 0
    assert made._request_id
    drawn: Any = api.messages.create(**_asked())
    again: Any = api.messages.create(**_asked(extra_body={"seed": drawn.seed}))
    assert _text(again) == _text(drawn)


def test_the_client_of_what_is_new(api: Anthropic) -> None:
    """It calls ``/v1/messages?beta=true``."""
    made = api.beta.messages.create(**_asked(max_tokens=3), betas=["context-1m-2025-08-07"])
    assert made.stop_reason == "max_tokens"


def test_a_stop_sequence_is_told(api: Anthropic) -> None:
    plain = _text(api.messages.create(**_asked(extra_body={"seed": 2})))
    stop = plain[5:8]
    asked = _asked(stop_sequences=["\u2603", stop], extra_body={"seed": 2})
    made = api.messages.create(**asked)
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", stop)
    assert _text(made) == plain[: plain.index(stop)]
    with api.messages.stream(**asked) as stream:
        last = stream.get_final_message()
    assert (_text(last), last.stop_reason, last.stop_sequence) == (
        _text(made),
        "stop_sequence",
        stop,
    )


def test_an_assistants_last_message_is_continued(api: Anthropic, client: httpx.Client) -> None:
    begun: list[Any] = [*COUNT, {"role": "assistant", "content": "3, 4,"}]
    made = api.messages.create(**_asked(messages=begun, extra_body={"temperature": 0}))
    chat = client.post(
        "/v1/chat/completions",
        json={
            "model": "demo",
            "messages": begun,
            "temperature": 0,
            "chat_template_kwargs": {"continue_final_message": True},
        },
    ).json()
    assert _text(made) == chat["choices"][0]["message"]["content"] == " 5, 6, 7, 8, 9."


@pytest.mark.parametrize(
    "fields",
    [{}, {"tools": [PAINT], "tool_choice": {"type": "any"}}, {"max_tokens": 2}],
)
def test_events_are_as_anthropic_defines_them(client: httpx.Client, fields: Any) -> None:
    answer = client.post("/v1/messages", json=_asked(stream=True, seed=3, **fields))
    assert answer.headers["x-seed"] == "3"
    events = events_of_stream(answer.text)
    assert [name for name, _ in events] == [event["type"] for _, event in events]
    for _, event in events:
        EVENT.validate_python(event)
    kinds = [name for name, _ in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    whole = client.post("/v1/messages", json=_asked(seed=3, **fields)).json()
    Message.model_validate(whole)
    assert events[-2][1]["delta"]["stop_reason"] == whole["stop_reason"]
    assert events[-2][1]["usage"] == whole["usage"]
    starts = [event for name, event in events if name == "content_block_start"]
    assert [event["index"] for event in starts] == list(range(len(whole["content"])))


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_with_tools(api: Anthropic, client: httpx.Client, stream: bool) -> None:
    asked: Any = {"model": "demo", "tools": [PAINT], "max_tokens": 100, "extra_body": {"seed": 5}}
    one_call = {"type": "any", "disable_parallel_tool_use": True}
    forced: Any = {"messages": STORY, "tool_choice": one_call}
    if stream:
        with api.messages.stream(**asked, **forced) as events:
            first: Any = events.get_final_message()
    else:
        first = api.messages.create(**asked, **forced)
    assert first.stop_reason == "tool_use"
    (call,) = (block for block in first.content if block.type == "tool_use")
    assert set(call.input) == {"colour"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    turns: list[Any] = [
        *STORY,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    last = api.messages.create(**asked, messages=turns, tool_choice={"type": "none"})
    chat = client.post(
        "/v1/chat/completions",
        json={
            "model": "demo",
            "max_tokens": 100,
            "seed": 5,
            "messages": [
                *STORY,
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": call.id,
                            "type": "function",
                            "function": {
                                "name": "paint",
                                "arguments": f'{{"colour": "{call.input["colour"]}"}}',
                            },
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": call.id, "content": "done"},
            ],
        },
    ).json()
    assert _text(last) == chat["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens: "),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        (
            {
                "tools": [{"type": "web_search_20250305", "name": "web_search"}],
                "tool_choice": {"type": "any"},
            },
            "tool_choice: ",
        ),
        ({"tools": [PAINT], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name: "),
        (
            {
                "messages": [
                    *COUNT,
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "a",
                                "content": [
                                    {
                                        "type": "image",
                                        "source": {
                                            "type": "base64",
                                            "media_type": "image/png",
                                            "data": "AAAA",
                                        },
                                    }
                                ],
                            }
                        ],
                    },
                ]
            },
            "messages.1.content.0.content.0.source.data",
        ),
    ],
)
def test_errors_name_the_field(api: Anthropic, fields: dict[str, Any], said: str) -> None:
    for ask in (api.messages.create, lambda **asked: api.messages.create(**asked, stream=True)):
        with pytest.raises(anthropic.BadRequestError) as caught:
            ask(**_asked(**fields))
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["type"] == "error"
        assert caught.value.body["error"]["type"] == "invalid_request_error"
        assert said in caught.value.body["error"]["message"]
        assert caught.value.body["request_id"]


def test_runners_of_tools_learn_that_there_are_no_threads(api: Anthropic) -> None:
    """They ask for one first, and go on without if the error says so."""

    @anthropic.beta_tool
    def paint(shape: str) -> str:
        return f"A {shape}."

    runner = api.beta.messages.tool_runner(
        model="demo", max_tokens=16, messages=[{"role": "user", "content": "Hi"}], tools=[paint]
    )
    assert runner.until_done().role == "assistant"


def test_other_errors(api: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        api.messages.create(**_asked(model="org/none"))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):  # it would have to be rendered first
        api.messages.count_tokens(model="demo", messages=COUNT)
