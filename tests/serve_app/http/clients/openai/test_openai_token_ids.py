"""Token ids and log probabilities of prompts, as they are sent over HTTP: tokens in, tokens out.

The ids are those of the model's tokenizer and of `transformers.generate`; the log probabilities
those of a plain forward. What is streamed adds up to the whole answer, field by field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForImageTextToText, AutoTokenizer

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.tasks import answer, chunks, error, text_task

COUNT: list[Any] = [{"role": "user", "content": "Count from 3 to 9."}]
TEXT = "<|im_start|>user\nCount from 3 to 9.<|im_end|>\n<|im_start|>assistant\n"
# Without special tokens, whose text an echo of token ids does not have.
PROMPTS = ["Once upon a time", "One, two, three,"]
IDS: dict[str, Any] = {"return_token_ids": True}
SAMPLED: dict[str, Any] = {"seed": 5, "temperature": 1.2, "n": 3, "max_tokens": 12}
OF_PROMPT = ("prompt_token_ids", "prompt_logprobs")
DIRECTORY = REPOSITORY / "demo" / "model"

Choices = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(DIRECTORY, dtype=torch.float32).eval()


def grown(chunks: list[dict[str, Any]]) -> tuple[Choices, dict[str, Any]]:
    """What the ids and log probabilities of a stream add up to; and what is said of the prompt.

    That is said once: in the first chunk, or of a completion in the first of each choice.
    """
    choices: Choices = {}
    once: dict[str, Any] = {}
    for number, chunk in enumerate(chunks):
        said = {name: value for name, value in chunk.items() if name in OF_PROMPT}
        assert not said or number == 0
        once |= said
        for choice in chunk["choices"]:
            is_first = choice["index"] not in choices
            found = choices.setdefault(choice["index"], {"token_ids": [], "logprobs": {}})
            found["token_ids"] += choice["token_ids"]
            for name, values in (choice["logprobs"] or {}).items():
                found["logprobs"].setdefault(name, []).extend(values or [])
            for name in OF_PROMPT:
                if name in choice:
                    assert is_first
                    found[name] = choice[name]
    return choices, once


def of_whole(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice of a whole answer in the form of `grown`."""
    names = ("token_ids", *OF_PROMPT)
    logprobs = {name: values or [] for name, values in (choice["logprobs"] or {}).items()}
    return {name: choice[name] for name in names if name in choice} | {"logprobs": logprobs}


def both_ways(create: Any, asked: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The choices and what is said of the prompt beside them, the same whole and streamed."""
    whole = create(**asked).to_dict()
    choices = {choice["index"]: of_whole(choice) for choice in whole["choices"]}
    once = {name: whole[name] for name in OF_PROMPT if name in whole}
    streamed = [chunk.to_dict() for chunk in create(**asked, stream=True)]
    assert grown(streamed) == (choices, once)
    total = sum(len(choice["token_ids"]) for choice in choices.values())
    assert whole["usage"]["completion_tokens"] == total
    return [choices[index] for index in sorted(choices)], once


def generated(model: Any, ids: list[int], max_tokens: int) -> list[int]:
    """Greedily, by `transformers`."""
    output = model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False)
    found: list[int] = output[0, len(ids) :].tolist()
    return found


def check_prompt(model: Any, tokenizer: Any, ids: list[int], listed: list[Any], top: int) -> None:
    """vLLM's form, with the log probabilities of a plain forward."""
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    assert len(listed) == len(ids)
    assert listed[0] is None
    for token_id, entry, row in zip(ids[1:], listed[1:], rows, strict=False):
        own, *_ = entry  # the token itself comes first
        assert own == str(token_id)
        assert {int(key) for key in entry} >= set(row.topk(top).indices.tolist())
        assert top <= len(entry) <= top + 1
        for key, value in entry.items():
            assert value["logprob"] == pytest.approx(float(row[int(key)]), abs=1e-3)
            if value["rank"] is not None:
                assert 1 <= value["rank"] <= top
        assert entry[own]["decoded_token"] in tokenizer.decode(ids)


def test_a_chat_completion(api: OpenAI, model: Any, tokenizer: Any) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": COUNT, "temperature": 0}
    (choice,), once = both_ways(
        api.chat.completions.create,
        asked | {"logprobs": True, "extra_body": IDS | {"prompt_logprobs": 2}},
    )
    prompt = tokenizer(TEXT)["input_ids"]
    assert once["prompt_token_ids"] == prompt
    assert choice["token_ids"] == generated(model, prompt, 40)
    assert choice["token_ids"][-1] == tokenizer.eos_token_id
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    check_prompt(model, tokenizer, prompt, once["prompt_logprobs"], 2)
    plain = api.chat.completions.create(**asked).to_dict()
    assert not {"prompt_token_ids", "prompt_logprobs"} & plain.keys()
    assert "token_ids" not in plain["choices"][0]


@pytest.mark.parametrize(
    "settings",
    [
        SAMPLED,
        {"temperature": 0, "n": 2, "max_tokens": 6},
        {"seed": 3, "n": 2, "stop": ["o", " the"]},
        {"temperature": 0, "n": 2, "num_beams": 2, "max_tokens": 8},
        {"seed": 3, "logit_bias": {"1019": 100}},
    ],
    ids=["sampled", "copies", "stop", "beams", "only an end"],
)
def test_choices_have_the_ids_of_the_task(
    api: OpenAI, client: httpx.Client, settings: dict[str, Any]
) -> None:
    """Streamed, whole and as a task; ids of the drawn tokens, not of the text."""
    asked = {"model": "demo", "messages": COUNT, "extra_body": IDS | settings}
    choices, once = both_ways(api.chat.completions.create, asked)
    config = {
        "do_sample": settings.get("temperature") != 0,
        "max_new_tokens": settings.get("max_tokens", 256),
        "num_return_sequences": settings.get("n", 1),
        "stop_strings": settings.get("stop"),
        "num_beams": settings.get("num_beams"),
        "logit_bias": settings.get("logit_bias"),
        "temperature": settings.get("temperature", 1.0),
        "top_p": 1.0,
    }
    task = text_task(COUNT[0]["content"], generation_config=config, seed=settings.get("seed", 0))
    response = answer(client.post("/v1/tasks", json=task | IDS))
    assert [c["token_ids"] for c in response["choices"]] == [c["token_ids"] for c in choices]
    assert response["prompt_token_ids"] == once["prompt_token_ids"]
    found, of_prompt = grown_task(chunks(client.post("/v1/tasks?stream=true", json=task | IDS)))
    assert found == [c["token_ids"] for c in choices]
    assert of_prompt == {"prompt_token_ids": once["prompt_token_ids"]}


def grown_task(found: list[Any]) -> tuple[list[list[int]], dict[str, Any]]:
    """The ids of a task's stream, and what its first chunk says of the prompt."""
    ids: dict[int, list[int]] = {}
    for number, chunk in enumerate(found):
        assert number == 0 or not any(name.startswith("prompt_") for name in chunk)
        for choice in chunk["choices"]:
            ids.setdefault(choice["index"], []).extend(choice["token_ids"])
    first = {name: value for name, value in found[0].items() if name.startswith("prompt_")}
    return [ids[index] for index in sorted(ids)], first


@pytest.mark.parametrize("echo", [False, True], ids=["plain", "echo"])
def test_completions_of_texts_and_of_their_ids(
    api: OpenAI, model: Any, tokenizer: Any, echo: bool
) -> None:
    """A list of prompts: each choice says its own prompt. As ids they have the same answers."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    asked: dict[str, Any] = {"model": "demo", **SAMPLED, "echo": echo, "logprobs": 1}
    asked["extra_body"] = IDS | {"prompt_logprobs": 2}
    choices, once = both_ways(api.completions.create, asked | {"prompt": PROMPTS})
    assert once == {}
    assert [choice["prompt_token_ids"] for choice in choices] == [ids[0]] * 3 + [ids[1]] * 3
    for choice in choices:
        check_prompt(model, tokenizer, choice["prompt_token_ids"], choice["prompt_logprobs"], 2)
        told = len(choice["token_ids"]) + echo * len(choice["prompt_token_ids"])
        assert {len(values) for values in choice["logprobs"].values()} == {told}
    assert both_ways(api.completions.create, asked | {"prompt": ids})[0] == choices
    assert both_ways(api.completions.create, asked | {"prompt": ids[1]})[0] == choices[3:]


def test_what_was_drawn_is_read_again(api: OpenAI, model: Any, tokenizer: Any) -> None:
    """The ids of an answer, put behind the prompt's: the greedy answer goes on from there."""
    asked: dict[str, Any] = {"model": "demo", "temperature": 0, "extra_body": IDS}
    (first,), _ = both_ways(api.completions.create, asked | {"prompt": TEXT, "max_tokens": 7})
    ids = first["prompt_token_ids"] + first["token_ids"]
    (rest,), _ = both_ways(api.completions.create, asked | {"prompt": ids, "max_tokens": 40})
    assert first["token_ids"] + rest["token_ids"] == generated(
        model, tokenizer(TEXT)["input_ids"], 47
    )


def test_a_prompt_that_is_only_scored(api: OpenAI, client: httpx.Client, tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    scored: dict[str, Any] = {"prompt_logprobs": 1, "max_tokens": 0}
    asked: dict[str, Any] = {"model": "demo", "prompt": ids, "extra_body": IDS | scored}
    (choice,), _ = both_ways(api.completions.create, asked)
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([], ids)
    config = {"prompt_logprobs": 1, "max_new_tokens": 0}
    task = {"model": "demo", "prompt_token_ids": ids, "generation_config": config} | IDS
    whole = answer(client.post("/v1/tasks", json=task))
    (first, *_) = chunks(client.post("/v1/tasks?stream=true", json=task))
    assert first["prompt_logprobs"] == whole["prompt_logprobs"]
    assert first["prompt_token_ids"] == whole["prompt_token_ids"] == ids
    assert [t["token_id"] for t in whole["prompt_logprobs"]] == ids
    assert [
        t and t[str(i)]["logprob"] for t, i in zip(choice["prompt_logprobs"], ids, strict=True)
    ] == [t["logprob"] for t in whole["prompt_logprobs"]]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"messages": COUNT, "prompt_logprobs": 21}, "prompt_logprobs"),
        ("chat/completions", {"messages": COUNT, "return_token_ids": 1}, "return_token_ids"),
        ("completions", {"prompt": "a", "return_token_ids": "yes"}, "return_token_ids"),
        ("completions", {"prompt": "a", "prompt_logprobs": -1}, "prompt_logprobs"),
        ("completions", {"prompt": [5, 10**6], "return_token_ids": True}, "prompt.1"),
        (
            "completions",
            {"prompt": ["a"] * 64, "n": 32, "max_tokens": 98, "logprobs": 20},
            "logprobs",
        ),
        ("tasks", {"prompt_token_ids": [5], "return_token_ids": 1}, "return_token_ids"),
    ],
)
def test_a_bad_field_is_named(
    client: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    refused = error(client.post(f"/v1/{path}", json={"model": "demo"} | fields), 400)
    assert refused["param"] == param
    assert param in refused["message"]
