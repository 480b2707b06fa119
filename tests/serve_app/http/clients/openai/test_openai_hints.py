"""Requests as agent frameworks send them: fields without effect here do not stop them."""

import base64
import json
from typing import Any

import httpx
import pytest

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
HI = [{"role": "user", "content": "Hi"}]
GREEDY: dict[str, Any] = {"model": "demo", "max_tokens": 4, "temperature": 0}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def chat(client: httpx.Client, **fields: Any) -> list[Any]:
    """The choices of a greedy answer."""
    response = client.post("/v1/chat/completions", json=GREEDY | {"messages": HI} | fields)
    assert response.status_code == 200, response.text
    choices: list[Any] = response.json()["choices"]
    return choices


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_key": "k1"},
        {"metadata": {"run": "7"}},
        {"store": True, "service_tier": "flex", "safety_identifier": "x", "verbosity": "low"},
        {"prediction": {"type": "content", "content": "Hi"}},
        {"top_k": -1},
        {"functions": []},
        {"stop": [""]},
        {"logprobs": False, "top_logprobs": 0},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "high"},
        {"max_completion_tokens": 4},
        {"max_tokens": 4.0, "seed": 1.0},
        {"stream_options": {"include_usage": True}},
        {"temperature": 1e-8},
        {"top_p": 0},
        {"provider": {"order": ["x"]}, "usage": {"include": True}},
    ],
    ids=json.dumps,
)
def test_a_hint_does_not_change_the_answer(client: httpx.Client, fields: dict[str, Any]) -> None:
    assert chat(client, **fields) == chat(client)


@pytest.mark.parametrize("stream", [False, True])
def test_equal_choices_of_a_greedy_request(client: httpx.Client, stream: bool) -> None:
    [one] = chat(client)
    if not stream:
        assert chat(client, n=3) == [one | {"index": index} for index in range(3)]
        return
    body = GREEDY | {"messages": HI, "n": 3, "stream": True}
    texts = ["", "", ""]
    for line in client.post("/v1/chat/completions", json=body).text.split("\n\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [one["message"]["content"]] * 3


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": "{}"},
}
NAMES: list[list[Any]] = [
    [{"role": "user", "name": "planner", "content": "Hi"}],
    [*HI, {"role": "assistant", "name": "writer", "content": "Hello"}, *HI],
    [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "mild"},
    ],
]


@pytest.mark.parametrize("messages", NAMES)
def test_messages_with_names(client: httpx.Client, messages: list[Any]) -> None:
    plain = [{k: v for k, v in message.items() if k != "name"} for message in messages]
    # The demo model's template does not read names.
    assert chat(client, messages=messages) == chat(client, messages=plain)


def test_free_calls_may_be_single_and_strict(client: httpx.Client) -> None:
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    assert chat(client, tools=[WEATHER], parallel_tool_calls=False)
    assert chat(client, tools=[strict])
    assert chat(client, tools=[strict], tool_choice="none", parallel_tool_calls=False)


def picture(url: str, **fields: Any) -> list[Any]:
    part = {"type": "image_url", "image_url": {"url": url, **fields}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]


@pytest.mark.parametrize("detail", ["low", "high", "auto", "original", None])
def test_the_detail_of_a_picture_is_a_hint(client: httpx.Client, detail: str | None) -> None:
    url = f"data:image/png;base64,{PNG}"
    plain = chat(client, messages=picture(url))
    assert chat(client, messages=picture(url, detail=detail)) == plain


@pytest.mark.parametrize(
    "url",
    [
        f"data:application/octet-stream;base64,{PNG}",
        f"data:image/png;charset=utf-8;base64,{PNG}",
        f"data:image/png;base64,{base64.encodebytes(base64.b64decode(PNG)).decode()}",
        f"data:image/png;base64,{PNG.rstrip('=')}",
    ],
)
def test_forms_of_data_urls(client: httpx.Client, url: str) -> None:
    plain = chat(client, messages=picture(f"data:image/png;base64,{PNG}"))
    assert chat(client, messages=picture(url)) == plain
    block = {"type": "image", "base64": url.partition(",")[2]}
    task = {"model": "demo", "messages": [{"role": "user", "content": [block]}]}
    assert client.post("/v1/tasks", json=task).status_code == 200


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png,%89PNG", "invalid_value"),
        ("data:image/png;base64,", "invalid_value"),
        ("data:image/png;base64,iVBORw0KG", "invalid_value"),
        ("data:image/png;base64,iVBO_w0K", "invalid_value"),
        ("data:text/plain;base64,SGVsbG8=", "invalid_image"),
    ],
)
def test_a_data_url_that_holds_no_image(client: httpx.Client, url: str, code: str) -> None:
    body = GREEDY | {"messages": picture(url)}
    response = client.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code)
    assert error["param"] == "messages.0.content.0.image_url.url"


LONG = "word " * 12_000
TOO_LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    "its answer": ("/v1/chat/completions", {"messages": HI, "max_tokens": 50_000}),
    "a prompt": ("/v1/completions", {"prompt": LONG}),
    "its continuation": ("/v1/completions", {"prompt": "Hi", "max_tokens": 50_000}),
    "a task": ("/v1/tasks", {"messages": [{"role": "user", "content": LONG}]}),
    "a task's answer": (
        "/v1/tasks",
        {"messages": HI, "generation_config": {"max_new_tokens": 50_000}},
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", TOO_LONG)
def test_what_does_not_fit_the_context(client: httpx.Client, name: str, stream: bool) -> None:
    path, fields = TOO_LONG[name]
    body = {"model": "demo", **fields}
    if path != "/v1/tasks":
        body["stream"] = stream
    query = {"stream": "true"} if stream and path == "/v1/tasks" else None
    response = client.post(path, json=body, params=query)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["type"] == "invalid_request_error"
    assert "maximum context length" in error["message"]
