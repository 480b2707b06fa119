"""Traces: equal to those of `generate`'s own logits, whatever runs beside, however it is read."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import Engine
from engine.sampling.trace import DOMAIN, trace
from schema import Task, TaskResponse
from schema.answers.response import collect
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.core.test_batching import at_once, tasks
from tests.engine.core.test_generate_fallback import OUTSIDE, fallback_engine, save_architecture

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 9},
    "copies": {"max_new_tokens": 5, "num_return_sequences": 2},
    "sampled": {
        "max_new_tokens": 12,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "repetition_penalty": 1.3,
        "num_return_sequences": 3,
    },
    "logprobs": {"max_new_tokens": 5, "logprobs": 2, "logit_bias": {"7": 3.0}},
}


def chain(token_ids: list[int], logits: list[float]) -> str:
    """The documented chain, written out."""
    link = hashlib.sha256(b"gpt-task-serve trace 1").digest()
    for token_id, logit in zip(token_ids, logits, strict=True):
        four = token_id.to_bytes(4, "little") + struct.pack("<f", logit)
        link = hashlib.sha256(link + four).digest()
    return link.hex()


def test_the_chain() -> None:
    assert trace([], []) == hashlib.sha256(DOMAIN).hexdigest()
    assert trace([5, 2**31 - 1], [1.5, -0.0]) == chain([5, 2**31 - 1], [1.5, -0.0])
    first = trace([5, 6], [1.5, 2.5])
    for token_ids, logits in (
        ([6, 5], [1.5, 2.5]),
        ([5, 6], [2.5, 1.5]),
        ([5], [1.5]),
        ([5, 6], [1.5, 2.5000002384185791]),  # the next float32
        ([5, 6], [-1.5, 2.5]),
    ):
        assert trace(token_ids, logits) != first
    assert trace([1], [0.0]) != trace([1], [-0.0])
    with pytest.raises(ValueError, match="shorter"):
        trace([1, 2], [1.0])


def traced(name: str, **fields: Any) -> Task:
    """A task with a receipt. Greedy answers of tiny models repeat themselves: drafts are right."""
    text = "The engine must write what generate writes, and the engine must write it again."
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config=SETTINGS[name],
        seed=5,
        receipt=True,
        return_token_ids=True,
        **fields,
    )


def traces(response: TaskResponse) -> list[str | None]:
    return [choice["trace"] for choice in response["record"]["choices"]]


async def answered(
    engine: Engine, task: Task, known: Sequence[Sequence[int]] = ()
) -> tuple[TaskResponse, list[list[float]]]:
    """The response, and the logits of which its traces are made."""
    handle = await engine.submit(task, known=known)
    chunks = []
    while not handle.done:
        if (chunk := await handle.next()) is not None:
            chunks.append(chunk)
    return collect(chunks), [sequence.logits for sequence in handle._request.sequences]


@pytest.mark.parametrize("name", SETTINGS)
async def test_the_logits_are_the_models_own(
    name: str, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """Before temperature, penalties and biases: those of a plain forward of prompt and answer."""
    task = traced(name)
    response, logits = await answered(tiny_engine("qwen2"), task)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model("qwen2"))
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2"), dtype=torch.float32)
    prompt = tokenizer(task.messages[0].content)["input_ids"]
    copies = len(response["choices"]) // len(logits)
    for choice, link in zip(response["choices"], traces(response), strict=True):
        own, token_ids = logits[choice["index"] // copies], choice["token_ids"]
        assert link == chain(token_ids, own)
        with torch.no_grad():
            rows = model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
        wanted = rows.gather(1, torch.tensor(token_ids)[:, None])[:, 0]
        assert own == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_trace_is_a_function_of_the_task(name: str, tiny_engine: TinyEngine) -> None:
    """Alone, among others, without speculation, and with tokens known: all, some or wrong ones."""
    engine, plain = tiny_engine("qwen2"), tiny_engine("qwen2", speculation="off")
    task = traced(name)
    alone = engine.run_blocking(task)
    assert len(alone["record"]["choices"]) == len(alone["choices"])
    among = await at_once(engine, [*tasks(8, images=False), task])
    assert among[-1] == alone
    unspeculated = plain.run_blocking(task)
    assert unspeculated["record"] == alone["record"]
    of_answers = [choice["token_ids"] for choice in alone["choices"]]
    if SETTINGS[name].get("do_sample") is None:
        of_answers = of_answers[:1]
    wrong = [[*ids[:3], ids[3] + 1, *ids[4:]] for ids in of_answers]
    for known in (of_answers, [ids[:2] for ids in of_answers], wrong):
        for one in (engine, plain):
            response, _ = await answered(one, task, known)
            assert response["record"] == alone["record"]


def test_a_task_without_a_receipt_has_no_record(tiny_engine: TinyEngine) -> None:
    task = traced("sampled")
    response = tiny_engine("qwen2").run_blocking(task.model_copy(update={"receipt": False}))
    assert "record" not in response
    assert response["choices"] == tiny_engine("qwen2").run_blocking(task)["choices"]


def test_beams_have_no_trace(tiny_engine: TinyEngine) -> None:
    task = traced("greedy")
    config = task.generation_config.model_copy(update={"num_beams": 3, "num_return_sequences": 2})
    response = tiny_engine("qwen2").run_blocking(
        task.model_copy(update={"generation_config": config})
    )
    assert traces(response) == [None, None]
    digests = [choice["token_ids_digest"] for choice in response["record"]["choices"]]
    assert digests == [
        hashlib.sha256(str(choice["token_ids"]).replace(" ", "").encode()).hexdigest()
        for choice in response["choices"]
    ]


@pytest.mark.parametrize("name", ["sampled", "logprobs"])
def test_of_the_generate_fallback_it_is_that_of_generate(name: str, tmp_path: Path) -> None:
    """Bit for bit: both run alone in the same shapes."""
    save_architecture("bloom", OUTSIDE["bloom"], tmp_path)
    task = traced(name)
    with closing(fallback_engine(tmp_path)) as engine:
        response = engine.run_blocking(task)
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        prompt = tokenizer(task.messages[0].content, return_tensors="pt")["input_ids"]
        for choice, link in zip(response["choices"], traces(response), strict=True):
            token_ids = choice["token_ids"]
            logits: list[float] = []
            cache = None
            for step, token_id in enumerate(token_ids):
                rows = prompt if step == 0 else torch.tensor([[token_ids[step - 1]]])
                many = rows.repeat(len(response["choices"]), 1)
                with torch.inference_mode():
                    out = model(many, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                logits.append(float(out.logits[0, -1, token_id]))
            assert link == chain(token_ids, logits)
