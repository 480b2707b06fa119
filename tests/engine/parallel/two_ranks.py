"""Engines over two processes: how tests start them, and lose one of their ranks."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine import Engine, EngineConfig
from engine.parallel.launcher import Launcher, WorkerProcess
from engine.parallel.worker import follow
from schema import Task
from schema.errors import EngineStopped

OPEN: list[Engine] = []


class ForkServer:
    """Starts followers that need not import anything, which takes seconds."""

    last: ForkServerProcess

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["engine.parallel.worker"])

    def start(
        self, address: str, rank: int, target: Callable[[str, int], None] = follow
    ) -> WorkerProcess:
        process = self._context.Process(target=target, args=(address, rank))
        process.start()
        self.last = process
        return _Forked(process)


class _Forked:
    def __init__(self, process: ForkServerProcess) -> None:
        self.process = process

    def ended(self) -> str | None:
        return None if self.process.is_alive() else f"status {self.process.exitcode}"

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def split(directory: Path, launcher: Launcher | None = None, **options: Any) -> Iterator[Engine]:
    """An engine over two processes. There can be one at a time: this one ends the one before."""
    while OPEN:
        OPEN.pop().close()
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefill_chunk": 16}
    settings |= {"num_devices": 2, "max_sequences": 8, "device": "cpu"}
    config = EngineConfig(model=str(directory), **settings | options)
    if config.device == "cpu" and torch.accelerator.is_available():
        pytest.skip("needs GPUs hidden: CUDA_VISIBLE_DEVICES=")
    engine = Engine(config, launcher)
    OPEN.append(engine)
    try:
        yield engine
    finally:
        engine.close()


def children() -> list[psutil.Process]:
    """The processes that engines have started by themselves."""
    return [
        process
        for process in psutil.Process().children()
        if "engine.parallel.worker" in process.cmdline()
    ]


async def stops(engine: Engine, lose: Callable[[], object], *, because: str) -> None:
    """Lose a rank while tasks run: they end, and so does all that comes later."""
    lasting = hello(max_new_tokens=400, num_return_sequences=2)
    running = [asyncio.create_task(engine.run(lasting)) for _ in range(2)]
    async with asyncio.timeout(60):
        while engine.stats()["running"] < len(running):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.001)
        lose()
        for ended in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(ended, EngineStopped)
    with pytest.raises(EngineStopped, match=because):
        engine.check_health()
    with pytest.raises(EngineStopped):
        engine.run_blocking(hello())


def hello(**settings: Any) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": "Hello"}],
        generation_config={"max_new_tokens": 24, "do_sample": True} | settings,
        seed=5,
    )
