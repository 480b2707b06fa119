"""Long and short sequences in one batch have their own rotary factors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineConfig
from schema import Task
from tests.engine.core.test_generate_fallback import (
    INSIDE,
    TEXT,
    answers,
    generated,
    save_architecture,
)

LONGROPE: dict[str, Any] = INSIDE["phi3"]["rope_parameters"]
FACTOR = (1.4, 384)
LIMIT = 32  # tokens: bytes of the prompt
LONG = TEXT[: 2 * LIMIT]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("phi3")
    save_architecture("phi3", INSIDE["phi3"], directory)
    config = EngineConfig(
        model=str(directory), dtype=request.param, threads=1, prefill_chunk=16, max_sequences=16
    )
    with closing(Engine(config)) as engine:
        assert engine.card()["continuous_batching"]
        yield engine


def task(text: str, tokens: int, seed: int = 0, **settings: Any) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config={"max_new_tokens": tokens, "logprobs": 1} | settings,
        seed=seed,
        return_token_ids=True,
    )


async def test_alone_and_under_load(engine: Engine) -> None:
    """Below the limit, beyond it, and from one side to the other."""
    asked = [
        task(TEXT[:length], tokens, seed, do_sample=bool(seed % 2))
        for seed, (length, tokens) in enumerate(
            (length, tokens) for length in (5, 16, 31, 32, 33, 60) for tokens in (1, 12, 40)
        )
    ]
    alone = [await engine.run(one) for one in asked]
    for seed in range(2):
        order = random.Random(seed).sample(range(len(asked)), len(asked))
        got = await asyncio.gather(*(engine.run(asked[number]) for number in order))
        assert got == [alone[number] for number in order]
    for one, answer in zip(asked, alone, strict=True):
        assert (await engine.verify(one, answer))["verdict"] == "exact"


async def test_a_short_prompt_does_not_reuse_a_long_one(engine: Engine) -> None:
    """Both begin with the same chunk, whose keys have other factors."""
    text = LONG[::-1]  # which no other test has
    await engine.run(task(text, 2))
    reused = engine.stats()["prefix_tokens_reused"]
    first = await engine.run(task(text[: LIMIT - 4], 4))
    assert engine.stats()["prefix_tokens_reused"] == reused
    assert await engine.run(task(text[: LIMIT - 4], 4)) == first
    assert engine.stats()["prefix_tokens_reused"] == reused + 16  # its own


def test_what_grows_over_the_limit_runs_alone(engine: Engine) -> None:
    for length, tokens, alone in ((20, 12, False), (20, 13, True), (33, 30, False)):
        before = engine.stats()["decode_steps"]
        engine.run_blocking(task(TEXT[:length], tokens, logit_bias={"256": -100.0}))
        assert (engine.stats()["decode_steps"] == before) == alone


# Phi-3.5-MoE scales by what stands in its configuration, and stretches nothing; Laguna has
# embeddings for each type of layer.
OTHERS: dict[str, dict[str, Any]] = {
    "phimoe": {
        "num_local_experts": 4,
        "rope_parameters": LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.4},
    },
    "laguna": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": LONGROPE,
            "sliding_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
    },
}


@pytest.mark.parametrize("kind", OTHERS)
async def test_other_forms(kind: str, tmp_path: Path) -> None:
    """Long and short sequences at once have the tokens of `generate`."""
    save_architecture(kind, OTHERS[kind], tmp_path)
    config = EngineConfig(model=str(tmp_path), dtype="float32", threads=1, prefill_chunk=16)
    texts = [TEXT[:length] for length in (5, 60, 20, 33)]
    with closing(Engine(config)) as engine:
        card = engine.card()
        assert card["continuous_batching"], card["fallback_reason"]
        got = await asyncio.gather(*(engine.run(task(text, 12)) for text in texts))
    for text, answer in zip(texts, got, strict=True):
        wanted = generated(tmp_path, text, {"max_new_tokens": 12})
        assert [answer["choices"][0]["message"]["content"]] == wanted


def test_dynamic_scaling_up_to_the_end_of_the_context(tmp_path: Path) -> None:
    """It begins after that. Its factor does not drop out of the frequencies exactly."""
    factor, length = FACTOR
    assert factor * length / length - (factor - 1) != 1
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": factor}
    save_architecture(
        "llama", {"rope_parameters": rope, "max_position_embeddings": length}, tmp_path
    )
    config = EngineConfig(model=str(tmp_path), dtype="float32", threads=1, prefill_chunk=16)
    text = TEXT * (length // len(TEXT))
    settings = {"max_new_tokens": length - len(text)}
    with closing(Engine(config)) as engine:
        assert engine.card()["continuous_batching"]
        assert answers(engine, text, settings) == generated(tmp_path, text, settings)
