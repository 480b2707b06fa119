"""Responses and messages of a model that reasons, calls tools and fails, all on demand.

The replica has no model: see `tests.serve_app.http.clients.openai.test_openai_tools`.
"""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import RawMessageStreamEvent
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from starlette.types import ASGIApp

from tests.serve_app.http.clients.openai.test_openai_tools import (
    CALLS,
    EXPECTED,
    WritingReplica,
    seen,
)
from tests.serve_app.scripted import app_maker, client, task
from tests.serve_app.tasks import events_of_stream

KEY = "sk-0123456789abcdef"
FUNCTIONS: list[Any] = [
    {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
    {"name": "time", "parameters": {}},
]
FLAT: list[Any] = [{"type": "function", "strict": None, **function} for function in FUNCTIONS]
TOOLS: list[Any] = [{"name": f["name"], "input_schema": f["parameters"]} for f in FUNCTIONS]
BEFORE = ["", "I look.\n", "<think>\nHm.\n</think>\n\n", "<think>\nHm.\n</think>\n\nI look.\n"]


@pytest.fixture(scope="module")
def writing() -> Callable[..., ASGIApp]:
    return app_maker(WritingReplica)


@pytest.fixture(scope="module")
def scripted() -> Callable[..., ASGIApp]:
    return app_maker()


@pytest.fixture
async def http(writing: Callable[..., ASGIApp]) -> AsyncIterator[Any]:
    seen.clear()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(writing())) as made:
        yield made


@pytest.fixture
def openai(http: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)


@pytest.fixture
async def anthropic(writing: Callable[..., ASGIApp]) -> AsyncIterator[AsyncAnthropic]:
    seen.clear()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(writing())) as http:
        yield AsyncAnthropic(
            base_url="http://test", api_key="none", max_retries=0, http_client=http
        )


def _parts(response: Any) -> list[Any]:
    said: list[Any] = []
    for item in response.output:
        if item.type == "function_call":
            said.append((item.name, item.arguments, item.call_id))
        else:
            said.append((item.type, "".join(part.text for part in item.content)))
    return said


@pytest.mark.parametrize("before", BEFORE)
async def test_items_of_a_response(openai: AsyncOpenAI, before: str) -> None:
    asked: Any = {"model": "demo", "input": before + CALLS, "tools": FLAT}
    asked |= {"extra_body": {"seed": 7}}
    whole = await openai.responses.create(**asked)
    async with openai.responses.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_response()
    assert _parts(streamed) == _parts(whole)
    *first, weather, time = _parts(whole)
    assert [call[:2] for call in (weather, time)] == EXPECTED
    assert first == [
        *([("reasoning", "Hm.")] if "Hm." in before else []),
        *([("message", "I look.")] if "look" in before else []),
    ]
    assert ("response.reasoning_text.delta" in kinds) is ("Hm." in before)
    # All of it may be sent back.
    turns: list[Any] = [{"role": "user", "content": "Hi"}, *whole.output]
    turns += [
        {"type": "function_call_output", "call_id": call_id, "output": "12"}
        for *_, call_id in (weather, time)
    ]
    turns += [{"role": "user", "content": "Thanks"}]
    last = await openai.responses.create(model="demo", input=turns)
    assert last.output_text == "Thanks"
    _, back, *results, _ = seen[-1].messages
    assert back.reasoning_content == ("Hm." if "Hm." in before else None)
    assert back.content == ("I look." if "look" in before else None)
    assert [call["function"]["arguments"] for call in back.tool_calls or ()] == [
        arguments for _, arguments in EXPECTED
    ]
    assert [result.tool_call_id for result in results] == [weather[2], time[2]]


@pytest.mark.parametrize("before", BEFORE)
async def test_blocks_of_a_message(anthropic: AsyncAnthropic, before: str) -> None:
    turns: list[Any] = [{"role": "user", "content": before + CALLS}]
    asked: Any = {"model": "demo", "max_tokens": 99, "tools": TOOLS, "extra_body": {"seed": 7}}
    whole: Any = await anthropic.messages.create(**asked, messages=turns)
    async with anthropic.messages.stream(**asked, messages=turns) as stream:
        streamed = await stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [
        block.to_dict() for block in whole.content
    ]
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    *first, weather, time = whole.content
    assert [(call.name, call.input) for call in (weather, time)] == [
        (name, json.loads(arguments)) for name, arguments in EXPECTED
    ]
    assert [block.type for block in first] == [
        *(["thinking"] if "Hm." in before else []),
        *(["text"] if "look" in before else []),
    ]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "12"} for call in (weather, time)
    ]
    turns += [
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [*results, {"type": "text", "text": "Thanks"}]},
    ]
    last: Any = await anthropic.messages.create(**asked, messages=turns)
    assert last.content[0].text == "Thanks"
    _, back, *told, _ = seen[-1].messages
    assert back.reasoning_content == ("Hm." if "Hm." in before else None)
    assert [call["function"]["arguments"] for call in back.tool_calls or ()] == [
        arguments for _, arguments in EXPECTED
    ]
    assert [result.tool_call_id for result in told] == [weather.id, time.id]


@pytest.mark.parametrize("text", [f"{CALLS}\nThere.", f"I look.\n{CALLS}\nThere."])
async def test_text_after_calls(openai: AsyncOpenAI, anthropic: AsyncAnthropic, text: str) -> None:
    """Streamed and whole it stands in the same place: how an answer is cut must not show."""
    asked: Any = {"model": "demo", "input": text, "tools": FLAT, "extra_body": {"seed": 7}}
    whole = await openai.responses.create(**asked)
    async with openai.responses.stream(**asked) as events:
        assert _parts(await events.get_final_response()) == _parts(whole)
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
    asked = {"model": "demo", "max_tokens": 99, "tools": TOOLS, "extra_body": {"seed": 7}}
    asked["messages"] = [{"role": "user", "content": text}]
    message = await anthropic.messages.create(**asked)
    async with anthropic.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [
        block.to_dict() for block in message.content
    ]
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]


async def test_an_answer_that_says_nothing(openai: AsyncOpenAI, anthropic: AsyncAnthropic) -> None:
    """Clients read the first text without asking whether there is one."""
    made = await openai.responses.create(model="demo", input=[{"role": "user", "content": ""}])
    assert made.output_text == ""
    assert [item.type for item in made.output] == ["message"]
    message: Any = await anthropic.messages.create(
        model="demo", max_tokens=9, messages=[{"role": "user", "content": ""}]
    )
    assert [block.text for block in message.content] == [""]


async def test_arguments_that_are_cut_or_wrong(http: Any) -> None:
    fields = {"model": "demo", "max_tokens": 9, "tools": TOOLS}
    cut = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zür'
    inputs = []
    for text in (cut, '<tool_call>\n{"name": "weather", "arguments": {"city": }}\n</tool_call>'):
        asked = fields | {"messages": [{"role": "user", "content": text}]}
        answer = (await http.post("http://test/v1/messages", json=asked)).json()
        inputs += [block["input"] for block in answer["content"] if block["type"] == "tool_use"]
    assert inputs[0] == {"city": "Zür"}
    assert all(isinstance(one, dict) for one in inputs)


WRONG = (
    '{"city": NaN}',
    '{"city": 1e999}',
    '{"city": [-Infinity]}',
    '{"city": 123456789012345678901234567890}',
    '{"city": ' + "[" * 40 + "]" * 40 + "}",
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("arguments", WRONG)
async def test_arguments_that_no_request_may_have(http: Any, arguments: str, stream: bool) -> None:
    """They are told in a form in which they may be sent back."""
    call = '<tool_call>\n{"name": "weather", "arguments": ' + arguments + "}\n</tool_call>"
    turns: list[Any] = [{"role": "user", "content": call}]
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 99, "tools": TOOLS, "messages": turns}
    answer = await http.post("http://test/v1/messages", json=asked | {"stream": stream})
    assert answer.status_code == 200, answer.text
    if stream:
        deltas = [event.get("delta", {}) for _, event in events_of_stream(answer.text)]
        assert "".join(delta.get("partial_json", "") for delta in deltas) == arguments
        return
    content = answer.json()["content"]
    assert [block["input"] for block in content] == [{"INVALID_JSON": arguments}]
    turns += [{"role": "assistant", "content": content}, {"role": "user", "content": "Thanks"}]
    last = await http.post("http://test/v1/messages", json=asked)
    assert last.json()["content"] == [{"type": "text", "text": "Thanks"}]


def _to(path: str, act: str, **fields: Any) -> dict[str, Any]:
    if path == "/v1/responses":
        return {"model": "demo", "input": act, **fields}
    return task(act) | {"max_tokens": 9, **fields}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_an_error_after_the_first_chunk_is_the_last_event(
    scripted: Callable[..., ASGIApp], path: str
) -> None:
    async with client(scripted()) as made:
        answer = await made.post(path, json=_to(path, "later fail", stream=True))
    assert answer.status_code == 200
    *_, (name, last) = events_of_stream(answer.text)
    if path == "/v1/responses":
        TypeAdapter(ResponseStreamEvent).validate_python(last)
        assert (name, last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"]["code"] == "server_error"
        assert last["response"]["output"][0]["content"][0]["text"] == "é "
    else:
        assert name == "error"
        assert last["error"]["type"] == "api_error"
        assert last["request_id"] == answer.headers["x-request-id"]
    for _, event in events_of_stream(answer.text)[:-1]:
        kind: Any = ResponseStreamEvent if path == "/v1/responses" else RawMessageStreamEvent
        TypeAdapter(kind).validate_python(event)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("act", "status", "kind"),
    [
        ("refuse", 400, "invalid_request_error"),
        ("overload", 503, "overloaded_error"),
        ("fail", 500, "api_error"),
        ("bug", 500, "api_error"),
        ("hang", 504, "timeout_error"),
    ],
)
async def test_errors_of_messages_are_anthropics(
    scripted: Callable[..., ASGIApp], act: str, status: int, kind: str, stream: bool
) -> None:
    async with client(scripted(request_timeout_s=0.2)) as made:
        answer = await made.post("/v1/messages", json=_to("/v1/messages", act, stream=stream))
    assert answer.status_code == status
    body = answer.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]
    assert answer.headers.get("retry-after") == ("3" if act == "overload" else None)


async def test_refusals_before_the_route_are_anthropics_too(
    scripted: Callable[..., ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_KEYS", f"alice: {KEY}")
    auth = {"keys_env": "SERVE_KEYS", "keys": {"alice": {"requests_per_minute": 2}}}
    asked = _to("/v1/messages", "go")
    async with client(scripted(auth=auth)) as made:
        missing = await made.post("/v1/messages", json=asked)
        known = await made.post("/v1/messages", json=asked, headers={"x-api-key": KEY})
        other = await made.get("/v1/messages", headers={"authorization": f"Bearer {KEY}"})
        often = await made.post("/v1/messages", json=asked, headers={"x-api-key": KEY})
        chat = await made.post("/v1/chat/completions", json=task("go"))
    assert known.status_code == 200
    assert known.headers["request-id"] == known.headers["x-request-id"]
    kinds = [(a.status_code, a.json()["error"]["type"]) for a in (missing, other, often)]
    assert kinds == [
        (401, "authentication_error"),
        (405, "invalid_request_error"),
        (429, "rate_limit_error"),
    ]
    for answer in (missing, other, often):  # Anthropic's clients read it there, in errors too
        assert answer.headers["request-id"] == answer.json()["request_id"]
    assert "type" not in chat.json()
    assert "request-id" not in chat.headers


async def test_the_front_page_needs_no_key(
    scripted: Callable[..., ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_KEYS", f"alice: {KEY}")
    async with client(scripted(auth={"keys_env": "SERVE_KEYS"})) as made:
        page = await made.get("/")
        for path in ("/v1/models", "/none"):
            assert (await made.get(path)).status_code == 401
    assert page.headers["content-type"].startswith("text/html")
    assert 'href="/docs"' in page.text
    assert "/ui" not in page.text  # the chat is not on here
    assert "alice" not in page.text
