"""`gpt_task.inference.run_task`: its arguments, its response and its chunks."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import engine
from gpt_task.cache import MemoryModelCache
from gpt_task.inference import get_executed_gpu_count, get_execution_dtype, run_task
from gpt_task.inference.translation import ChunkStream
from gpt_task.models import GPTTaskArgs, GPTTaskResponse, GPTTaskStreamResponse, TextContentBlock
from schema.answers.response import StreamChunk
from tests.engine.models.tiny_models import save_tiny_model
from tests.gpt_task.conftest import DEMO

PROMPT = "one task"
MESSAGES = [{"role": "user", "content": PROMPT}]
SAMPLED = {"do_sample": True, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def cache() -> MemoryModelCache:
    """So that a model is loaded once for all tests of this file."""
    return MemoryModelCache(max_size=4)


@pytest.fixture
def task(text_model: str, cache: MemoryModelCache) -> dict[str, Any]:
    """Arguments of a task on the text model."""
    return {"model": text_model, "messages": MESSAGES, "dtype": "float32", "model_cache": cache}


def answer(response: GPTTaskResponse | None) -> str:
    assert response is not None
    return response["choices"][0]["message"]["content"]


def generated(directory: str | Path, seed: int, **settings: Any) -> str:
    """The answer as gpt-task gets it: from transformers, stripped."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    set_seed(seed)
    tokens = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def test_the_signature_is_that_of_gpt_task() -> None:
    parameters = inspect.signature(run_task).parameters
    assert [(p.name, p.default) for p in parameters.values()] == [
        ("args", None),
        ("model", None),
        ("messages", None),
        ("tools", None),
        ("generation_config", None),
        ("template_args", None),
        ("stream_callback", None),
        ("seed", 0),
        ("dtype", "auto"),
        ("quantize_bits", None),
        ("config", None),
        ("model_cache", None),
    ]
    kinds = [p.kind for p in parameters.values()]
    assert kinds == [
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        *[inspect.Parameter.KEYWORD_ONLY] * 11,
    ]


@pytest.mark.parametrize("seed", [0, 7])
def test_the_answer_is_that_of_transformers(task: dict[str, Any], seed: int) -> None:
    response = run_task(**task, generation_config=SAMPLED, seed=seed)
    assert answer(response) == generated(task["model"], seed, **SAMPLED)
    assert run_task(**task, generation_config=SAMPLED, seed=seed) == response


def test_an_answer_has_256_tokens_even_if_the_model_has_another_limit(tmp_path: Path) -> None:
    save_tiny_model("qwen2", tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    settings |= {"max_new_tokens": 5, "eos_token_id": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    response = run_task(model=str(tmp_path), messages=MESSAGES, dtype="float32")
    assert response is not None
    assert response["usage"]["completion_tokens"] == 256
    assert answer(response) == generated(tmp_path, 0, max_new_tokens=256)


def test_an_answer_ends_where_the_context_ends(task: dict[str, Any]) -> None:
    """gpt-task's own examples ask for 32768 tokens of any model."""
    response = run_task(**task, generation_config={"max_new_tokens": 32768}, seed=3)
    assert response is not None
    assert response["usage"]["total_tokens"] <= 512
    assert answer(response) == generated(task["model"], 3, max_new_tokens=512 - len(PROMPT))


def test_the_response_has_the_shape_that_gpt_task_documents(task: dict[str, Any]) -> None:
    several = SAMPLED | {"num_return_sequences": 3}
    response = run_task(**task, generation_config=several)
    assert response is not None
    assert set(response) == {"model", "choices", "usage"}
    assert response["model"] == task["model"]
    assert [choice["index"] for choice in response["choices"]] == [0, 1, 2]
    for choice in response["choices"]:
        assert set(choice) == {"index", "message", "finish_reason"}
        assert set(choice["message"]) == {"role", "content"}
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == choice["message"]["content"].strip()
        assert choice["finish_reason"] in ("stop", "length")
    assert set(response["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    TypeAdapter(GPTTaskResponse).validate_python(response)


@pytest.mark.parametrize("number", [1, 3])
def test_chunks_have_the_shape_that_gpt_task_documents(
    task: dict[str, Any], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SAMPLED | {"num_return_sequences": number}
    chunks: list[GPTTaskStreamResponse] = []
    returned = run_task(**task, generation_config=settings, stream_callback=chunks.append)
    assert returned is None
    assert ("only the first of 3 answers" in caplog.text) == (number == 3)
    for chunk in chunks:
        assert set(chunk) == {"model", "choices", "usage"}
        assert chunk["model"] == task["model"]
        (choice,) = chunk["choices"]
        assert set(choice) == {"index", "delta", "finish_reason"}
        assert choice["index"] == 0
        assert set(choice["delta"]) == {"role", "content"}
        assert choice["delta"]["role"] == "assistant"
        TypeAdapter(GPTTaskStreamResponse).validate_python(chunk)
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert all(texts[:-1])
    assert not any(reasons[:-1])
    assert texts[-1] == ""

    response = run_task(**task, generation_config=settings)
    assert response is not None
    assert "".join(texts) == answer(response)
    assert reasons[-1] == response["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == response["usage"]
    totals = [chunk["usage"]["total_tokens"] for chunk in chunks]
    assert totals == sorted(totals)


@given(pieces=st.lists(st.text(alphabet=" \n\tab\u00a0", max_size=4), max_size=8))
def test_joined_deltas_are_the_stripped_text(pieces: list[str]) -> None:
    heard: list[str] = []
    stream = ChunkStream(
        "tiny", lambda chunk: heard.append(chunk["choices"][0]["delta"]["content"])
    )
    for piece in pieces:
        chunk: StreamChunk = {
            "model": "any",
            "choices": [
                {
                    "index": 0,
                    "delta": {"role": "assistant", "content": piece},
                    "finish_reason": None,
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        stream.take(chunk)
    assert "".join(heard) == "".join(pieces).strip()
    assert all(heard)


def test_args_keywords_and_json_are_the_same_task(
    task: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cache = task.pop("model_cache")
    task |= {"generation_config": SAMPLED, "seed": 5}
    expected = run_task(**task, model_cache=cache)
    args = GPTTaskArgs(**task)
    assert run_task(args, model_cache=cache) == expected
    from_json = GPTTaskArgs.model_validate_json(json.dumps(task))
    assert run_task(from_json, model_cache=cache) == expected
    assert "overrides" not in caplog.text
    assert run_task(args, seed=6, model_cache=cache) == expected
    assert "overrides seed" in caplog.text


def test_it_accepts_what_gpt_task_accepts(
    task: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = run_task(**task, generation_config=SAMPLED | {"temperature": 2.0}, seed=5)
    caplog.set_level(logging.WARNING)
    block: TextContentBlock = {"type": "text", "text": PROMPT}
    task["messages"] = ({"role": "user", "content": [block], "name": "Ann", "tool_calls": None},)
    loose: Any = {"do_sample": "true", "max_new_tokens": "40", "temperature": 2, "penalty_alpha": 1}
    assert run_task(**task, generation_config=loose, seed="5") == expected  # type: ignore[arg-type]
    assert "messages.0.name is not a field" in caplog.text
    assert "generation_config.penalty_alpha is not a field" in caplog.text


def test_what_args_refuse() -> None:
    for wrong in (
        {},
        {"model": ""},
        {"dtype": "float64"},
        {"quantize_bits": 3},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "base64": "no!"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "http://x"}]}]},
        {"generation_config": {"top_p": "much"}},
    ):
        with pytest.raises(ValidationError):
            GPTTaskArgs.model_validate(
                {"model": "m", "messages": MESSAGES} | wrong if wrong else {}
            )


def test_there_is_a_json_schema() -> None:
    schema = GPTTaskArgs.model_json_schema()
    assert schema["required"] == ["model", "messages"]
    assert set(schema["properties"]) == set(GPTTaskArgs.model_fields)


def test_it_reports_what_it_ran_on(task: dict[str, Any]) -> None:
    run_task(**task, generation_config=SAMPLED)
    assert get_execution_dtype() == "float32"
    assert get_executed_gpu_count() == int(torch.cuda.is_available())


def test_the_engine_of_the_facade_is_the_same() -> None:
    task: dict[str, Any] = {
        "model": DEMO,
        "messages": [{"role": "user", "content": "Count from 3 to 9."}],
        "dtype": "float32",
    }
    response = engine.run_task(**task)
    assert answer(run_task(**task)) == response["choices"][0]["message"]["content"]
