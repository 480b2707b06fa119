"""Log probabilities of the prompt, and prompts of token ids: transformers' own, in any batch."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import Engine
from schema import Task, TaskArgsInvalid, TaskResponse
from schema.answers.response import collect
from schema.generation import MAX_PROMPT_LOGPROBS
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.core.test_generate_fallback import OUTSIDE, fallback_engine, save_architecture
from tests.engine.models.tiny_models import TEXT_KINDS, Kind
from tests.engine.models.tiny_vision_models import VISION_KINDS, VisionKind
from tests.engine.vision.vision_oracle import CONVERSATIONS, oracle
from tests.engine.vision.vision_oracle import task as vision_task

TEXTS = (
    "H",
    "The engine must score what the model reads, for a prompt of several chunks too: ünïcödé 🙂!",
)


def task(prompt: str | list[int], **settings: Any) -> Task:
    asked = {"max_new_tokens": 3, "prompt_logprobs": 3, "logprobs": 2} | settings
    echo = asked.pop("echo", True)
    fields: dict[str, Any] = {"prompt_token_ids": prompt}
    if isinstance(prompt, str):
        fields = {"messages": [{"role": "user", "content": prompt}], "use_chat_template": False}
    return Task.from_fields(model="tiny", generation_config=asked, seed=3, echo=echo, **fields)


def check_against_the_model(
    want: torch.Tensor, prompt: list[int], response: TaskResponse, top: int
) -> None:
    """Compare with the log probabilities [tokens, vocab] of a plain forward."""
    first, *others = response["prompt_logprobs"]
    assert [first["logprob"], first["top_logprobs"]] == [None, []]
    assert [token["token_id"] for token in response["prompt_logprobs"]] == prompt
    for row, token in zip(want, others, strict=False):
        assert token["logprob"] == pytest.approx(float(row[token["token_id"]]), abs=1e-4)
        given = [other["logprob"] for other in token["top_logprobs"]]
        assert given == pytest.approx(row.topk(top).values.tolist(), abs=1e-4)
        ids = [other["token_id"] for other in token["top_logprobs"]]
        assert given == pytest.approx([float(row[i]) for i in ids], abs=1e-4)


def plain(directory: Path, prompt: list[int]) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([prompt])).logits[0]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_they_are_those_of_transformers(
    kind: Kind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """With the head on few rows at a time too, and for ids as for the text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model(kind))
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        response = tiny_engine(kind).run_blocking(task(text))
        check_against_the_model(plain(tiny_model(kind), ids), ids, response, 3)
        assert response["prompt_text"] == text
        assert tiny_engine(kind).run_blocking(task(ids)) == response
        narrow = tiny_engine(kind, max_sequences=3).run_blocking(task(text))
        assert narrow["prompt_logprobs"] == response["prompt_logprobs"]


async def test_they_do_not_depend_on_the_batch(tiny_engine: TinyEngine) -> None:
    """Alone, among others, after a task with the same prefix, whole and streamed."""
    engine = tiny_engine("qwen2", dtype="bfloat16")
    several = {"do_sample": True, "num_return_sequences": 3}
    wanted = [
        task(text * times, **settings)
        for text in TEXTS
        for times in (1, 2, 3)
        for settings in ({}, several, {"prompt_logprobs": 0, "num_beams": 2, "logprobs": None})
    ]
    alone = [engine.run_blocking(one) for one in wanted]
    others = [task(text * 2, prompt_logprobs=None, echo=False) for text in TEXTS]

    async def streamed(one: Task) -> TaskResponse:
        chunks = [chunk async for chunk in engine.stream(one)]
        assert ["prompt_logprobs" in chunk for chunk in chunks] == [
            number == 0 for number in range(len(chunks))
        ]
        return collect(chunks)

    together = await asyncio.gather(
        *map(engine.run, others), *map(streamed, wanted), *map(engine.run, wanted)
    )
    assert together[len(others) :] == [*alone, *alone]
    assert not any("prompt_logprobs" in response for response in together[: len(others)])


def test_a_known_prefix_is_scored_again(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2", prefill_chunk=32)
    for answer in ({}, {"do_sample": True}):
        first = engine.run_blocking(task(TEXTS[1], **answer))
        engine.run_blocking(task(TEXTS[1], prompt_logprobs=None, **answer))
        assert engine.run_blocking(task(TEXTS[1], **answer)) == first
    unscored = engine.run_blocking(task(TEXTS[1], prompt_logprobs=None))
    assert unscored["choices"] == engine.run_blocking(task(TEXTS[1]))["choices"]


def test_nothing_is_generated_and_the_context_is_full(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    context = engine._loaded.context_length
    ids = [7 + i % 90 for i in range(context)]
    with pytest.raises(TaskArgsInvalid, match="at least one token") as caught:
        engine.run_blocking(task(ids))
    assert caught.value.param == "prompt_token_ids"
    response = engine.run_blocking(task(ids, max_new_tokens=0))
    assert response["usage"] == {
        "prompt_tokens": context,
        "completion_tokens": 0,
        "total_tokens": context,
    }
    (choice,) = response["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "logprobs": [],
        "finish_reason": "length",
    }
    # All that comes of whole chunks is a function of the tokens up to there.
    some = engine.run_blocking(task(ids[:300]))
    assert some["prompt_logprobs"][:289] == response["prompt_logprobs"][:289]
    several = {"max_new_tokens": 0, "do_sample": True, "num_return_sequences": 2}
    assert len(engine.run_blocking(task("Hi", **several))["choices"]) == 2
    times = engine.take_times()
    assert all(0 <= one.first_s <= one.total_s for one in times)


def test_the_end_token_is_listed_beside_them(tiny_engine: TinyEngine) -> None:
    """A client that cuts off one generated token must not cut off one of the prompt."""
    engine = tiny_engine("qwen2")
    end = engine._loaded.tokenizer.eos_token_id
    forced = {"logit_bias": {str(end): 100}, "max_new_tokens": 1}
    (choice,) = engine.run_blocking(task("Hi", **forced))["choices"]
    assert [token["token_id"] for token in choice["logprobs"]] == [end]
    assert choice["message"]["content"] == ""


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_of_images(kind: VisionKind, tiny_model: TinyModel, tiny_engine: TinyEngine) -> None:
    """Image placeholders are listed as any token is."""
    engine = tiny_engine(kind, prefill_chunk=8, page_size=8)
    messages = CONVERSATIONS["two turns"]
    own = oracle(tiny_model(kind))
    inputs = own.inputs(messages)
    with torch.no_grad():
        want = own.model(**inputs).logits[0].double().log_softmax(-1)
    asked = {"prompt_logprobs": 2}
    response = engine.run_blocking(vision_task(messages, asked))
    check_against_the_model(want, inputs["input_ids"][0].tolist(), response, 2)
    assert response["choices"] == engine.run_blocking(vision_task(messages))["choices"]
    assert engine.run_blocking(vision_task(messages, asked)) == response


@pytest.mark.parametrize("kind", OUTSIDE)
def test_in_the_fallback(kind: str, tmp_path: Path) -> None:
    save_architecture(kind, OUTSIDE[kind], tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    with closing(fallback_engine(tmp_path)) as engine:
        assert not engine.card()["continuous_batching"]
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            response = engine.run_blocking(task(text))
            check_against_the_model(plain(tmp_path, ids), ids, response, 3)
            unscored = engine.run_blocking(task(ids, prompt_logprobs=None))
            assert unscored["choices"][0]["message"] == response["choices"][0]["message"]
            nothing = engine.run_blocking(task(text, max_new_tokens=0))
            assert nothing["prompt_logprobs"] == response["prompt_logprobs"]
            assert nothing["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("kind", ["qwen2", "gemma3", "gpt2"])
def test_offsets_are_places_in_the_text(kind: Kind, tiny_engine: TinyEngine) -> None:
    engine = tiny_engine(kind)
    for text in (*TEXTS, "日本語とemoji 👩‍👩‍👧 !", "a <eos> b"):
        response = engine.run_blocking(task(text, max_new_tokens=0))
        listed = response["prompt_logprobs"]
        offsets = [token["text_offset"] for token in listed]
        assert offsets == sorted(offsets)
        for token, offset in zip(listed, offsets, strict=True):
            if token["bytes"] is not None and "\ufffd" not in token["token"]:
                assert text[offset:].startswith(token["token"])


@pytest.mark.parametrize(
    ("ids", "settings", "param", "says"),
    [
        ([1, 10**6], {}, "prompt_token_ids.1", "less than"),
        ([5] * 1000, {}, "prompt_token_ids", "shorten the prompt_token_ids"),
        ([5] * 505, {"max_new_tokens": 100}, "generation_config.max_new_tokens", "at most 7"),
    ],
)
def test_ids_that_are_refused(
    ids: list[int], settings: dict[str, Any], param: str, says: str, tiny_engine: TinyEngine
) -> None:
    with pytest.raises(TaskArgsInvalid, match=says) as caught:
        tiny_engine("qwen2").run_blocking(task(ids, **settings))
    assert caught.value.param == param


def test_ids_of_images_and_settings_of_templates_are_refused(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("internvl")
    image = engine._loaded.image_token_id
    assert image is not None
    with pytest.raises(TaskArgsInvalid, match="stands for an image") as caught:
        engine.run_blocking(task([1, image, 2]))
    assert caught.value.param == "prompt_token_ids.1"
    with pytest.raises(TaskArgsInvalid, match="the task uses none") as caught:
        engine.run_blocking(
            Task.from_fields(model="tiny", prompt_token_ids=[1], template_args={"a": 1})
        )
    assert caught.value.param == "template_args"


def test_a_report_is_bounded(monkeypatch: pytest.MonkeyPatch, tiny_engine: TinyEngine) -> None:
    assert MAX_PROMPT_LOGPROBS >= 8192 * 21  # all of a context of 8192 tokens
    monkeypatch.setattr("engine.requests.prompt_report.MAX_PROMPT_LOGPROBS", 8)
    with pytest.raises(TaskArgsInvalid, match="may be at most 8") as caught:
        tiny_engine("qwen2").run_blocking(task([5, 6, 7]))
    assert caught.value.param == "generation_config.prompt_logprobs"
    tiny_engine("qwen2").run_blocking(task([5, 6]))


def test_a_prompt_that_is_given_as_ids_has_no_special_tokens_added(tiny_engine: TinyEngine) -> None:
    engine: Engine = tiny_engine("gemma3")
    tokenizer = engine._loaded.tokenizer
    response = engine.run_blocking(task([70, 71, 72], max_new_tokens=0))
    assert [token["token_id"] for token in response["prompt_logprobs"]] == [70, 71, 72]
    assert response["prompt_text"] == tokenizer.decode([70, 71, 72])
    silent = engine.run_blocking(task([70, 71, 72], echo=False, prompt_logprobs=None))
    assert not {"prompt_text", "prompt_logprobs"} & silent.keys()
