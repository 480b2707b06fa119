"""Proofs about time and memory, in units of what the device can do at best."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import torch

from cluster.gpu_day.claim import Bench, Found, NotShownError
from cluster.gpu_day.engines import random_model, running, task
from cluster.hardware.bandwidth import copy_bandwidth
from demo.random_model import GEOMETRIES, weight_bytes_per_step
from engine import Engine
from schema.task import Task

_ROWS = (1, 16, 64)
_SHARE_OF_FLOOR = 0.7
_MOST_REPLICA_BYTES = 2**30
_CHOOSY = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}


def decode_half_billion(bench: Bench) -> Found:
    """A decode step of 0.5 billion parameters takes at most 1.4 times its floor."""
    return _decode(bench, "qwen2.5-0.5b")


def decode_eight_billion(bench: Bench) -> Found:
    """A decode step of 8 billion parameters takes at most 1.4 times its floor."""
    return _decode(bench, "llama-8b")


def _decode(bench: Bench, name: str) -> Found:
    """How long a step takes at some numbers of rows, greedy and sampled, and its floor's share.

    A step reads all weights and the keys and values of its sequences once; the floor is the time
    that a copy takes which moves as many bytes.
    """
    geometry = GEOMETRIES["tiny" if bench.small else name]
    model = random_model(bench, name)
    tokens = 12 if bench.small else 128
    bandwidth = copy_bandwidth(torch.device(bench.device))
    weights = weight_bytes_per_step(str(model), geometry, itemsize=2)
    found: Found = {"bandwidth_gb_s": round(bandwidth / 1e9)}
    shares = []
    with running(bench, model, speculation="off") as engine:
        for rows in _ROWS:
            for kind, config in (("greedy", {}), ("sampled", _CHOOSY)):
                asked = [
                    task(f"{n} tokens", config | {"max_new_tokens": tokens}, seed=n)
                    for n in range(rows)
                ]
                _step_seconds(engine, asked)  # graphs are captured
                took, context = _step_seconds(engine, asked)
                keys = rows * context * geometry.kv_elements_per_token * 2
                share = (weights + keys) / bandwidth / took
                shares += [share] if kind == "greedy" else []
                found[f"{rows} {kind}"] = f"{1000 * took:.2f} ms ({share:.0%} of the floor)"
    if bench.device == "cuda" and min(shares) < _SHARE_OF_FLOOR:
        raise NotShownError(f"{found}")
    return found


def _step_seconds(engine: Engine, asked: Sequence[Task]) -> tuple[float, float]:
    """How long a step of all tasks takes, and how many tokens each has then, in the middle.

    Between the first token of the task that began last and the first end nothing else runs.
    """
    firsts: list[float] = []
    lasts: list[float] = []
    prompts: list[int] = []
    tokens: list[int] = []

    async def follow(each: Task) -> None:
        stamps = []
        async for chunk in engine.stream(each):
            stamps.append(time.perf_counter())
            if usage := chunk.get("usage"):
                prompts.append(usage["prompt_tokens"])
                tokens.append(usage["completion_tokens"])
        firsts.append(stamps[0])
        lasts.append(stamps[-1])

    async def follow_all() -> None:
        await asyncio.gather(*(follow(each) for each in asked))

    asyncio.run(follow_all())
    took = (max(lasts) - max(firsts)) / (max(tokens) - 1)
    return took, max(prompts) + max(tokens) / 2


def memory(bench: Bench) -> Found:
    """A replica takes at most 1 GiB beside its weights and its KV cache."""
    bench.needs_cuda()
    free, _ = torch.cuda.mem_get_info()
    with running(bench, random_model(bench), kv_cache_tokens=2**16) as engine:
        engine.run_blocking(task("Hi", {"max_new_tokens": 8}))
        known = sum(engine.card()["memory"].values())
        taken = free - torch.cuda.mem_get_info()[0]
    found = {"beside_mib": round((taken - known) / 2**20), "known_mib": round(known / 2**20)}
    if taken - known > _MOST_REPLICA_BYTES:
        raise NotShownError(str(found))
    return found
