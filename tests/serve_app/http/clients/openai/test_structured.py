"""Structured output, as OpenAI's client and the task route ask for it."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.serve_app.http.clients.openai.test_openai import joined, texts
from tests.serve_app.tasks import text_task

ASK: list[Any] = [{"role": "user", "content": "Describe a red circle as JSON."}]


@pytest.fixture
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


class Shape(BaseModel):
    """The model that a client asks for."""

    name: str = Field(max_length=10)
    color: Literal["red", "green"]
    corners: list[Literal[0, 1]] = Field(max_length=2)


SCHEMA: dict[str, Any] = Shape.model_json_schema() | {"additionalProperties": False}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA}}


def test_a_schema(api: OpenAI) -> None:
    """Whole, streamed and again the same; every choice is valid, strict or not."""
    fields: dict[str, Any] = {"model": "demo", "messages": ASK, "seed": 3, "n": 2}
    create: Any = api.chat.completions.create
    answer = create(**fields, response_format=FORMAT)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(choice.message.content or ""))
    strict = {"type": "json_schema", "json_schema": FORMAT["json_schema"] | {"strict": True}}
    stream = create(**fields, response_format=strict, stream=True)
    assert joined(list(stream)) == (texts(answer), ["stop", "stop"])


def test_a_json_object(api: OpenAI) -> None:
    answer = api.chat.completions.create(
        model="demo",
        messages=ASK,
        seed=1,
        n=8,
        max_tokens=100,
        response_format={"type": "json_object"},
    )
    ended = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert ended
    for choice in ended:
        assert isinstance(json.loads(choice.message.content or ""), dict)


def test_the_clients_own_models(api: OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": ASK, "temperature": 0, "response_format": Shape}
    answer = api.chat.completions.parse(**asked)
    assert isinstance(answer.choices[0].message.parsed, Shape)
    with api.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == answer.choices[0].message.parsed
    assert streamed.choices[0].message.content == answer.choices[0].message.content


def test_the_clients_own_functions(api: OpenAI) -> None:
    """Such tools are strict, and so are all forced calls."""
    asked: Any = {
        "model": "demo",
        "messages": ASK,
        "seed": 2,
        "tools": [openai.pydantic_function_tool(Shape)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    message: Any = api.chat.completions.parse(**asked).choices[0].message
    (call,) = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Shape)
    with api.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [streamed.function for streamed in message.tool_calls] == [call.function]


def test_unsupported_keywords_are_named(api: OpenAI) -> None:
    param = "response_format.json_schema.schema"
    asked: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        api.chat.completions.create(model="demo", messages=ASK, response_format=asked)
    assert caught.value.param == param


def test_a_task_with_choices(client: httpx.Client) -> None:
    task = text_task("Is it red?") | {
        "structured_output": {"type": "choice", "choices": ["maybe", "may"]}
    }
    response = client.post("/v1/tasks", json=task)
    assert response.json()["choices"][0]["message"]["content"] in ("maybe", "may")
