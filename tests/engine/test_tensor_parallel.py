"""A model over two processes: the answers of the whole model, the same bytes in any company."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, set_seed

from engine import Engine, EngineConfig
from engine.tensor_parallel.follower import follow
from engine.tensor_parallel.launcher import FollowerProcess, Launcher
from schema import Task
from schema.errors import EngineStopped, ModelInvalid, TaskArgsInvalid, TaskError
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.test_batching import at_once, tasks
from tests.engine.test_generate_oracle import actual, expected
from tests.engine.tiny_models import Kind

PROMPT = "The engine must write what generate writes, for a prompt of several chunks too."
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
}


class ForkServer:
    """Starts followers that need not import anything, which takes seconds."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["engine.tensor_parallel.follower"])

    def start(self, address: str, rank: int) -> FollowerProcess:
        process = self._context.Process(target=follow, args=(address, rank))
        process.start()
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
    """An engine over two processes. There can be one at a time."""
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefill_chunk": 16}
    settings |= {"num_devices": 2, "max_sequences": 8, "device": "cpu"}
    config = EngineConfig(model=str(directory), **settings | options)
    engine = Engine(config, launcher)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def fork_server() -> ForkServer:
    return ForkServer()


@pytest.fixture(scope="module")
def engine(tiny_model: TinyModel) -> Iterator[Engine]:
    """With pictures, so that they are covered too."""
    with split(tiny_model("internvl")) as engine:
        yield engine


def followers() -> list[psutil.Process]:
    """The processes that the engine has started."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "engine.tensor_parallel.follower" in " ".join(process.cmdline())
    ]


def hello(**settings: Any) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": "Hello"}],
        generation_config={"max_new_tokens": 24, "do_sample": True} | settings,
        seed=5,
    )


# --- One engine for these ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tokens_are_those_of_the_whole_model(
    name: str, engine: Engine, tiny_model: TinyModel
) -> None:
    directory = tiny_model("internvl")
    model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = dict(tokenizer(f"[user]{PROMPT}[assistant]", return_tensors="pt"))
    messages = [{"role": "user", "content": PROMPT}]
    assert actual(engine, messages, SETTINGS[name]) == expected(
        model, tokenizer, inputs, SETTINGS[name]
    )


async def test_alone_and_in_a_crowd(engine: Engine, tiny_engine: TinyEngine) -> None:
    """Of all kinds: sampled, several answers, beams, pictures, with prefixes that are known."""
    wanted = tasks(12, images=True)
    alone = [engine.run_blocking(task) for task in wanted]
    assert await at_once(engine, wanted) == alone
    assert engine.stats()["prefix_tokens_reused"] > 0
    # And what the whole model writes, but for the fingerprint.
    whole = tiny_engine("internvl", max_sequences=8)
    assert [r["choices"] for r in await at_once(whole, wanted)] == [r["choices"] for r in alone]
    assert engine.card()["system_fingerprint"] != whole.card()["system_fingerprint"]
    assert engine.card()["layout"] == "tensor:2"
    assert engine.card()["memory"]["weights_bytes"] < whole.card()["memory"]["weights_bytes"]
    engine._loop.scheduler.check_integrity()


def test_a_task_for_generate_is_refused(engine: Engine) -> None:
    own = engine._loop.assembly.loaded.model.generation_config
    own.guidance_scale = 1.5
    try:
        with pytest.raises(TaskArgsInvalid, match="split over 2 devices"):
            engine.run_blocking(hello())
    finally:
        own.guidance_scale = None


def test_one_at_a_time(engine: Engine, tiny_model: TinyModel) -> None:
    with pytest.raises(ModelInvalid, match="close the other engine"):
        Engine(EngineConfig(model=str(tiny_model("llama")), num_devices=2, device="cpu"))
    assert engine.run_blocking(hello())["choices"]


async def test_another_start_gives_the_same_bytes_and_a_lost_rank_ends_it(
    engine: Engine, tiny_model: TinyModel, fork_server: ForkServer
) -> None:
    first = engine.run_blocking(hello())
    (child,) = followers()
    engine.close()
    engine.close()
    assert not child.is_running()

    with split(tiny_model("internvl"), max_waiting=4, kv_cache_tokens=4096) as second:
        assert second.run_blocking(hello()) == first
        running = [
            asyncio.create_task(second.run(hello(max_new_tokens=400, num_return_sequences=n)))
            for n in (1, 2)
        ]
        while second.stats()["running"] < 2:
            await asyncio.sleep(0.001)
        (child,) = followers()
        child.send_signal(signal.SIGKILL)
        for ended in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(ended, EngineStopped)
        with pytest.raises(EngineStopped, match="rank 1"):
            second.check_health()
        with pytest.raises(EngineStopped):
            second.run_blocking(hello())
    assert not followers()
