"""Chat completions, responses and messages that say the same have the same answer.

Each through its own official client, against the real server.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.serve_app.http.clients.openai.test_openai import COUNT, STORY, image

PICTURE = image("red_circle.png")
LOOK = "What is in this image?"
CALLED: dict[str, Any] = {"type": "object", "properties": {"shape": {"enum": ["circle", "star"]}}}
CALLED |= {"required": ["shape"], "additionalProperties": False}
SHAPE = {"name": "paint", "description": "Paints.", "parameters": CALLED}


class Form(NamedTuple):
    """The same request to each of the three APIs; the model and limit are added."""

    chat: dict[str, Any]
    responses: dict[str, Any]
    messages: dict[str, Any]


def _plain(messages: list[Any], **settings: Any) -> Form:
    own = {name: settings[name] for name in ("seed", "top_k") if name in settings}
    common = {name: value for name, value in settings.items() if name not in own}
    chat = common | {"extra_body": own}
    return Form(
        {"messages": messages} | chat,
        {"input": messages} | chat,
        # Anthropic's client has no settings of sampling.
        {"messages": messages, "extra_body": settings},
    )


FORMS: dict[str, Form] = {
    "greedy": _plain(COUNT, temperature=0),
    "sampled": _plain(STORY, seed=7),
    "settings": _plain(STORY, seed=8, temperature=1.4, top_p=0.8, top_k=9),
    "a conversation": _plain(
        [*COUNT, {"role": "assistant", "content": "3, 4"}, {"role": "user", "content": "Go on."}],
        seed=1,
    ),
    "instructions": Form(
        {"messages": [{"role": "system", "content": "Be brief."}, *STORY], "seed": 3},
        {"instructions": "Be brief.", "input": STORY, "extra_body": {"seed": 3}},
        {"system": "Be brief.", "messages": STORY, "extra_body": {"seed": 3}},
    ),
    "an image": Form(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": PICTURE}},
                        {"type": "text", "text": LOOK},
                    ],
                }
            ],
            "temperature": 0,
        },
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
                        {"type": "input_text", "text": LOOK},
                    ],
                }
            ],
            "temperature": 0,
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": PICTURE.partition(",")[2],
                            },
                        },
                        {"type": "text", "text": LOOK},
                    ],
                }
            ],
            "extra_body": {"temperature": 0},
        },
    ),
    "a form": Form(
        {
            "messages": STORY,
            "seed": 5,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "f", "schema": CALLED},
            },
        },
        {
            "input": STORY,
            "text": {"format": {"type": "json_schema", "name": "f", "schema": CALLED}},
            "extra_body": {"seed": 5},
        },
        {
            "messages": STORY,
            "output_config": {"format": {"type": "json_schema", "schema": CALLED}},
            "extra_body": {"seed": 5},
        },
    ),
    "a call": Form(
        {
            "messages": STORY,
            "seed": 6,
            "tools": [{"type": "function", "function": SHAPE}],
            "tool_choice": {"type": "function", "function": {"name": "paint"}},
        },
        {
            "input": STORY,
            "tools": [{"type": "function", **SHAPE}],
            "tool_choice": {"type": "function", "name": "paint"},
            "extra_body": {"seed": 6},
        },
        {
            "messages": STORY,
            "tools": [{"name": "paint", "description": "Paints.", "input_schema": CALLED}],
            "tool_choice": {"type": "tool", "name": "paint"},
            "extra_body": {"seed": 6},
        },
    ),
}
"""What the chat says; each of the others says the same in its own words."""

MAX_TOKENS = 80


@pytest.fixture(scope="module")
def openai(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic(address: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


class Told(NamedTuple):
    """What an answer says, in no API's form."""

    text: str
    calls: list[tuple[str, str]]
    tokens: tuple[int, int]
    fingerprint: str


def _chat(client: OpenAI, form: Form) -> Told:
    made: Any = client.chat.completions.create(model="demo", max_tokens=MAX_TOKENS, **form.chat)
    message = made.choices[0].message
    return Told(
        message.content or "",
        [(call.function.name, call.function.arguments) for call in message.tool_calls or ()],
        (made.usage.prompt_tokens, made.usage.completion_tokens),
        made.system_fingerprint,
    )


def _of_response(made: Any) -> Told:
    return Told(
        made.output_text,
        [(item.name, item.arguments) for item in made.output if item.type == "function_call"],
        (made.usage.input_tokens, made.usage.output_tokens),
        made.system_fingerprint,
    )


def _of_message(made: Any) -> tuple[Any, ...]:
    return (
        "".join(block.text for block in made.content if block.type == "text"),
        [(block.name, block.input) for block in made.content if block.type == "tool_use"],
        (made.usage.input_tokens, made.usage.output_tokens),
        made.system_fingerprint,
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_same_text(openai: OpenAI, anthropic: Anthropic, form: Form) -> None:
    chat = _chat(openai, form)
    limit: Any = {"model": "demo", "max_output_tokens": MAX_TOKENS}
    assert _of_response(openai.responses.create(**limit, **form.responses)) == chat
    with openai.responses.stream(**limit, **form.responses) as events:
        list(events)
        assert _of_response(events.get_final_response()) == chat
    limit = {"model": "demo", "max_tokens": MAX_TOKENS}
    whole = anthropic.messages.create(**limit, **form.messages)
    with anthropic.messages.stream(**limit, **form.messages) as stream:
        streamed = stream.get_final_message()
    assert _of_message(whole) == _of_message(streamed)
    text, calls, *rest = _of_message(whole)
    assert (text, *rest) == (chat.text, chat.tokens, chat.fingerprint)
    assert calls == [(name, json.loads(arguments)) for name, arguments in chat.calls]
