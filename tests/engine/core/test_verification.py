"""Verification on real engines: an answer is exact, and any change of it is found where it is."""

from __future__ import annotations

import asyncio
import copy
import json
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import Engine, EngineConfig
from schema import Task, TaskArgsInvalid
from schema.answers.verification import Verdict
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.core.test_generate_fallback import OUTSIDE, save_architecture
from tests.engine.models.tiny_models import byte_tokenizer
from tests.engine.models.tiny_vision_models import VISION_KINDS
from tests.schema.malformed import PNG

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
END = str(byte_tokenizer().eos_token_id)
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True},
    "top_k and top_p": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "copies": {"num_return_sequences": 2},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    "log probabilities": {"do_sample": True, "logprobs": 3, "prompt_logprobs": 2},
    "stop strings": {"do_sample": True, "stop_strings": ["e", "a", "\\x10"], "max_new_tokens": 64},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


def task(seed: int = 0, **fields: Any) -> Task:
    settings = {"max_new_tokens": 12, **fields.pop("generation_config", {})}
    messages = fields.pop("messages", [{"role": "user", "content": "One, two, three."}])
    return Task.from_fields(
        model="tiny",
        messages=messages,
        seed=seed,
        return_token_ids=True,
        generation_config=settings,
        **fields,
    )


def answered(engine: Engine, asked: Task) -> Any:
    """The answer to a task as a client reads it."""
    return json.loads(json.dumps(engine.run_blocking(asked)))


async def all_pages_free(engine: Engine) -> None:
    """Wait until no task holds a page: they are freed in the step after its end."""
    async with asyncio.timeout(30):
        while True:
            stats = engine.stats()
            if stats["kv_pages_free"] + stats["kv_pages_kept"] == stats["kv_pages"]:
                return
            await asyncio.sleep(0.01)


def with_tokens(response: Any, choice: int, ids: list[int]) -> Any:
    claim = copy.deepcopy(response)
    claim["choices"][choice]["token_ids"] = ids
    return claim


def found_at(verdict: Verdict) -> tuple[int, int, int | None, int | None]:
    first = verdict["first_difference"]
    assert verdict["verdict"] == "different"
    assert first is not None
    return first["choice"], first["position"], first["claimed"], first["expected"]


@pytest.mark.parametrize("name", SETTINGS)
def test_an_answer_is_exact_and_a_change_is_found(tiny_engine: TinyEngine, name: str) -> None:
    engine = tiny_engine("qwen2")
    asked = task(seed=3, generation_config=SETTINGS[name])
    response = answered(engine, asked)
    right = engine.verify_blocking(asked, response)
    assert right["verdict"] == "exact", right
    assert right["tokens_checked"] == response["usage"]["completion_tokens"]
    assert right["same_fingerprint"] is True
    for choice in response["choices"]:
        index, ids = choice["index"], choice["token_ids"]
        at = len(ids) // 2
        other = [*ids[:at], ids[at] ^ 1, *ids[at + 1 :]]
        found = engine.verify_blocking(asked, with_tokens(response, index, other))
        assert found_at(found) == (index, at, ids[at] ^ 1, ids[at])
        assert found["response_differences"] == []
        choice["message"]["content"] += "x"
        found = engine.verify_blocking(asked, response)
        assert found["verdict"] == "different"
        (difference,) = found["response_differences"]
        assert difference["field"] == f"choices.{index}.message.content"
        choice["message"]["content"] = choice["message"]["content"][:-1]


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "quantize_bits": 8},
        {"dtype": "bfloat16", "quantize_bits": 4},
        {"lookahead": True},
    ],
    ids=["bf16", "int8", "nf4", "lookahead"],
)
def test_other_engines(tiny_engine: TinyEngine, options: dict[str, Any]) -> None:
    engine = tiny_engine("qwen2", **options)
    settings = {"do_sample": True, "num_return_sequences": 2}
    bits = options.get("quantize_bits")
    asked = task(seed=4, generation_config=settings, quantize_bits=bits, receipt=True)
    response = answered(engine, asked)
    response["receipt"] = {"version": 1, **response.pop("record")}
    assert engine.verify_blocking(asked, response)["verdict"] == "exact"
    ids = response["choices"][1]["token_ids"]
    claim = with_tokens(response, 1, [*ids[:-1], ids[-1] ^ 1])
    found = engine.verify_blocking(asked, claim)
    assert found_at(found) == (1, len(ids) - 1, ids[-1] ^ 1, ids[-1])


@pytest.mark.parametrize("sampled", [False, True])
def test_a_token_changed_dropped_or_added_anywhere_is_found_there(
    tiny_engine: TinyEngine, sampled: bool
) -> None:
    engine = tiny_engine("qwen2")
    asked = task(seed=1, generation_config={"do_sample": sampled, "max_new_tokens": 8})
    response = answered(engine, asked)
    (choice,) = response["choices"]
    ids = choice["token_ids"]
    for at, token in enumerate(ids):
        changed = [*ids[:at], token ^ 1, *ids[at + 1 :]]
        found = engine.verify_blocking(asked, with_tokens(response, 0, changed))
        assert found_at(found) == (0, at, token ^ 1, token)
        assert found["tokens_checked"] == at + 1
        cut = engine.verify_blocking(asked, with_tokens(response, 0, ids[:at]))
        assert found_at(cut) == (0, at, None, token)
        assert cut["tokens_checked"] == at
        added = engine.verify_blocking(asked, with_tokens(response, 0, [*ids[:at], 7, *ids[at:]]))
        if token == 7:
            assert added["verdict"] == "different"
        else:
            assert found_at(added) == (0, at, 7, token)
    longer = engine.verify_blocking(asked, with_tokens(response, 0, [*ids, 7]))
    assert found_at(longer) == (0, len(ids), 7, None)


def test_a_change_at_each_of_256_positions_is_found(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2", max_sequences=16)
    free = {"do_sample": True, "max_new_tokens": 256, "logit_bias": {END: -100}}
    asked = task(seed=2, generation_config=free)
    response = answered(engine, asked)
    ids = response["choices"][0]["token_ids"]
    assert len(ids) == 256

    async def check(at: int) -> Verdict:
        claim = with_tokens(response, 0, [*ids[:at], ids[at] ^ 1, *ids[at + 1 :]])
        return await engine.verify(asked, claim)

    async def check_all() -> list[Verdict]:
        return [await check(at) for at in range(256)]

    for at, found in enumerate(asyncio.run(check_all())):
        assert found_at(found) == (0, at, ids[at] ^ 1, ids[at])


@pytest.mark.parametrize("sampled", [False, True])
def test_a_verified_answer_takes_few_forwards(tiny_engine: TinyEngine, sampled: bool) -> None:
    """It is read 64 rows at a time: the last token and 63 that are known to follow it."""
    engine = tiny_engine("qwen2", speculation="off", prefill_chunk=64)
    free = {"do_sample": sampled, "max_new_tokens": 256, "logit_bias": {END: -100}}
    asked = task(seed=2, generation_config=free)
    response = answered(engine, asked)
    assert response["usage"]["completion_tokens"] == 256
    before = engine.stats()
    assert engine.verify_blocking(asked, response)["verdict"] == "exact"
    after = engine.stats()
    assert after["decode_steps"] - before["decode_steps"] <= 6
    assert after["known_tokens_read"] - before["known_tokens_read"] >= 256 - 6 - 1


# --- The tolerance -------------------------------------------------------------------------------


def reference_scores(engine_model: Path, prompt: str, ids: list[int]) -> Any:
    """Float32 logits of transformers' own forward: a row for each token of an answer."""
    model: Any = AutoModelForCausalLM.from_pretrained(engine_model, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(engine_model)
    before = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *ids]])).logits[0].clone()
    return logits[len(before) - 1 : -1]


@pytest.mark.parametrize("sampled", [False, True])
def test_margins_are_those_of_the_race(
    tiny_engine: TinyEngine, tiny_model: TinyModel, sampled: bool
) -> None:
    """With a tolerance the check goes on with what is claimed: so do the scores and the noise."""
    engine = tiny_engine("qwen2")
    free = {"do_sample": sampled, "top_k": 0, "max_new_tokens": 12, "logit_bias": {END: -100}}
    asked = task(seed=9, generation_config=free)
    response = answered(engine, asked)
    claimed = list(response["choices"][0]["token_ids"])
    claimed[3] ^= 1
    claimed[7] ^= 1
    scores = reference_scores(tiny_model("qwen2"), "One, two, three.", claimed)
    scores[:, int(END)] -= 100
    if sampled:
        generator = torch.Generator().manual_seed(9)
        noise = torch.empty(1, scores.shape[1])
        for step in range(len(scores)):
            noise.exponential_(1, generator=generator)
            scores[step] = torch.log_softmax(scores[step], -1) - noise[0].log()
    winners = scores.argmax(-1).tolist()
    margins = [
        float(scores[i, w] - scores[i, c])
        for i, (w, c) in enumerate(zip(winners, claimed, strict=True))
    ]
    losses = [i for i, (w, c) in enumerate(zip(winners, claimed, strict=True)) if w != c]
    assert losses[0] == 3
    claim = with_tokens(response, 0, claimed)
    # Without a tolerance, and with one that is too small: the first one.
    for tolerance in (0.0, margins[3] / 2):
        found = engine.verify_blocking(asked, claim, tolerance)
        assert found_at(found) == (0, 3, claimed[3], winners[3])
        assert found["first_difference"] is not None
        assert found["first_difference"]["margin"] == pytest.approx(margins[3], abs=1e-3)
    # With one that forgives some: the first one that it does not forgive.
    worst = max(losses, key=lambda i: margins[i])
    found = engine.verify_blocking(asked, claim, margins[worst] - 0.01)
    assert found_at(found) == (0, worst, claimed[worst], winners[worst])
    # With one that forgives all: the first one. What follows from the tokens is that of the claim.
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model("qwen2"))
    text = tokenizer.decode(claimed, skip_special_tokens=True)
    claim["choices"][0]["message"]["content"] = text + "x"
    found = engine.verify_blocking(asked, claim, margins[worst] + 0.01)
    assert found["verdict"] == "different"
    assert [one["field"] for one in found["response_differences"]] == ["choices.0.message.content"]
    claim["choices"][0]["message"]["content"] = text
    found = engine.verify_blocking(asked, claim, margins[worst] + 0.01)
    assert found["verdict"] == "within_tolerance", found
    assert found["first_difference"] is not None
    assert found["first_difference"]["position"] == 3
    assert found["tokens_checked"] == 12


def test_claims_of_equal_answers_are_checked_one_by_one(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    asked = task(generation_config={"num_return_sequences": 3})
    response = answered(engine, asked)
    ids = response["choices"][0]["token_ids"]
    assert response["choices"][2]["token_ids"] == ids
    claim = with_tokens(response, 2, [*ids[:5], ids[5] ^ 1, *ids[6:]])
    found = engine.verify_blocking(asked, claim)
    assert found_at(found) == (2, 5, ids[5] ^ 1, ids[5])
    assert found["first_difference"] is not None
    assert found["first_difference"]["margin"] is not None
    assert found["tokens_checked"] == 2 * len(ids) + 6


def test_tokens_that_no_model_has_are_a_difference(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    asked = task(generation_config={"do_sample": True})
    response = answered(engine, asked)
    ids = response["choices"][0]["token_ids"]
    for odd in (2**31 - 1, 10_000):
        claim = with_tokens(response, 0, [*ids[:3], odd, *ids[4:]])
        for tolerance in (0.0, 100.0):
            found = engine.verify_blocking(asked, claim, tolerance)
            assert found_at(found) == (0, 3, odd, ids[3])
            assert found["first_difference"] is not None
            assert found["first_difference"]["margin"] is None


def test_another_seed_setting_model_or_prompt_is_found(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    sampled = {"do_sample": True, "max_new_tokens": 24}
    asked = task(seed=1, generation_config=sampled)
    response = answered(engine, asked)
    others = [
        task(seed=2, generation_config=sampled),
        task(seed=1, generation_config=sampled | {"temperature": 1.5}),
        task(seed=1, generation_config=sampled | {"max_new_tokens": 23}),
        task(seed=1, generation_config=sampled | {"num_return_sequences": 2}),
        task(seed=1, generation_config=sampled, messages=[{"role": "user", "content": "One"}]),
    ]
    for other in others:
        assert engine.verify_blocking(other, response)["verdict"] == "different"
    found = tiny_engine("llama").verify_blocking(asked, response)
    assert (found["verdict"], found["same_fingerprint"]) == ("different", False)


def test_another_fingerprint_is_said_and_checked_all_the_same(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    response = answered(engine, task())
    response["system_fingerprint"] = "fp_other"
    found = engine.verify_blocking(task(), response)
    assert (found["verdict"], found["same_fingerprint"]) == ("exact", False)
    assert found["system_fingerprint"] == engine.card()["system_fingerprint"]


def test_a_grammar(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    asked = task(
        seed=5,
        generation_config={"do_sample": True, "max_new_tokens": 40},
        structured_output={"type": "json_schema", "schema": SCHEMA},
    )
    response = answered(engine, asked)
    assert engine.verify_blocking(asked, response)["verdict"] == "exact"
    ids = response["choices"][0]["token_ids"]
    changed = with_tokens(response, 0, [ids[0] ^ 1, *ids[1:]])
    found = engine.verify_blocking(asked, changed, 100.0)
    assert found_at(found) == (0, 0, ids[0] ^ 1, ids[0])


def test_a_message_with_a_stop_string(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    stops = list("abcdefghijklmnopqrstuvwxyz")[:16]
    asked = task(
        answer_format="message",
        generation_config={"do_sample": True, "max_new_tokens": 200, "stop_strings": stops},
    )
    response = answered(engine, asked)
    assert "stop_string" in response["choices"][0]
    assert engine.verify_blocking(asked, response)["verdict"] == "exact"
    response["choices"][0]["stop_string"] += "x"
    found = engine.verify_blocking(asked, response)
    assert [one["field"] for one in found["response_differences"]] == ["choices.0.stop_string"]


def test_an_answer_without_tokens(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    asked = task(generation_config={"max_new_tokens": 0, "prompt_logprobs": 1}, echo=True)
    response = answered(engine, asked)
    assert response["choices"][0]["token_ids"] == []
    assert engine.verify_blocking(asked, response)["verdict"] == "exact"
    found = engine.verify_blocking(asked, with_tokens(response, 0, [5]))
    assert found_at(found) == (0, 0, 5, None)


@pytest.mark.parametrize("kind", VISION_KINDS[:2])
def test_images(tiny_engine: TinyEngine, kind: Any) -> None:
    engine = tiny_engine(kind)
    image = {"type": "image", "base64": PNG}
    content = [image, {"type": "text", "text": "What is it?"}]
    asked = task(messages=[{"role": "user", "content": content}])
    response = answered(engine, asked)
    assert engine.verify_blocking(asked, response)["verdict"] == "exact"
    ids = response["choices"][0]["token_ids"]
    found = engine.verify_blocking(asked, with_tokens(response, 0, [*ids[:-1], ids[-1] ^ 1]))
    assert found_at(found)[1] == len(ids) - 1


def test_the_task_need_not_ask_for_token_ids(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    response = answered(engine, task())
    silent = task().model_copy(update={"return_token_ids": False})
    assert engine.verify_blocking(silent, response)["verdict"] == "exact"
    del response["choices"][0]["token_ids"]
    with pytest.raises(TaskArgsInvalid, match="return_token_ids"):
        engine.verify_blocking(silent, response)


async def test_verifications_run_among_tasks(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    before = engine.stats()
    tasks = [task(seed=seed, generation_config={"do_sample": True}) for seed in range(4)]
    responses = await asyncio.gather(*map(engine.run, tasks))
    generated = engine.stats()["generated_tokens"]
    found = await asyncio.gather(
        *(engine.verify(asked, one) for asked, one in zip(tasks, responses, strict=True)),
        engine.run(tasks[0]),
        engine.verify(tasks[0], responses[1]),
    )
    *right, again, wrong = found
    verdicts = [cast(dict[str, Any], one)["verdict"] for one in (*right, wrong)]
    assert verdicts == [*["exact"] * len(right), "different"]
    assert again == responses[0]
    after = engine.stats()
    one_answer = responses[0]["usage"]["completion_tokens"]
    assert after["generated_tokens"] == generated + one_answer
    read = sum(one["usage"]["completion_tokens"] for one in responses)
    assert after["verified_tokens"] - before["verified_tokens"] >= read
    await all_pages_free(engine)


async def test_a_cancelled_verification_frees_what_it_holds(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    asked = task(generation_config={"max_new_tokens": 300, "num_beams": 4})
    response = await engine.run(task())
    waiting = asyncio.create_task(engine.verify(asked, response))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await all_pages_free(engine)


def test_the_whole_of_a_fallback_model_is_run(tmp_path: Path) -> None:
    save_architecture("mpt", OUTSIDE["mpt"], tmp_path)
    config = EngineConfig(model=str(tmp_path), dtype="float32", threads=1)
    with closing(Engine(config)) as engine:
        assert engine.card()["continuous_batching"] is False
        asked = task(generation_config={"do_sample": True})
        response = answered(engine, asked)
        assert engine.verify_blocking(asked, response)["verdict"] == "exact"
        ids = response["choices"][0]["token_ids"]
        claim = with_tokens(response, 0, [*ids[:5], ids[5] ^ 1, *ids[6:]])
        assert found_at(engine.verify_blocking(asked, claim)) == (0, 5, ids[5] ^ 1, ids[5])
