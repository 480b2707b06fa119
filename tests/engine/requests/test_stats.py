"""Measurements of the engine: tokens match the usage, times are plausible."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest

from engine import Engine
from engine.requests.outputs import RequestOutput
from engine.requests.stats import Meter, TaskTimes
from schema import Task, TaskExecutionError
from tests.engine.conftest import TinyEngine


def task(text: str = "Hello", **settings: Any) -> Task:
    config = {"max_new_tokens": 12, "do_sample": True} | settings
    message = {"role": "user", "content": text}
    return Task.from_fields(model="tiny", messages=[message], generation_config=config, seed=3)


def counts(engine: Engine) -> tuple[int, int]:
    stats = engine.stats()
    return stats["prompt_tokens"], stats["generated_tokens"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 1},
        {"num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    ],
)
def test_tokens_are_those_of_usage(tiny_engine: TinyEngine, settings: dict[str, Any]) -> None:
    engine = tiny_engine("qwen2")
    before, _ = counts(engine), engine.take_times()
    begun = time.monotonic()
    response = engine.run_blocking(task(**settings))
    elapsed = time.monotonic() - begun
    usage = response["usage"]
    prompts, generated = counts(engine)
    assert prompts - before[0] == usage["prompt_tokens"]
    assert generated - before[1] == usage["completion_tokens"]
    (times,) = engine.take_times()
    assert 0 < times.first_s <= times.total_s <= elapsed
    if times.per_token_s is not None:
        assert 0 < times.per_token_s <= elapsed
    assert engine.take_times() == []
    assert engine.load_seconds > 0


async def test_many_at_once(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    before, _ = counts(engine), engine.take_times()
    responses = await asyncio.gather(*(engine.run(task(f"Hello {i}")) for i in range(6)))
    usages = [response["usage"] for response in responses]
    after = counts(engine)
    assert after[0] - before[0] == sum(usage["prompt_tokens"] for usage in usages)
    assert after[1] - before[1] == sum(usage["completion_tokens"] for usage in usages)
    assert len(engine.take_times()) == 6


async def test_what_was_cancelled_counts_as_far_as_it_came(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    before, _ = counts(engine), engine.take_times()
    reported = 0
    wanted = task(max_new_tokens=500, temperature=100.0, top_k=0)
    async with aclosing(engine.stream(wanted)) as chunks:
        async for chunk in chunks:
            reported = chunk["usage"]["completion_tokens"]
            break
    async with asyncio.timeout(60):
        while engine.stats()["running"]:  # noqa: ASYNC110 - no event says when it is dropped
            await asyncio.sleep(0.01)
    assert reported <= counts(engine)[1] - before[1] < 500
    assert engine.take_times() == []


def test_output_in_one_piece_has_no_pace() -> None:
    meter, heard = Meter(), list[RequestOutput]()
    arrived = time.monotonic()
    sink = meter.watch(heard.append, prompt_tokens=5, num_answers=2, arrived=arrived)
    outputs = [RequestOutput(), RequestOutput(completion_tokens=8, done=True)]
    for one in outputs:
        sink(one)
    assert heard == outputs
    ((first, pace, total),) = meter.take_times()
    assert (pace, first) == (None, total)
    failed = meter.watch(heard.append, prompt_tokens=5, num_answers=1, arrived=arrived)
    failed(RequestOutput(error=TaskExecutionError("no")))
    assert (meter.prompt_tokens, meter.generated_tokens) == (5, 8)
    assert meter.take_times() == list[TaskTimes]()
