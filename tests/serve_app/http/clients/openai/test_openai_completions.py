"""Completions, as OpenAI's own client sees them, beside `transformers.generate`."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Completion
from transformers import AutoModelForImageTextToText, AutoTokenizer

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.tasks import text_of

PROMPT = "<|im_start|>user\nCount from 3 to 9.<|im_end|>\n<|im_start|>assistant\n3, 4,"


@pytest.fixture
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def texts(answer: Completion) -> list[str]:
    return [choice.text for choice in answer.choices]


def generated(prompt: str, max_tokens: int) -> str:
    model = AutoModelForImageTextToText.from_pretrained(REPOSITORY / "demo" / "model").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(REPOSITORY / "demo" / "model")
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("prompt", [PROMPT, "Count from"])
def test_the_model_continues_the_text_as_it_is(
    api: OpenAI, client: httpx.Client, prompt: str
) -> None:
    answer = api.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=20)
    assert texts(answer) == [generated(prompt, 20)]
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    task = {
        "model": "demo",
        "messages": [{"role": "user", "content": prompt}],
        "use_chat_template": False,
        "generation_config": {"max_new_tokens": 20},
    }
    assert texts(answer) == [text_of(client.post("/v1/tasks", json=task))]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"temperature": 0}, id="greedy"),
        pytest.param({"seed": 3, "n": 3, "max_tokens": 30}, id="three"),
        pytest.param({"temperature": 0, "stop": [", 7", "8"]}, id="stop"),
        pytest.param({"temperature": 0, "stop": " 5"}, id="stop first"),
    ],
)
def test_streamed_and_whole_answers_are_the_same(api: OpenAI, settings: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": PROMPT, **settings}
    whole = api.completions.create(**asked)
    *chunks, last = api.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    found = [""] * len(whole.choices)
    reasons: list[Any] = [None] * len(whole.choices)
    for chunk in chunks:
        assert (chunk.object, chunk.usage) == ("text_completion", None)
        for choice in chunk.choices:
            assert reasons[choice.index] is None, "a choice went on after its end"
            found[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert found == texts(whole)
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert (last.choices, last.usage) == ([], whole.usage)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"prompt": "word " * 20_000}, "prompt"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"extra_body": {"messages": []}}, "messages"),
    ],
    ids=["length", "max_tokens", "echo", "messages"],
)
def test_a_bad_request_names_the_field(api: OpenAI, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(**{"model": "demo", "prompt": PROMPT} | settings)
    assert caught.value.param == param
    assert param in caught.value.message
