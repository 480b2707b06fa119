"""As test_ingress.py, for the routes of OpenAI's clients."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp

from schema import StreamChunk, Task
from tests.serve_app.scripted import StandIn, app_maker, cancelled, chunk, client, events_of, task


@pytest.fixture(scope="module")
def app() -> Callable[..., ASGIApp]:
    return app_maker()


def _chat(act: str, **fields: Any) -> dict[str, Any]:
    return task(act) | {"stream": True} | fields


async def test_a_chat_stream(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        response = await http.post(
            "/v1/chat/completions", json=_chat("go", seed=3), headers={"x-request-id": "r-1"}
        )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-seed"] == "3"
    events = events_of(response.text)
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""},
        {"content": "é "},
        {"content": "ok"},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, None, "stop"]
    assert {(event["id"], event["seed"]) for event in events} == {("chatcmpl-r-1", 3)}


async def test_a_chat_without_a_request_id_gets_one(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        answers = [
            await http.post("/v1/chat/completions", json=_chat("go", stream=False))
            for _ in range(2)
        ]
    ids = [answer.json()["id"] for answer in answers]
    assert ids == [f"chatcmpl-{answer.headers['x-request-id']}" for answer in answers]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"chatcmpl-[0-9a-f-]{36}", made) for made in ids)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("act", "status", "code"),
    [
        ("refuse", 400, "invalid_value"),
        ("overload", 503, "server_is_overloaded"),
        ("fail", 500, "server_error"),
        ("bug", 500, "server_error"),
        ("hang", 504, "request_timeout"),
    ],
)
async def test_an_error_of_a_chat_before_the_first_chunk_is_an_http_error(
    app: Callable[..., ASGIApp], stream: bool, act: str, status: int, code: str
) -> None:
    cancelled.clear()
    async with client(app(request_timeout_s=0.2)) as http:
        response = await http.post("/v1/chat/completions", json=_chat(act, stream=stream))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers.get("retry-after") == ("3" if act == "overload" else None)
    if act == "hang":
        assert await asyncio.to_thread(cancelled.wait, 30)


async def test_an_error_of_a_chat_after_the_first_chunk_is_the_last_event(
    app: Callable[..., ASGIApp],
) -> None:
    options = {"include_usage": True}
    async with client(app()) as http:
        response = await http.post(
            "/v1/chat/completions", json=_chat("later fail", stream_options=options)
        )
    *events, last = events_of(response.text)
    assert [event["choices"][0]["delta"].get("content") for event in events] == ["", "é "]
    assert last["error"]["code"] == "server_error"


class Unspeakable(StandIn):
    """Its answer continues with text that JSON in UTF-8 cannot represent."""

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        yield chunk("a")
        yield chunk("\ud800", "stop")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tasks?stream=true"])
async def test_a_fault_of_the_ingress_after_the_first_chunk_is_the_last_event_too(
    path: str,
) -> None:
    fields = {} if "?" in path else {"stream": True}
    async with client(app_maker(Unspeakable)()) as http:
        response = await http.post(path, json=task("go") | fields)
    *_, last = events_of(response.text)
    assert last["error"]["code"] == "server_error"
