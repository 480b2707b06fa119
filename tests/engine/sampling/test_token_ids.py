"""Token ids of prompts and answers: those of `generate`, and a log probability for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from schema import Task, TaskResponse
from schema.answers.response import collect
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.core.test_generate_fallback import OUTSIDE, fallback_engine, save_architecture
from tests.engine.models.tiny_models import Kind
from tests.engine.models.tiny_vision_models import VISION_KINDS, VisionKind
from tests.engine.sampling.test_generate_oracle import plainly
from tests.engine.vision.vision_oracle import CONVERSATIONS, oracle
from tests.engine.vision.vision_oracle import task as vision_task

TEXT = "The engine must say which tokens it drew, for a prompt of several chunks too."
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy copies": {"num_return_sequences": 3},
    "sampled": {"do_sample": True, "temperature": 2.5, "top_k": 0, "num_return_sequences": 4},
    "ended": {"do_sample": True, "logit_bias": {"END": 6}, "num_return_sequences": 4},
    "ended at once": {"logit_bias": {"END": 100}},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "ended beams": {"num_beams": 3, "num_return_sequences": 3, "logit_bias": {"END": 4}},
}


def task(prompt: str | list[int], **settings: Any) -> Task:
    fields: dict[str, Any] = {"prompt_token_ids": prompt}
    if isinstance(prompt, str):
        fields = {"messages": [{"role": "user", "content": prompt}], "use_chat_template": False}
    asked = settings.pop("return_token_ids", True)
    echo = settings.pop("echo", False)
    return Task.from_fields(
        model="tiny",
        seed=3,
        return_token_ids=asked,
        echo=echo,
        generation_config={"max_new_tokens": 20} | settings,
        **fields,
    )


def named(settings: dict[str, Any], end: int) -> dict[str, Any]:
    """Settings in which END stands for the end token."""
    bias = settings.get("logit_bias", {})
    return settings | {"logit_bias": {str(end) if k == "END" else k: v for k, v in bias.items()}}


def generated(
    directory: Path, prompt: Sequence[int], settings: dict[str, Any], end: int
) -> list[list[int]]:
    """What plain transformers draws, up to the end token and with it."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    asked = plainly({"max_new_tokens": 20} | settings, len(prompt))
    copies = 1
    if not settings.get("do_sample") and not settings.get("num_beams"):
        copies = asked.pop("num_return_sequences", 1)  # `generate` refuses equal answers
    ids = torch.tensor([list(prompt)])
    set_seed(3)
    with torch.no_grad():
        rows = model.generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=end, **asked
        ).tolist()
    answers = [row[len(prompt) :] for row in rows] * copies
    return [a[: a.index(end) + 1] if end in a else a for a in answers]


def ids_of(response: TaskResponse) -> list[list[int]]:
    return [choice["token_ids"] for choice in response["choices"]]


async def streamed(engine: Any, asked: Task) -> TaskResponse:
    """What a stream adds up to. The prompt is told once, at its beginning."""
    chunks = [chunk async for chunk in engine.stream(asked)]
    places = ["prompt_token_ids" in chunk for chunk in chunks]
    assert places == [number == 0 for number in range(len(chunks))]
    return collect(chunks)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
async def test_they_are_those_of_generate(
    kind: Kind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """Alone and all at once, whole and streamed, of a text and of its ids."""
    engine = tiny_engine(kind)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model(kind))
    end, prompt = tokenizer.eos_token_id, tokenizer(TEXT)["input_ids"]
    settings = [named(each, end) for each in SETTINGS.values()]
    want = [generated(tiny_model(kind), prompt, each, end) for each in settings]
    assert sum(answer[-1] == end for answers in want for answer in answers) > 3
    alone = [engine.run_blocking(task(TEXT, **each)) for each in settings]
    assert [ids_of(response) for response in alone] == want
    for response in alone:
        assert response["prompt_token_ids"] == prompt
        usage = response["usage"]
        assert usage["prompt_tokens"] == len(prompt)
        assert usage["completion_tokens"] == sum(map(len, ids_of(response)))
    together = await asyncio.gather(
        *(engine.run(task(prompt, **each)) for each in settings),
        *(streamed(engine, task(TEXT, **each)) for each in settings),
    )
    assert together == [*alone, *alone]


def test_nothing_is_drawn_and_stop_strings(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    decode = engine._loaded.tokenizer.decode
    sampled = {"do_sample": True, "max_new_tokens": 60}
    whole = engine.run_blocking(task(TEXT, **sampled))["choices"][0]
    text = whole["message"]["content"]
    stop = next(c for c in text[8:] if c.isascii())
    stopped = engine.run_blocking(task(TEXT, **sampled, stop_strings=[stop]))["choices"][0]
    count = len(stopped["token_ids"])
    assert 0 < count < 60
    assert stopped["token_ids"] == whole["token_ids"][:count]
    assert stop in decode(stopped["token_ids"])
    assert stop not in decode(stopped["token_ids"][:-1])
    read = engine.run_blocking(task(TEXT, max_new_tokens=0, prompt_logprobs=0, echo=True))
    assert ids_of(read) == [[]]
    assert read["prompt_text"] == TEXT
    listed = [token["token_id"] for token in read["prompt_logprobs"]]
    assert listed == read["prompt_token_ids"]


def test_only_where_a_task_asks(tiny_engine: TinyEngine) -> None:
    response = tiny_engine("qwen2").run_blocking(task(TEXT, return_token_ids=False, echo=True))
    assert "prompt_token_ids" not in response
    assert "token_ids" not in response["choices"][0]


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
async def test_each_has_a_log_probability(
    kind: Kind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """One entry for each token in order, the end token included, of the model's own logits.

    Tasks that ask for log probabilities alone have them without the end token, as ever.
    """
    engine = tiny_engine(kind)
    directory = tiny_model(kind)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    end = engine._loaded.tokenizer.eos_token_id
    ended = 0
    for name in ("greedy copies", "sampled", "ended", "ended at once"):
        settings = named(SETTINGS[name], end)
        response = engine.run_blocking(task(TEXT, logprobs=0, **settings))
        assert await streamed(engine, task(TEXT, logprobs=0, **settings)) == response
        alone = engine.run_blocking(task(TEXT, logprobs=0, return_token_ids=False, **settings))
        more = engine.run_blocking(task(TEXT, logprobs=5, **settings))
        prompt = response["prompt_token_ids"]
        for choice, bare, rich in zip(
            response["choices"], alone["choices"], more["choices"], strict=True
        ):
            listed, ids = choice["logprobs"], choice["token_ids"]
            assert [token["token_id"] for token in listed] == ids
            assert all(token["top_logprobs"] == [] for token in listed)
            assert bare["logprobs"] == [token for token in listed if token["token_id"] != end]
            assert [{**token, "top_logprobs": []} for token in rich["logprobs"]] == listed
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            rows = logits.double().log_softmax(-1)
            want = [float(row[i]) for row, i in zip(rows, ids, strict=True)]
            assert [token["logprob"] for token in listed] == pytest.approx(want, abs=1e-4)
            ended += ids[-1] == end
    assert ended > 1


async def test_the_bits_of_a_log_probability(tiny_engine: TinyEngine) -> None:
    """The same bits generated alone, among others, and where the tokens were expected; read as a
    prompt they may differ in the last bits, because attention of a prompt adds up otherwise.
    """
    engine = tiny_engine("qwen2", dtype="bfloat16")
    asked = task(TEXT, logprobs=0, do_sample=True, num_return_sequences=3, temperature=1.5)
    alone = engine.run_blocking(asked)
    others = [task(TEXT * 2, do_sample=True, num_return_sequences=n) for n in (1, 2, 4)]
    assert (await asyncio.gather(*map(engine.run, [*others, asked])))[-1] == alone
    right, wrong = ids_of(alone), [[5] * 20, [], ids_of(alone)[2][:7]]
    for known in (right, wrong):
        handle = await engine.submit(asked, known=known)
        chunks = []
        while not handle.done:
            if (chunk := await handle.next()) is not None:
                chunks.append(chunk)
        assert collect(chunks) == alone
    for choice in alone["choices"]:
        ids = alone["prompt_token_ids"] + choice["token_ids"]
        read = engine.run_blocking(task(ids, max_new_tokens=0, prompt_logprobs=0))
        listed = read["prompt_logprobs"][len(alone["prompt_token_ids"]) :]
        want = [token["logprob"] for token in choice["logprobs"]]
        assert [token["logprob"] for token in listed] == pytest.approx(want, abs=0.1)


@pytest.mark.parametrize("kind", ["mpt", "bloom"])
def test_in_the_fallback(kind: str, tmp_path: Path) -> None:
    save_architecture(kind, OUTSIDE[kind], tmp_path)
    with closing(fallback_engine(tmp_path)) as engine:
        assert not engine.card()["continuous_batching"]
        end = engine._loaded.tokenizer.eos_token_id
        prompt = engine._loaded.tokenizer(TEXT)["input_ids"]
        for each in SETTINGS.values():
            settings = named(each, end)
            beams = "num_beams" in settings
            asked = settings if beams else settings | {"logprobs": 0}
            response = engine.run_blocking(task(TEXT, **asked))
            assert response["prompt_token_ids"] == prompt
            assert ids_of(response) == generated(tmp_path, prompt, settings, end)
            for choice in response["choices"]:
                listed = [token["token_id"] for token in choice.get("logprobs", ())]
                assert listed == ([] if beams else choice["token_ids"])


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_of_a_prompt_with_images(
    kind: VisionKind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """Image placeholders are tokens of the prompt."""
    messages = CONVERSATIONS["two turns"]
    inputs = oracle(tiny_model(kind)).inputs(messages)
    asked = vision_task(messages).model_copy(update={"return_token_ids": True})
    response = tiny_engine(kind, prefill_chunk=8, page_size=8).run_blocking(asked)
    assert response["prompt_token_ids"] == inputs["input_ids"][0].tolist()
