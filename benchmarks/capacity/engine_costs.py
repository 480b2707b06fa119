"""The demo model's engine alone: CPU seconds of a task and of a step with so many rows."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from benchmarks.harness.server import DEMO
from engine import Engine, EngineConfig
from schema.task import Task

ROWS = (1, 2, 4, 8, 16, 32)
TOKENS = 96
_SHORT = 40


def measure_engine() -> dict[str, Any]:
    """``task``, ``step`` and ``row`` of `EngineCosts`, and what they were fitted to."""
    engine = Engine(EngineConfig(model=DEMO["source"], dtype="float32", device="cpu", threads=1))
    try:
        asyncio.run(_run(engine, [2] * 4))
        task = asyncio.run(_run(engine, [1] * _SHORT, together=1)) / _SHORT
        points = []
        for rows in ROWS:
            spent = asyncio.run(_run(engine, [TOKENS] * rows))
            points.append((rows, (spent - rows * task) / (TOKENS - 1)))
    finally:
        engine.close()
    row, step = np.polyfit([rows for rows, _ in points], [spent for _, spent in points], 1)
    return {"task": task, "step": max(0.0, float(step)), "row": float(row), "points": points}


async def _run(engine: Engine, tokens: list[int], together: int | None = None) -> float:
    """Tasks with so many tokens each; CPU seconds of this process."""
    places = asyncio.Semaphore(together or len(tokens))

    async def one(number: int, length: int) -> None:
        task = Task.from_fields(
            model="demo",
            messages=[{"role": "user", "content": f"Count from {number % 50} to 99."}],
            generation_config={
                "do_sample": True,
                "temperature": 100.0,
                "top_k": 0,
                "max_new_tokens": length,
            },
            seed=number,
        )
        async with places:
            await engine.run(task)

    began = time.process_time()
    await asyncio.gather(*(one(number, length) for number, length in enumerate(tokens)))
    return time.process_time() - began
