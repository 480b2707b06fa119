"""Log probabilities, penalties and biases, as OpenAI's own client sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForImageTextToText, AutoTokenizer

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.tasks import text_task

PROMPT = "<|im_start|>user\nCount from 3 to 9.<|im_end|>\n<|im_start|>assistant\n3, 4,"
STORY = "Tell me a story about a fox."
ASKED: list[Any] = [{"role": "user", "content": STORY}]
SETTINGS: list[Any] = [
    pytest.param({"temperature": 0, "top": 0}, id="greedy"),
    pytest.param({"seed": 7, "n": 2, "temperature": 1.5, "top": 4, "stop": [" the", "o"]}, id="n"),
    pytest.param(
        {
            "seed": 2,
            "top": 20,
            "frequency_penalty": 1.5,
            "presence_penalty": -0.5,
            "logit_bias": {"5": 5, "1000": -100},
        },
        id="penalties",
    ),
]


@pytest.fixture
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def spelled(tokens: Any) -> str:
    return b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")


@pytest.mark.parametrize("settings", SETTINGS)
def test_chat(api: OpenAI, settings: dict[str, Any]) -> None:
    """Joined chunks are the whole answer; tokens spell its text and the stop string after it."""
    settings = dict(settings)
    top = settings.pop("top")
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED, "logprobs": True, **settings}
    whole = api.chat.completions.create(**asked, top_logprobs=top)
    listed: list[list[Any]] = [[] for _ in whole.choices]
    for chunk in api.chat.completions.create(**asked, top_logprobs=top, stream=True):
        for choice in chunk.choices:
            assert (choice.finish_reason is None) or choice.logprobs is None
            if choice.logprobs is not None:
                listed[choice.index] += choice.logprobs.content or []
    for choice in whole.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.content
        assert tokens
        assert tokens == listed[choice.index]
        assert spelled(tokens).startswith(choice.message.content or "")
        assert "stop" in settings or spelled(tokens) == choice.message.content
        assert {len(token.top_logprobs) for token in tokens} == {top}
        assert all(token.logprob <= 0 for token in tokens)


@pytest.mark.parametrize("settings", SETTINGS)
def test_completions(api: OpenAI, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    top = settings.pop("top")
    asked: dict[str, Any] = {"model": "demo", "prompt": STORY, "logprobs": top, **settings}
    whole = api.completions.create(**asked)
    joined: list[dict[str, list[Any]]] = [{} for _ in whole.choices]
    for chunk in api.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                for name, values in choice.logprobs.model_dump().items():
                    joined[choice.index].setdefault(name, []).extend(values)
    for choice in whole.choices:
        assert choice.logprobs is not None
        found = choice.logprobs.model_dump()
        assert found == joined[choice.index]
        assert len({len(values) for values in found.values()}) == 1
        for name, logprob, others in zip(
            found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
        ):
            # The chosen token is among them, even where it is not one of the most probable.
            assert others[name] >= logprob
            assert len(others) <= top + 1
        for name, offset in zip(found["tokens"], found["text_offset"], strict=True):
            if offset + len(name) <= len(choice.text) and not name.startswith("bytes:"):
                assert choice.text[offset : offset + len(name)] == name


def test_log_probabilities_are_the_models_own(api: OpenAI) -> None:
    """Beside a plain forward of `transformers`, in the demo model's own dtype."""
    answer = api.completions.create(model="demo", prompt=PROMPT, temperature=0, logprobs=3)
    model = AutoModelForImageTextToText.from_pretrained(REPOSITORY / "demo" / "model").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(REPOSITORY / "demo" / "model")
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs
    start = len(tokenizer(PROMPT)["input_ids"])
    ids = tokenizer(PROMPT + answer.choices[0].text, return_tensors="pt")["input_ids"]
    assert ids.shape[1] == start + len(logprobs.token_logprobs)
    with torch.no_grad():
        rows = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
    want = rows.gather(1, ids[0, start:, None])[:, 0].tolist()
    assert logprobs.token_logprobs == pytest.approx(want, abs=0.05)


def test_penalties_and_biases_change_the_answer(api: OpenAI) -> None:
    def text(**settings: Any) -> str | None:
        answer = api.chat.completions.create(
            model="demo", messages=ASKED, temperature=0, max_tokens=40, **settings
        )
        content: str | None = answer.choices[0].message.content
        return content

    plain = text()
    assert text(frequency_penalty=0, presence_penalty=0, logit_bias={}) == plain
    assert len({plain, text(frequency_penalty=2), text(presence_penalty=-2)}) > 1
    assert text(logit_bias={"5": 100}) == "&" * 40


def test_the_task_route_has_log_probabilities_too(api: OpenAI, client: httpx.Client) -> None:
    settings = {"logprobs": 2, "do_sample": False, "presence_penalty": 1, "max_new_tokens": 10}
    response = client.post("/v1/tasks", json=text_task(STORY, generation_config=settings))
    (choice,) = response.json()["choices"]
    answer = api.chat.completions.create(
        model="demo",
        messages=ASKED,
        temperature=0,
        presence_penalty=1,
        max_tokens=10,
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.model_dump() for token in logprobs.content] == choice["logprobs"]
