"""Prefix reuse: tasks that begin alike share work, and no bit changes."""

from __future__ import annotations

import asyncio
from typing import Any

from engine import Engine
from schema import Task, TaskResponse
from tests.engine.conftest import TinyEngine
from tests.engine.sampling.test_generate_oracle import drawing

SYSTEM = "You are a careful assistant who always reads the whole of a long system prompt. " * 2


def task(*contents: Any, seed: int = 0) -> Task:
    messages = [{"role": "system", "content": SYSTEM}]
    messages += [{"role": "user", "content": content} for content in contents]
    return Task.from_fields(
        model="tiny",
        messages=messages,
        generation_config={"max_new_tokens": 12, "do_sample": True},
        seed=seed,
    )


def fresh(engine: Engine) -> Engine:
    return Engine(engine.config)


def reused(engine: Engine) -> int:
    return engine.stats()["prefix_tokens_reused"]


def image(seed: int) -> dict[str, str]:
    return {"type": "image", "base64": drawing(60, 40, seed=seed)}


def answers(engine: Engine, wanted: list[Task]) -> list[TaskResponse]:
    return [engine.run_blocking(one) for one in wanted]


def test_a_hit_changes_no_byte(tiny_engine: TinyEngine) -> None:
    wanted = [task("one", seed=1), task("two"), task("one", seed=1), task("one", "more")]
    cold = []
    for one in wanted:  # each on an engine that has seen nothing
        engine = fresh(tiny_engine("qwen2"))
        cold.append(engine.run_blocking(one))
        assert reused(engine) == 0
        engine.close()
    warm = fresh(tiny_engine("qwen2"))
    assert answers(warm, wanted) == cold
    # The system prompt has 162 tokens, which is 10 whole chunks of 16, in three of the four.
    assert reused(warm) >= 3 * 160
    warm.close()


async def test_a_hit_on_a_task_that_still_runs(tiny_engine: TinyEngine) -> None:
    wanted = [task(str(number), seed=number) for number in range(12)]
    alone = answers(tiny_engine("qwen2"), wanted)
    engine = fresh(tiny_engine("qwen2"))
    assert await asyncio.gather(*(engine.run(one) for one in wanted)) == alone
    engine.close()


def test_pages_under_an_image_are_keyed_by_its_content(tiny_engine: TinyEngine) -> None:
    """The prompts have the same tokens; only the pixels differ."""
    text = {"type": "text", "text": "and some text after it, long enough for chunks of its own"}
    wanted = [task([image(seed), text]) for seed in (1, 2, 1, 2)]
    engine = fresh(tiny_engine("internvl"))
    first, second, third, fourth = answers(engine, wanted)
    assert first == third
    assert second == fourth
    assert first["choices"] != second["choices"]
    engine.close()
    for one, expected in ((wanted[0], first), (wanted[1], second)):
        engine = fresh(tiny_engine("internvl"))
        assert engine.run_blocking(one) == expected
        engine.close()


async def test_kept_pages_make_room(tiny_engine: TinyEngine) -> None:
    """Kept chunks never block a task, and the least recently used is evicted first."""
    wanted = [task(f"{number} " * 20, seed=number) for number in range(30)]
    roomy = answers(tiny_engine("qwen2"), wanted)
    config = tiny_engine("qwen2").config.replace(kv_cache_tokens=640, max_sequences=2)
    engine = Engine(config)
    together = await asyncio.gather(*(engine.run(one) for one in wanted))
    assert [r["choices"] for r in together] == [r["choices"] for r in roomy]
    assert reused(engine) > 0
    engine.close()
    engine._loop.scheduler.check_integrity()
