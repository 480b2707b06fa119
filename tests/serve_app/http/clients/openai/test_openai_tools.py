"""Calls of tools and reasoning as OpenAI's own client and LangChain read them.

The replica has no model: it writes what the last message of the user says, through the engine's own
reader of messages, a few characters at a time.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, cast

import httpx
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import BaseModel, SecretStr
from starlette.types import ASGIApp

from engine.requests.chunks import ChunkBuilder
from engine.requests.outputs import ChoiceDelta, RequestOutput
from engine.text.detect import MessageFormats
from engine.text.message import MessageParser
from engine.text.reasoning import THINK
from engine.text.tool_calls.hermes import HERMES
from schema import StreamChunk, Task
from schema.tool_choice import functions_of
from tests.serve_app.scripted import StandIn, app_maker

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {}}}
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
EXPECTED = [("weather", '{"city": "Zürich"}'), ("time", "{}")]

seen: list[Task] = []


class City(BaseModel):
    city: str


class WritingReplica(StandIn):
    """Writes the last text of the user."""

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        assert task.answer_format == "message"
        seen.append(task)
        text = [message.text for message in task.messages if message.role == "user"][-1]
        reader = MessageParser(
            MessageFormats(HERMES, THINK, {}),
            functions_of(task.tools),
            task.generation_config.stop_strings or (),
            lambda call: f"call{task.seed:04}{call}",
        )
        form = ChunkBuilder("demo", "fp", 1, [reader])
        for start in range(0, len(text), 7):
            delta = ChoiceDelta(0, text[start : start + 7], None)
            yield form.chunk(RequestOutput((delta,), start + 1))
        yield form.chunk(RequestOutput((ChoiceDelta(0, "", "stop"),), len(text), done=True))


@pytest.fixture(scope="module")
def app() -> Callable[..., ASGIApp]:
    return app_maker(WritingReplica)


@pytest.fixture
async def http(app: Callable[..., ASGIApp]) -> AsyncIterator[Any]:
    seen.clear()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app())) as client:
        yield client


@pytest.fixture
def api(http: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], "seed": 7} | fields


def calls(message: Any) -> list[tuple[str, str]]:
    assert [call.id for call in message.tool_calls] == ["call00070", "call00071"]
    return [(call.function.name, call.function.arguments) for call in message.tool_calls]


@pytest.mark.parametrize("before", ["", "I look.\n", "<think>\nHm.\n</think>\n\n"])
async def test_the_clients_streaming_helper_adds_up_to_the_whole_answer(
    api: AsyncOpenAI, before: str
) -> None:
    request = asked(before + CALLS, tools=[WEATHER, TIME])
    whole = (await api.chat.completions.create(**request)).choices[0]
    async with api.chat.completions.stream(**request) as stream:
        events = [event async for event in stream]
        streamed = (await stream.get_final_completion()).choices[0]
    assert calls(whole.message) == calls(streamed.message) == EXPECTED
    assert whole.message.content == streamed.message.content
    assert whole.message.content == ("I look." if before == "I look.\n" else None)
    thoughts = [getattr(c.message, "reasoning_content", None) for c in (whole, streamed)]
    assert thoughts == (["Hm."] * 2 if "Hm." in before else [None] * 2)
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, event.arguments) for event in done] == EXPECTED


async def test_answers_come_back_as_messages(api: AsyncOpenAI) -> None:
    request = asked(f"<think>Hm.</think>{CALLS}", tools=[WEATHER, TIME])
    answer = (await api.chat.completions.create(**request)).choices[0].message
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "12"}
        for call in answer.tool_calls or ()
    ]
    messages = [*request["messages"], answer, *results, {"role": "user", "content": "Thanks"}]
    last = await api.chat.completions.create(model="demo", messages=messages)
    assert last.choices[0].message.content == "Thanks"
    _, back, *tools, _ = seen[-1].messages
    assert (back.content, back.reasoning_content) == (None, "Hm.")
    assert back.tool_calls is not None
    assert [call["function"]["name"] for call in back.tool_calls] == ["weather", "time"]
    assert [tool.tool_call_id for tool in tools] == [call["id"] for call in back.tool_calls]


# The client itself is not sure of its own type there.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_answers_of_the_clients_helpers_come_back_as_messages(api: AsyncOpenAI) -> None:
    """They have what the client has read in them, in fields of its own."""
    request = asked(f"I look.{CALLS}", tools=[WEATHER, TIME])
    async with api.chat.completions.stream(**request) as stream:
        called = (await stream.get_final_completion()).choices[0].message
    found = await api.chat.completions.parse(**asked('{"city": "Lima"}'), response_format=City)
    read = found.choices[0].message
    assert read.parsed == City(city="Lima")
    messages = [*request["messages"], called, read, {"role": "user", "content": "Thanks"}]
    await api.chat.completions.create(model="demo", messages=cast(Any, messages))
    _, back, again, _ = seen[-1].messages
    assert (back.content, again.content) == ("I look.", '{"city": "Lima"}')
    assert back.tool_calls == [
        {
            "id": f"call0007{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for number, (name, arguments) in enumerate(EXPECTED)
    ]


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_without_tools_a_call_is_text(api: AsyncOpenAI, fields: dict[str, Any]) -> None:
    choice = (await api.chat.completions.create(**asked(CALLS, **fields))).choices[0]
    assert (choice.message.content, choice.message.tool_calls) == (CALLS, None)
    assert choice.finish_reason == "stop"


async def test_a_call_of_an_unknown_function_is_text(api: AsyncOpenAI) -> None:
    choice = (await api.chat.completions.create(**asked(CALLS, tools=[TIME]))).choices[0]
    text, _, _ = CALLS.partition('\n<tool_call>\n{"name": "time"')
    assert choice.message.content == text
    assert [call.function.name for call in choice.message.tool_calls or ()] == ["time"]


@pytest.mark.parametrize("stream", [False, True])
async def test_langchain_binds_tools(http: Any, stream: bool) -> None:
    model = ChatOpenAI(
        model="demo",
        base_url="http://test/v1",
        api_key=SecretStr("none"),
        http_async_client=http,
        max_retries=0,
    ).bind_tools([WEATHER, TIME])
    if stream:
        chunks = [chunk async for chunk in model.astream(f"I look. {CALLS}")]
        answer: Any = chunks[0]
        for chunk in chunks[1:]:
            answer += chunk
    else:
        answer = await model.ainvoke(f"I look. {CALLS}")
    assert answer.content == "I look."
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("weather", {"city": "Zürich"}),
        ("time", {}),
    ]
    results = [ToolMessage("12", tool_call_id=call["id"]) for call in answer.tool_calls]
    last = await model.ainvoke([HumanMessage("Hi"), answer, *results, HumanMessage("Thanks")])
    assert last.content == "Thanks"
