"""Adapters by name, through every API and its official client, against the real server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.serve_app.conftest import ADAPTERS
from tests.serve_app.tasks import answer, error, served, text_task

GREEDY = {"temperature": 0}
SAY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]
NAMES = ("demo", *(f"demo:{name}" for name in ADAPTERS))


@pytest.fixture
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic(address: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def chat(api: OpenAI, name: str) -> Any:
    return api.chat.completions.create(model=name, messages=SAY, temperature=0, max_tokens=24)


def test_every_way_in_says_the_same(api: OpenAI, anthropic: Anthropic) -> None:
    with ThreadPoolExecutor(len(NAMES)) as pool:
        chats = list(pool.map(lambda name: chat(api, name), NAMES))
    assert [each.model for each in chats] == list(NAMES)
    texts = [each.choices[0].message.content for each in chats]
    assert len(set(texts)) == len({each.system_fingerprint for each in chats}) == len(NAMES)
    for name, text in zip(NAMES, texts, strict=True):
        response = api.responses.create(
            model=name, input=SAY, temperature=0, max_output_tokens=24, store=False
        )
        assert response.output_text == text
        message = anthropic.messages.create(
            model=name, messages=SAY, max_tokens=24, extra_body=GREEDY
        )
        assert [block.text for block in message.content if block.type == "text"] == [text]
        stream = api.chat.completions.create(
            model=name, messages=SAY, temperature=0, max_tokens=24, stream=True
        )
        pieces = [each.choices[0].delta.content or "" for each in stream]
        assert "".join(pieces) == text


def test_completions_and_tasks(api: OpenAI, client: httpx.Client) -> None:
    said = {
        name: api.completions.create(model=name, prompt="Once", temperature=0, max_tokens=12)
        for name in NAMES
    }
    assert len({each.choices[0].text for each in said.values()}) == len(NAMES)
    asked = text_task(model="demo:one", return_token_ids=True)
    told = answer(client.post("/v1/tasks", json=asked))
    found = client.post("/v1/verifications", json={"task": asked, "response": told}).json()
    assert (found["verdict"], found["same_fingerprint"]) == ("exact", True)
    other = asked | {"model": "demo:two"}
    claimed = told | {"model": "demo:two"}
    found = client.post("/v1/verifications", json={"task": other, "response": claimed}).json()
    assert found["verdict"] == "different"


def test_they_are_listed(api: OpenAI, client: httpx.Client) -> None:
    listed = {model.id: model for model in api.models.list()}
    assert list(listed) == list(NAMES)
    card = served(client)[0]["replicas"][0]["card"]
    for name in ADAPTERS:
        entry: Any = api.models.retrieve(f"demo:{name}")
        assert entry == listed[f"demo:{name}"]
        assert entry.parent == "demo"
        (variant,) = entry.variants  # only the one that has adapters
        assert variant["replicas"][0]["card"] == card["adapters"][name]
        assert (
            chat(api, entry.id).system_fingerprint == card["adapters"][name]["system_fingerprint"]
        )
    assert served(client)[0]["replicas"][0]["load"]["adapters_loaded"] == len(ADAPTERS)


def test_others_are_refused(api: OpenAI, client: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(api, "demo:three")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "'demo' has no adapter 'three'; its adapters: one, two" in str(caught.value)
    response = client.post("/v1/tasks", json=text_task(model="demo:one", quantize_bits=8))
    assert error(response, 400)["param"] == "quantize_bits"
    assert (
        error(client.post("/v1/tasks", json=text_task(model="none:one")), 404)["param"] == "model"
    )
