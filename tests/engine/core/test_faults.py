"""A fault in one task ends that task and leaves the others' bytes untouched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine import Engine
from engine.execution.batch_sizes import BatchSizes
from engine.requests.request import ScheduledTokens
from schema import EngineStopped, OutOfMemory, Task, TaskExecutionError
from schema.answers.response import collect
from tests.engine.conftest import TinyEngine

GUILTY = "the guilty one"


def task(text: str, seed: int = 0, num_beams: int = 1) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config={"max_new_tokens": 20, "do_sample": True, "num_beams": num_beams},
        seed=seed,
    )


async def outcome(engine: Engine, one: Task) -> Any:
    try:
        name = str(one.messages[0].content).replace(" ", "-")
        return collect([chunk async for chunk in engine.stream(one, log_id=name)])
    except Exception as error:  # noqa: BLE001 - it is compared
        return error


def is_guilty(engine: Engine, token_ids: Sequence[int]) -> bool:
    return GUILTY in str(engine._loaded.tokenizer.decode(list(token_ids)))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("stage", "fault", "expected"),
    [
        ("prefill", torch.OutOfMemoryError("no memory for it"), OutOfMemory),
        ("decode", torch.OutOfMemoryError("no memory for it"), OutOfMemory),
        ("prefill", ValueError("a bug"), TaskExecutionError),
        ("decode", RuntimeError("a bug"), TaskExecutionError),
    ],
)
async def test_a_failing_forward_ends_only_the_guilty(
    num_beams: int,
    stage: str,
    fault: Exception,
    expected: type[Exception],
    tiny_engine: TinyEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The forward of any batch with the faulty task fails; the others run without it."""
    innocent = [task(f"innocent {n}", seed=n, num_beams=1 + n % 3) for n in range(7)]
    shared = tiny_engine("qwen2")
    alone = [shared.run_blocking(one) for one in innocent]

    engine = Engine(shared.config)
    step = engine._loop.assembly.batching.runner.step

    def failing(batch: Sequence[ScheduledTokens], sizes: BatchSizes) -> Any:
        requests = [t.owner for t in batch if t.of_prompt == (stage == "prefill")]
        if any(is_guilty(engine, request.prompt.token_ids) for request in requests):
            raise fault
        return step(batch, sizes)

    monkeypatch.setattr(engine._loop.assembly.batching.runner, "step", failing)
    tasks = [*innocent[:3], task(GUILTY, 0, num_beams), *innocent[3:]]
    results = await asyncio.gather(*(outcome(engine, one) for one in tasks))
    assert isinstance(results.pop(3), expected)
    assert results == alone
    blamed = ("tasks failed: ", "out of memory, tasks ")
    (line,) = [line for line in caplog.messages if line.startswith(blamed)]
    assert "the-guilty-one" in line
    assert "innocent" not in line
    engine.check_health()
    engine.close()
    engine._loop.scheduler.check_integrity()


async def test_a_lost_device_ends_everything_and_is_reported(
    tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it the process cannot be used: health checks must say so."""
    engine = Engine(tiny_engine("qwen2").config)

    step = engine._loop.assembly.batching.runner.step

    def lost(batch: Sequence[ScheduledTokens], sizes: BatchSizes) -> Any:
        if not all(tokens.of_prompt for tokens in batch):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return step(batch, sizes)

    monkeypatch.setattr(engine._loop.assembly.batching.runner, "step", lost)
    results = await asyncio.gather(*(outcome(engine, task(str(n))) for n in range(3)))
    assert [type(result) for result in results] == [EngineStopped] * 3  # run again elsewhere
    engine._loop.thread.join(timeout=10)  # tasks get their error first
    with pytest.raises(EngineStopped, match="illegal memory access"):
        engine.check_health()
    engine.close()
