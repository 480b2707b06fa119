"""The server as OpenAI's own client sees it."""

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.tasks import text_of, text_task

COUNT: list[Any] = [{"role": "user", "content": "Count from 3 to 9."}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]


@pytest.fixture
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_api(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def texts(answer: ChatCompletion) -> list[str | None]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.message.content for choice in answer.choices]


def joined(chunks: list[ChatCompletionChunk]) -> tuple[list[str], list[str]]:
    """The texts and finish reasons; what every stream has to keep is checked on the way."""
    found: dict[int, str] = {}
    reasons: dict[int, str] = {}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            assert choice.index not in reasons, "a choice went on after its end"
            assert (choice.delta.role == "assistant") == (choice.index not in found)
            found[choice.index] = found.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert set(found) == set(reasons)
    return [found[i] for i in sorted(found)], [reasons[i] for i in sorted(reasons)]


def seed_of(answer: Any) -> int:
    seed: int = answer.seed  # beside OpenAI's fields
    return seed


def image(name: str) -> str:
    data = (REPOSITORY / "demo" / "images" / name).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_plain(api: OpenAI, client: httpx.Client) -> None:
    answer = api.chat.completions.create(model="demo", messages=COUNT, temperature=0)
    assert texts(answer) == ["3, 4, 5, 6, 7, 8, 9."]
    # The task route has the same answer: it is the same task.
    greedy = {"do_sample": False}
    assert texts(answer) == [
        text_of(
            client.post("/v1/tasks", json=text_task("Count from 3 to 9.", generation_config=greedy))
        )
    ]
    assert answer.object == "chat.completion"
    assert answer.id == f"chatcmpl-{answer._request_id}"  # as Ray Serve's logs call it
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.role == "assistant"
    assert answer.system_fingerprint
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"temperature": 0}, id="greedy"),
        pytest.param({"seed": 42}, id="sampled"),
        pytest.param({"seed": 7, "n": 3, "temperature": 1.2, "top_p": 0.9}, id="three"),
        pytest.param({"seed": 1, "n": 2, "stop": [" the", "o", "w."]}, id="stop"),
        pytest.param({"seed": 5, "max_tokens": 3}, id="max_tokens"),
        pytest.param({"seed": 5, "max_completion_tokens": 4, "user": "me"}, id="limit"),
        pytest.param(
            {"seed": 9, "extra_body": {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1}},
            id="beside",
        ),
        pytest.param(
            {"temperature": 0, "n": 2, "stop": "fox", "extra_body": {"num_beams": 3}}, id="beams"
        ),
    ],
)
def test_streamed_and_whole_answers_are_the_same(api: OpenAI, settings: dict[str, Any]) -> None:
    whole = api.chat.completions.create(model="demo", messages=STORY, **settings)
    again = api.chat.completions.create(model="demo", messages=STORY, **settings)
    stream = api.chat.completions.create(model="demo", messages=STORY, stream=True, **settings)
    chunks = list(stream)
    assert texts(again) == texts(whole)
    assert joined(chunks) == (texts(whole), [choice.finish_reason for choice in whole.choices])
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert all(chunk.usage is None for chunk in chunks)
    if "seed" in settings:
        assert {seed_of(answer) for answer in (whole, again, *chunks)} == {settings["seed"]}


def test_usage_is_the_last_chunk_of_a_stream(api: OpenAI) -> None:
    whole = api.chat.completions.create(model="demo", messages=COUNT, temperature=0)
    *chunks, last = api.chat.completions.create(
        model="demo",
        messages=COUNT,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert joined(chunks)[0] == texts(whole)
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert last.choices == []
    assert last.usage == whole.usage


@pytest.mark.parametrize("stream", [False, True])
def test_a_drawn_seed_repeats_the_answer(api: OpenAI, stream: bool) -> None:
    drawn = api.chat.completions.with_raw_response.create(model="demo", messages=STORY, n=4)
    first = drawn.parse()
    assert int(drawn.headers["x-seed"]) == seed_of(first)
    assert len(set(texts(first))) > 1
    if stream:
        chunks = list(
            api.chat.completions.create(
                model="demo", messages=STORY, n=4, seed=seed_of(first), stream=True
            )
        )
        assert joined(chunks)[0] == texts(first)
    else:
        again = api.chat.completions.create(model="demo", messages=STORY, n=4, seed=seed_of(first))
        assert texts(again) == texts(first)
        other = api.chat.completions.create(model="demo", messages=STORY, n=4)
        assert seed_of(other) != seed_of(first)


@pytest.mark.parametrize("stop", [", 6", ["9", "5, 6, 7"], [", 6, 7", "6"], ["no such text"], []])
def test_a_stop_string_is_not_part_of_the_answer(api: OpenAI, stop: Any) -> None:
    text = "3, 4, 5, 6, 7, 8, 9."
    stops = [stop] if isinstance(stop, str) else stop
    # The text before the stop string that is complete first.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    expected = text[: min(ends)[1]] if ends else text
    asked: dict[str, Any] = {"model": "demo", "messages": COUNT, "temperature": 0, "stop": stop}
    answer = api.chat.completions.create(**asked)
    assert texts(answer) == [expected]
    assert answer.choices[0].finish_reason == "stop"
    stream: Any = api.chat.completions.create(**asked, stream=True)
    assert joined(list(stream)) == ([expected], ["stop"])


def test_an_image(api: OpenAI) -> None:
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": image("red_circle.png"), "detail": "auto"}},
        {"type": "text", "text": "What is in this image?"},
    ]
    answer = api.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": content}], temperature=0
    )
    assert texts(answer) == ["A red circle."]


def test_a_conversation_with_tools(api: OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
    }
    messages: list[Any] = [
        {"role": "developer", "content": "Answer shortly."},
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]
    asked: dict[str, Any] = {"model": "demo", "messages": messages, "temperature": 0}
    auto = api.chat.completions.create(**asked, tools=[tool], tool_choice="auto")
    assert auto.choices[0].finish_reason in ("stop", "length")
    without = api.chat.completions.create(**asked)
    none = api.chat.completions.create(**asked, tools=[tool], tool_choice="none")
    assert texts(none) == texts(without)
    assert none.usage == without.usage
    # An answer goes into the next request as the client has it.
    messages += [auto.choices[0].message, {"role": "user", "content": "Thank you."}]
    assert texts(api.chat.completions.create(**asked))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("settings", "param", "code"),
    [
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"extra_body": {"max_new_tokens": 5}}, "max_new_tokens", "unknown_parameter"),
        ({"extra_body": {"best_of": 2}}, "best_of", "unknown_parameter"),
        ({"extra_body": {"min_tokens": 2}}, "min_tokens", "unsupported_parameter"),
        ({"extra_body": {"n": "2"}}, "n", "invalid_type"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        # Refused by the engine, where the field has another name.
        ({"max_tokens": 100_000}, "max_tokens", "context_length_exceeded"),
        ({"max_completion_tokens": 10**5}, "max_completion_tokens", "context_length_exceeded"),
        ({"logit_bias": {"5": 1, "1024": 1}}, "logit_bias.1024", "invalid_value"),
        ({"extra_body": {"quantize_bits": 8, "dtype": "float16"}}, "dtype", "invalid_value"),
        (
            {"extra_body": {"chat_template_kwargs": {"tools": []}}},
            "chat_template_kwargs.tools",
            "invalid_value",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_names_the_field(
    api: OpenAI, settings: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="demo", messages=COUNT, stream=stream, **settings)
    error = caught.value
    assert (error.param, error.type, error.code) == (param, "invalid_request_error", code)
    assert param in error.message
    assert "generation_config" not in error.message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://images.example.org/a.png", "not one of those"),
        ("http://127.0.0.1/a.png", "not an IP address"),
        ("file:///etc/passwd", "not one that this server may read"),
        ("data:image/png;base64,%%%", "base64"),
        (image("red_circle.png")[:60], ""),  # no image: the preprocessor says so
    ],
)
def test_a_bad_image_names_the_address(api: OpenAI, url: str, said: str) -> None:
    content: list[Any] = [
        {"type": "text", "text": "What is in this image?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="demo", messages=[{"role": "user", "content": content}])
    assert caught.value.param == "messages.0.content.1.image_url.url"
    assert said in caught.value.message


def test_an_unknown_model_is_not_found(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.chat.completions.create(model="org/none", messages=COUNT)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("org/none")
    assert caught.value.param == "model"


def test_models(api: OpenAI) -> None:
    listed = list(api.models.list())
    assert [model.id for model in listed if ":" not in model.id] == ["demo"]  # without adapters
    model: Any = api.models.retrieve("demo")
    assert (model.id, model.object) == ("demo", "model")
    assert [variant["quantize_bits"] for variant in model.variants] == [None, 8, 4]
    assert model.owned_by == listed[0].owned_by


def test_a_query_parameter_is_refused(api: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="demo", messages=COUNT, extra_query={"stream": "true"})
    assert caught.value.param == "stream"


async def test_the_async_client(async_api: AsyncOpenAI) -> None:
    answer = await async_api.chat.completions.create(model="demo", messages=STORY, seed=3)
    stream = await async_api.chat.completions.create(
        model="demo", messages=STORY, seed=3, stream=True
    )
    assert joined([chunk async for chunk in stream])[0] == texts(answer)


def test_disconnecting_during_a_stream(api: OpenAI) -> None:
    with api.chat.completions.create(model="demo", messages=STORY, stream=True, n=8) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
    assert texts(api.chat.completions.create(model="demo", messages=COUNT, temperature=0))
