"""Real weights: SmolLM2-135M-Instruct, whose activations and texts are not those of random ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from engine import Engine, EngineConfig
from schema import Task, TaskArgsInvalid
from tests.engine.core.speculation.engines import Guided, smollm2_vocabulary
from tests.engine.core.speculation.properties import differences, make_cases

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONTEXT = 8192
SEED = 11

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea, and one about a mountain in winter.",
    "Translate to German: the cat sleeps. Then say why cats sleep so much, in a few words.",
    "def fibonacci(n):",
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 1.3, "top_p": 0.9, "num_return_sequences": 2},
    {"num_beams": 3},
)
# Every question with two settings, every settings with two questions.
PAIRS = [
    (QUESTIONS[(number + shift) % 4], settings)
    for number, settings in enumerate(SETTINGS)
    for shift in (0, 1)
]

# Every type and every quantization. Plain float32 is above all in the comparison with `generate`;
# all combinations are in the check of forwards, on these weights, and under load on tiny ones.
ARITHMETIC = [("float32", 4), ("bfloat16", None), ("bfloat16", 8), ("float16", None)]


def real_engine(directory: Path, **options: Any) -> Engine:
    settings: dict[str, Any] = {"model": str(directory), "model_id": MODEL, "threads": 1}
    return Engine(EngineConfig(**settings | options))


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    """In float32, with the whole context."""
    options = {"dtype": "float32", "max_sequences": 32, "prefill_chunk": 64}
    with closing(real_engine(smollm2, **options, kv_cache_tokens=CONTEXT)) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def own(smollm2: Path) -> Any:
    """The same weights in plain transformers."""
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


def asked(question: str, settings: dict[str, Any] | None = None, **fields: Any) -> Task:
    return Task.from_fields(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        generation_config={"max_new_tokens": 12} | (settings or {}),
        seed=SEED,
        **fields,
    )


def texts(response: Any) -> list[str]:
    return [choice["message"]["content"] for choice in response["choices"]]


def generated(own: Any, tokenizer: Any, question: str, settings: dict[str, Any]) -> list[str]:
    """The answers of `generate`."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    set_seed(SEED)
    with torch.inference_mode():
        output = own.generate(**inputs, **{"max_new_tokens": 12} | settings)
    start = inputs["input_ids"].shape[1]
    return [tokenizer.decode(row[start:], skip_special_tokens=True) for row in output]


async def test_the_tokens_are_those_of_generate(engine: Engine, own: Any, tokenizer: Any) -> None:
    """Greedy, sampled, several answers and beams: alone, and all at once."""
    want = [generated(own, tokenizer, *pair) for pair in PAIRS]
    assert want[0] == ["The capital of France is Paris."]
    tasks = [asked(*pair) for pair in PAIRS]
    assert [texts(engine.run_blocking(task)) for task in tasks] == want
    assert [texts(response) for response in await asyncio.gather(*map(engine.run, tasks))] == want


async def test_drafts_change_no_answer(engine: Engine, smollm2: Path) -> None:
    """Random tasks, with drafts and known tokens of all kinds, compared to the bit."""
    vocabulary = replace(smollm2_vocabulary(smollm2), model=MODEL, longest=10)
    guided = Guided(engine, vocabulary)
    try:
        with guided.none():
            cases = await make_cases(engine, vocabulary, range(3))
        found = await differences(guided, cases)
    finally:
        guided.give_back()
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(("dtype", "bits"), ARITHMETIC)
async def test_alone_and_under_load(dtype: str, bits: int | None, smollm2: Path) -> None:
    """Every kind of arithmetic is batched, and what else is in the batch changes nothing."""
    options = {"dtype": dtype, "quantize_bits": bits, "context_length": 512, "prefill_chunk": 16}
    with closing(real_engine(smollm2, **options, max_sequences=8)) as engine:
        card = engine.card()
        assert card["continuous_batching"], card["fallback_reason"]
        tasks = [
            asked(question, {"max_new_tokens": 8} | settings, quantize_bits=bits)
            for question in QUESTIONS
            for settings in SETTINGS[:2]
        ]
        alone = [engine.run_blocking(task) for task in tasks]
        assert len({str(response["choices"]) for response in alone}) > 4
        together = await asyncio.gather(*(engine.run(task) for task in reversed(tasks)))
        assert together == alone[::-1]


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "languages": {"type": "array", "items": {"enum": ["French", "German"]}, "maxItems": 2},
        "address": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "languages", "address"],
    "additionalProperties": False,
}


async def test_answers_are_valid_under_their_schema(engine: Engine) -> None:
    """Sampled, with the white space and the quotes that a model has learnt."""
    form = {"type": "json_schema", "schema": PERSON}
    hot = {"max_new_tokens": 120, "do_sample": True, "temperature": 1.2, "num_return_sequences": 4}
    question = "Marie Curie lived in Paris and became 66. Describe her as JSON."
    task = asked(question, hot, structured_output=form)
    response = await engine.run(task)
    for choice in response["choices"]:
        assert choice["finish_reason"] == "stop"
        Draft202012Validator(PERSON).validate(json.loads(choice["message"]["content"]))
    assert "Curie" in texts(response)[0]


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather of a city.", "parameters": CITY},
}


@pytest.mark.parametrize("sampled", [False, True])
def test_calls_are_parsed(engine: Engine, sampled: bool) -> None:
    """The model was not trained to call tools: that it does is the grammar's work."""
    response = engine.run_blocking(
        asked(
            "What will the weather be in Lisbon for two days?",
            {"max_new_tokens": 60, "do_sample": sampled},
            tools=[WEATHER],
            tool_choice={"function": "weather"},
            answer_format="message",
        )
    )
    (choice,) = response["choices"]
    message: Any = choice["message"]
    assert message["content"] in (None, "")
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    Draft202012Validator(CITY).validate(json.loads(call["function"]["arguments"]))


@cache
def long_text(tokenizer: Any, tokens: int) -> str:
    """A question whose prompt has this number of tokens."""
    numbers = "".join(f"Room {n} holds {n * 37 % 101} chairs.\n" for n in range(2000))

    def length(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    ids = tokenizer(numbers)["input_ids"]
    text = tokenizer.decode(ids[: tokens - length("")])
    assert length(text) == tokens
    return str(text)


def test_the_whole_context(smollm2: Path, tokenizer: Any, tmp_path: Path) -> None:
    """The positions up to the last one, in the first three layers: all of them take minutes."""
    for file in smollm2.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((smollm2 / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    own = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    question = long_text(tokenizer, CONTEXT - 6)
    with closing(real_engine(tmp_path, dtype="float32", prefill_chunk=128)) as engine:
        response = engine.run_blocking(asked(question, {"max_new_tokens": 6}))
    assert response["usage"]["prompt_tokens"] == CONTEXT - 6
    assert texts(response) == generated(own, tokenizer, question, {"max_new_tokens": 6})


@pytest.mark.parametrize(("prompt", "new"), [(CONTEXT - 5, 6), (CONTEXT + 40, 1)])
def test_beyond_the_context(engine: Engine, tokenizer: Any, prompt: int, new: int) -> None:
    with pytest.raises(TaskArgsInvalid, match=str(CONTEXT)):
        engine.run_blocking(asked(long_text(tokenizer, prompt), {"max_new_tokens": new}))
