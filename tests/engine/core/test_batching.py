"""The answer is a function of the task alone: in any batch, in any order, streamed or not."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing, closing
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine import Engine
from schema import Task, TaskResponse
from schema.answers.response import collect
from tests.engine.conftest import TinyEngine
from tests.engine.models.tiny_models import IMAGE, Kind
from tests.engine.sampling.test_generate_oracle import drawing

OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize_bits": 8},
    "nf4": {"dtype": "bfloat16", "quantize_bits": 4},
}


def tasks(number: int, *, images: bool, bits: int | None = None) -> list[Task]:
    """Tasks of all lengths and settings; a fixed selection."""
    rng = random.Random(number)
    made = []
    for index in range(number):
        text = "".join(chr(rng.randrange(32, 127)) for _ in range(rng.choice([1, 15, 16, 40, 90])))
        content: Any = text
        if images and index % 2:
            data = drawing(rng.randrange(8, 90), rng.randrange(8, 90), seed=index)
            content = [{"type": "image", "base64": data}, {"type": "text", "text": text}]
        made.append(
            Task.from_fields(
                model="tiny",
                messages=[{"role": "user", "content": content}],
                generation_config={
                    "max_new_tokens": rng.choice([1, 5, 20, 33]),
                    "do_sample": bool(rng.randrange(3)),
                    "temperature": rng.choice([0.7, 1.0, 2.0]),
                }
                | ({"do_sample": True, "num_return_sequences": 3} if index % 5 == 0 else {})
                | ({"num_beams": 2, "num_return_sequences": 1} if index == 7 else {}),
                seed=rng.randrange(1000),
                quantize_bits=bits,
            )
        )
    return made


async def at_once(engine: Engine, wanted: list[Task]) -> list[TaskResponse]:
    """All tasks together, half of them streamed."""

    async def run(task: Task, streamed: bool) -> TaskResponse:
        if streamed:
            return collect([chunk async for chunk in engine.stream(task)])
        return await engine.run(task)

    return await asyncio.gather(*(run(task, bool(i % 2)) for i, task in enumerate(wanted)))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "internvl"])
async def test_alone_and_under_load(kind: Kind, options: str, tiny_engine: TinyEngine) -> None:
    engine = tiny_engine(kind, **OPTIONS[options])
    bits = engine.config.quantize_bits
    wanted = tasks(16, images=kind == "internvl", bits=bits)
    alone = [engine.run_blocking(task) for task in wanted]
    assert len({str(response["choices"]) for response in alone}) > 8  # they do differ
    for seed in range(3):
        order = list(range(len(wanted)))
        random.Random(seed).shuffle(order)
        together = await at_once(engine, [wanted[i] for i in order])
        assert together == [alone[i] for i in order]


async def leave_after(engine: Engine, task: Task, chunks: int) -> None:
    """A client that disconnects in the middle of its answer."""
    async with aclosing(engine.stream(task)) as stream:
        async for _ in stream:
            chunks -= 1
            if chunks < 0:
                return


# bitsandbytes' layers are slow on a CPU; the tasks are the same.
@pytest.mark.parametrize(
    ("options", "count"), [("fp32", 100), ("bf16", 100), ("int8", 50), ("nf4", 50)]
)
async def test_many_tasks(options: str, count: int, tiny_engine: TinyEngine) -> None:
    """One at a time; all at once in other orders, with clients that disconnect; after a restart."""
    engine = tiny_engine("internvl", **OPTIONS[options])
    wanted = tasks(count, images=True, bits=engine.config.quantize_bits)
    alone = [engine.run_blocking(task) for task in wanted]
    restarted = Engine(engine.config)
    for seed, served_by in ((0, engine), (1, restarted)):
        order = list(range(len(wanted)))
        random.Random(seed).shuffle(order)
        disconnects = [leave_after(served_by, wanted[i], chunks=i % 5) for i in order[:40]]
        together, *_ = await asyncio.gather(
            at_once(served_by, [wanted[i] for i in order]), *disconnects
        )
        assert together == [alone[i] for i in order]
    restarted.close()


async def test_an_image_token_in_an_answer_is_no_image(
    tiny_engine: TinyEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers that are made of image tokens, beside prompts with images."""
    engine = tiny_engine("internvl")
    caplog.clear()  # what loading says, where an earlier test has turned that on
    tokenizer: Any = AutoTokenizer.from_pretrained(engine.config.model)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    forced = [
        Task.from_fields(
            model="tiny",
            messages=[{"role": "user", "content": text}],
            generation_config={"max_new_tokens": 60, "logit_bias": {str(image_token): 100}},
        )
        for text in ("one", "another")
    ]
    wanted = [*forced, *(task for task in tasks(24, images=True) if task.split_images()[1])]
    alone = [engine.run_blocking(task) for task in wanted]
    assert [response["usage"]["completion_tokens"] for response in alone[:2]] == [60, 60]
    assert await at_once(engine, wanted) == alone
    # No forward has failed, and was run again for one task after the other.
    assert [record.message for record in caplog.records if record.name.startswith("engine")] == []


async def test_more_tasks_than_places(tiny_engine: TinyEngine) -> None:
    """Waiting for a place or for pages does not change answers."""
    roomy = tiny_engine("qwen2")
    wanted = tasks(24, images=False)
    alone = [roomy.run_blocking(task)["choices"] for task in wanted]
    tight = Engine(roomy.config.replace(max_sequences=4, kv_cache_tokens=512))
    together = await at_once(tight, wanted)
    assert [response["choices"] for response in together] == alone
    tight.close()  # the last answer is reported a moment before its pages are freed
    stats = tight.stats()
    assert stats["kv_pages_free"] + stats["kv_pages_kept"] == stats["kv_pages"]


@pytest.mark.parametrize("steps", [1, None])
async def test_how_long_streams_wait_changes_no_answer(
    steps: int | None, tiny_engine: TinyEngine
) -> None:
    """Steps then have other rows of prompts: as few as can be, and as many."""
    usual = tiny_engine("qwen2", dtype="bfloat16")
    wanted = tasks(24, images=False)
    alone = [usual.run_blocking(task) for task in wanted]
    with closing(Engine(usual.config.replace(max_stream_wait_steps=steps))) as engine:
        assert engine.card()["system_fingerprint"] == usual.card()["system_fingerprint"]
        assert await at_once(engine, wanted) == alone


async def test_a_chunk_contains_what_is_new(tiny_engine: TinyEngine) -> None:
    """Every choice streams; usage only grows; finish_reason comes once, last."""
    engine = tiny_engine("qwen2")
    task = Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": "three answers"}],
        generation_config={"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 30},
    )
    chunks = [chunk async for chunk in engine.stream(task)]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    reasons: dict[int, list[str | None]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            reasons.setdefault(choice["index"], []).append(choice["finish_reason"])
    assert sorted(reasons) == [0, 1, 2]
    for given in reasons.values():
        assert given[-1] in ("stop", "length")
        assert not any(given[:-1])
