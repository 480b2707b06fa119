"""Engines and tasks for proofs."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.gpu_day.claim import DEMO_MODEL, Bench
from demo.random_model import save_model
from engine import Engine, EngineConfig
from schema.answers.response import TaskResponse
from schema.task import Task

MODEL_ID = "claimed"
MAX_TASKS = 64
"""As many an engine of `running` works on at once."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"do_sample": True, "min_p": 0.05, "num_return_sequences": 2},
    {"do_sample": True, "typical_p": 0.9, "repetition_penalty": 1.2},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"num_beams": 3},
    {"do_sample": True, "top_p": 0.5, "logprobs": 2},
)
"""Every way to choose a token that has kernels of its own."""


def random_model(bench: Bench, geometry: str = "qwen2.5-0.5b") -> Path:
    """The directory of a model with random weights: the tiny one where that does."""
    name = "tiny" if bench.small else geometry
    directory = bench.folder / name
    save_model(name, "bfloat16", str(directory))
    return directory


@contextmanager
def running(bench: Bench, model: Path = DEMO_MODEL, **options: Any) -> Iterator[Engine]:
    """An engine until the body ends."""
    settings: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_sequences": MAX_TASKS,
        "max_waiting": 2 * MAX_TASKS,
        "keep_measurements": False,  # each claim measures this machine anew
        "local_files_only": True,
        "threads": 1 if bench.small else None,
    }
    if bench.device == "cpu":
        settings["kv_cache_tokens"] = 2**16
    settings |= {"model": str(model), "model_id": MODEL_ID, "device": bench.device} | options
    engine = Engine(EngineConfig(**settings))
    try:
        yield engine
    finally:
        engine.close()


def tasks(count: int, max_new_tokens: int, *, words: int = 40, **fields: Any) -> list[Task]:
    """Tasks of all `SETTINGS`, with prompts of one word to ``words`` that all differ."""
    return [
        task(
            f"{number}: " + "One after another. " * (1 + number * words // (3 * count)),
            SETTINGS[number % len(SETTINGS)] | {"max_new_tokens": max_new_tokens},
            seed=number,
            **fields,
        )
        for number in range(count)
    ]


def task(text: str, config: dict[str, Any], *, seed: int = 0, **fields: Any) -> Task:
    """One task; ``config`` is its generation_config."""
    message = {"role": "user", "content": text}
    return Task.from_fields(
        model=MODEL_ID, messages=[message], generation_config=config, seed=seed, **fields
    )


FIRST_IMAGE = "blue star"
"""What the first of `image_tasks` shows."""


def image_tasks(max_new_tokens: int) -> list[Task]:
    """Tasks about the demo's images, one and two of them at once."""
    folder = DEMO_MODEL.parent / "images"
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in sorted(folder.iterdir())]
    images = [{"type": "image", "base64": each} for each in encoded]
    found = []
    for number, shown in enumerate((images[:1], images[1:2], images)):
        for sampled in (False, True):
            content = [*shown, {"type": "text", "text": "What is in this image?"}]
            config = {"max_new_tokens": max_new_tokens, "do_sample": sampled}
            message = {"role": "user", "content": content}
            found.append(
                Task.from_fields(
                    model=MODEL_ID,
                    messages=[message],
                    generation_config=config,
                    seed=number,
                )
            )
    return found


def one_by_one(engine: Engine, asked: Sequence[Task]) -> list[TaskResponse]:
    """The answers to tasks, each of which has the engine for itself."""
    return [engine.run_blocking(each) for each in asked]


def at_once(engine: Engine, asked: Sequence[Task]) -> list[TaskResponse]:
    """The answers to tasks that share the engine."""

    async def run_all() -> list[TaskResponse]:
        return list(await asyncio.gather(*(engine.run(each) for each in asked)))

    return asyncio.run(run_all())


def different(some: Sequence[Any], others: Sequence[Any]) -> list[int]:
    """The numbers of the answers that differ."""
    pairs = zip(some, others, strict=True)
    return [number for number, (one, other) in enumerate(pairs) if one != other]
