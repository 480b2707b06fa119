"""Batches that have broken other servers' promises, on the CUDA path with a strict stand-in.

Pages, chunks and dtype are those that the real kernel takes, so whatever it refuses fails here.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig
from schema import Task
from tests.engine.conftest import TinyModel
from tests.engine.execution.varlen_stand_in import Kernel, kernel_of, use_kernel, varlen_attn
from tests.engine.models.tiny_models import Kind

CHUNK = 256
WINDOW = 300
"""Of Gemma's layers that have one: longer than a page, shorter than a context."""
LENGTHS = (1, 2, 31, 255, 256, 257, 480)
"""Of prompts: shorter than a window, about a page and a chunk, and of two pages."""

Calls = set[tuple[int, tuple[int, int], Kernel]]
"""The most rows of a sequence, the window, and the kernel that computes them."""


def task(number: int, length: int, **settings: Any) -> Task:
    """A prompt of so many tokens, which are those of no other number."""
    tokens = [random.Random(number).randrange(5, 90) for _ in range(length)]
    return Task.from_fields(
        model="tiny",
        prompt_token_ids=tokens,
        seed=number,
        return_token_ids=True,
        generation_config={"max_new_tokens": 6, "do_sample": bool(number % 3)} | settings,
    )


@pytest.fixture
def calls() -> Calls:
    """What the kernel was called with."""
    return set()


def saved_with_window(directory: Path, target: Path) -> Path:
    """A copy of a model whose windows, if it has any, are of `WINDOW` tokens."""
    shutil.copytree(directory, target)
    file = target / "config.json"
    config = json.loads(file.read_text())
    if config.get("sliding_window"):
        file.write_text(json.dumps(config | {"sliding_window": WINDOW}))
    return target


@pytest.fixture
def engine(
    calls: Calls,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Engine]:
    def watched(*args: Any, **options: Any) -> torch.Tensor:
        max_q, max_k = args[5:7]
        window = options["window_size"]
        calls.add((max_q, window, kernel_of(max_k, window)))
        return varlen_attn(*args, **options)

    use_kernel(monkeypatch, watched)
    directory = tiny_model(getattr(request, "param", "gemma3"))
    engine = Engine(
        EngineConfig(
            model=str(saved_with_window(directory, tmp_path / "model")),
            dtype="bfloat16",
            threads=1,
            prefill_chunk=CHUNK,
            page_size=256,
            context_length=512,
            max_sequences=48,
            kv_cache_tokens=48 * 512,
            lookahead=True,
        )
    )
    assert engine.card()["attention"] == "paged kernel"
    yield engine
    engine.close()


async def at_once(engine: Engine, wanted: list[Task]) -> list[Any]:
    return list(await asyncio.gather(*map(engine.run, wanted)))


KINDS: list[Kind] = ["gemma3", "qwen2"]


@pytest.mark.parametrize(("engine", "kind"), [(k, k) for k in KINDS], indirect=["engine"])
async def test_more_than_44_sequences_of_very_unequal_contexts(engine: Engine, kind: Kind) -> None:
    """Twice: the second time all prompts begin in the prefix cache."""
    wanted = [task(n, LENGTHS[n % len(LENGTHS)]) for n in range(47)]
    together = await at_once(engine, wanted)
    assert await at_once(engine, wanted[::-1]) == together[::-1]
    assert engine.stats()["prefix_tokens_reused"] > 0
    alone = range(0, len(wanted), 4)
    assert [engine.run_blocking(wanted[n]) for n in alone] == [together[n] for n in alone]
    assert len({str(response["choices"]) for response in together}) > len(wanted) // 2


async def test_decoding_beside_a_long_prompt(engine: Engine) -> None:
    """Short answers are generated while a prompt of two chunks arrives, and after it."""
    short = [task(n, 3, max_new_tokens=40) for n in range(5)]
    long = task(100, 480)
    alone = [engine.run_blocking(each) for each in [*short, long]]
    running = [asyncio.create_task(engine.run(each)) for each in short]
    while engine.stats()["running"] < len(short):  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.001)
    late = await engine.run(long)
    assert [*await asyncio.gather(*running), late] == alone


@pytest.mark.parametrize("length", [255, 256, 257])
async def test_about_a_page(length: int, engine: Engine) -> None:
    """Cold and warm, alone and beside others, at lengths where pages and chunks end."""
    wanted = [task(length, length), task(length, length - 1), task(7, 31)]
    cold = await at_once(engine, wanted)
    assert [engine.run_blocking(each) for each in wanted] == cold


async def test_no_kernel_is_chosen_by_strangers(engine: Engine, calls: Calls) -> None:
    """A window longer than all contexts of a batch must not become none, which is another one."""
    for length in (3, 257, 480):
        engine.run_blocking(task(length, length))
    await at_once(engine, [task(3, 3), task(480, 480)])
    kinds = [(max_q, window) for max_q, window, _ in calls]
    assert len(kinds) == len(set(kinds)), calls
    windows = {window[0] for _, window, _ in calls}
    assert windows >= {-1, WINDOW - 1}, "the model has layers with a window and without"
