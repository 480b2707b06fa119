"""What the server says may be sent back: every form of an answer is a message of the next request.

A replica writes texts of all shapes through the engine's own reader of messages; OpenAI's client
reads the answers, whole and streamed, and sends them back as it would.
"""

import json
from collections.abc import AsyncGenerator, Iterator
from itertools import product
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openai import AsyncOpenAI

from engine.requests.chunks import ChunkBuilder
from engine.requests.outputs import ChoiceDelta, RequestOutput
from engine.text.detect import MessageFormats
from engine.text.message import MessageParser
from engine.text.reasoning import THINK
from engine.text.tool_calls.hermes import HERMES
from schema import StreamChunk, Task, schemas
from schema.answers.response import collect
from schema.clients.openai import ChatCompletionRequest
from schema.tool_choice import functions_of
from tests.engine.requests.test_prompt import renderer
from tests.serve_app.http.clients.openai.test_openai_tools import CALLS, TIME, WEATHER
from tests.serve_app.scripted import StandIn, app_maker

CHAT = Draft202012Validator(schemas()["chat_completion_request"])
TASK = Draft202012Validator(schemas()["task"])
ONE_CALL = CALLS.partition('\n<tool_call>\n{"name": "time"')[0]

# An answer is one of each, joined.
REASONING = ("", "<think></think>", "<think>\nHm.\n</think>\n\n", "<think>\nnever closed ")
TEXT = ("", "\n", "Well.")
WRITTEN = ("", ONE_CALL, CALLS, CALLS[:-40], '<tool_call>{"name": "weather", "arguments": {"a')
SHAPES = ["".join(parts) for parts in product(REASONING, TEXT, WRITTEN)]

# Both end with an error where a content is None or absent.
TEXT_TEMPLATE = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
IMAGE_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% for part in m.content %}{{ '' + part.text }}{% endfor %}{% endfor %}"
)
RENDERERS = (renderer(TEXT_TEMPLATE), renderer(IMAGE_TEMPLATE, images=True))


def chunks_of(task: Task) -> Iterator[StreamChunk]:
    """The answer is what the last message of the user says."""
    text = [message.text for message in task.messages if message.role == "user"][-1]
    reader = MessageParser(
        MessageFormats(HERMES, THINK, {}),
        functions_of(task.tools),
        (),
        "call{}".format,
        one_call=not task.parallel_tool_calls,
    )
    form = ChunkBuilder("demo", "fp", 1, [reader])
    for start in range(0, len(text), 9):
        yield form.chunk(RequestOutput((ChoiceDelta(0, text[start : start + 9], None),), 1))
    yield form.chunk(RequestOutput((ChoiceDelta(0, "", "stop"),), 1, done=True))


class WritingReplica(StandIn):
    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        for chunk in chunks_of(task):
            yield chunk


def client_of(http: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)


def forms_of(message: Any) -> list[dict[str, Any]]:
    """A message as programs send it back, in each form that differs."""
    made = [
        message.model_dump(),
        message.model_dump(exclude_none=True),
        message.model_dump(exclude_unset=True),
        message.to_dict(),
        message.to_dict(exclude_none=True),
        message.to_dict(exclude_unset=False),
    ]
    return [json.loads(form) for form in dict.fromkeys(map(json.dumps, made))]


def next_request(message: dict[str, Any], tools: list[Any] | None) -> dict[str, Any]:
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "12"}
        for call in message.get("tool_calls") or ()
    ]
    asked = [{"role": "user", "content": "Hi"}, message, *results]
    return {"model": "demo", "messages": [*asked, {"role": "user", "content": "Thanks"}]} | (
        {"tools": tools} if tools else {}
    )


def check(message: dict[str, Any], tools: list[Any] | None) -> Task:
    """It is legal under the published schema, for the server, and for templates."""
    request = next_request(message, tools)
    CHAT.validate(request)
    task = ChatCompletionRequest.parse(json.dumps(request)).task(0)
    for renders in RENDERERS:
        renders.render(task)
    return task


# The client itself is not sure of its own type there.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("tools", [None, [WEATHER, TIME]], ids=["no tools", "tools"])
async def test_every_answer_is_a_message_of_the_next_request(tools: list[Any] | None) -> None:
    app = app_maker(WritingReplica)()
    shapes = set()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        api = client_of(http)
        for text in SHAPES:
            asked: dict[str, Any] = {"model": "demo", "seed": 1} | (
                {"tools": tools} if tools else {}
            )
            asked["messages"] = [{"role": "user", "content": text}]
            whole = (await api.chat.completions.create(**asked)).choices[0].message
            async with api.chat.completions.stream(**asked) as stream:
                streamed = (await stream.get_final_completion()).choices[0].message
            thoughts = getattr(whole, "reasoning_content", None)
            shapes.add((bool(whole.content), bool(thoughts), len(whole.tool_calls or ())))
            tasks = [check(form, tools) for form in [*forms_of(whole), *forms_of(streamed)]]
            # However it comes back, it is the same message.
            (back,) = {repr((t.messages[1].text, t.messages[1:])) for t in tasks}
            assert "'Thanks'" in back
            request = next_request(whole.to_dict(), tools)
            last = await api.chat.completions.create(**request)
            assert last.choices[0].message.content == "Thanks"
    assert (False, False, 0) in shapes  # nothing at all
    assert (False, True, 0) in shapes  # only reasoning
    assert len(shapes) >= (10 if tools else 4)


@pytest.mark.parametrize("text", SHAPES)
def test_every_answer_of_a_task_is_a_message_of_the_next_task(text: str) -> None:
    fields: dict[str, Any] = {"model": "demo", "tools": [WEATHER, TIME], "answer_format": "message"}
    asked = Task.from_fields(messages=[{"role": "user", "content": text}], **fields)
    message = collect(list(chunks_of(asked)))["choices"][0]["message"]
    following = fields | {"messages": [{"role": "user", "content": "Hi"}, message]}
    TASK.validate(following)
    task = Task.parse(json.dumps(following))
    for renders in RENDERERS:
        renders.render(task)


async def test_at_most_one_call_where_the_request_says_so() -> None:
    app = app_maker(WritingReplica)()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        api = client_of(http)
        asked: dict[str, Any] = {
            "model": "demo",
            "messages": [{"role": "user", "content": f"I look.\n{CALLS}"}],
            "tools": [WEATHER, TIME],
            "parallel_tool_calls": False,
        }
        whole = (await api.chat.completions.create(**asked)).choices[0]
        async with api.chat.completions.stream(**asked) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look."
        assert [call.function.name for call in choice.message.tool_calls or ()] == ["weather"]
