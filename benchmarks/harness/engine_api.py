"""All that the benchmarks take from the inside of the engine: what changes there, changes here."""

from __future__ import annotations

import time
from contextlib import aclosing

import torch

from benchmarks.harness.client import Answer, Endpoint, Job
from engine import Engine, EngineConfig, ImagePreprocessor
from engine.core.model_info import weight_bytes
from engine.execution.executor import Executor
from engine.execution.modules.prepack import PackedLinear, prepack
from engine.execution.modules.products import OneDNNProduct, packed_product
from engine.loading.families.processors import image_only_processor
from engine.loading.loader import load_model
from engine.platform.determinism import make_deterministic
from engine.platform.platforms import platform_of
from schema.task import Task

__all__ = [
    "Engine",
    "EngineClient",
    "EngineConfig",
    "Executor",
    "ImagePreprocessor",
    "OneDNNProduct",
    "PackedLinear",
    "default_page_size",
    "image_only_processor",
    "load_model",
    "make_deterministic",
    "packed_product",
    "prepack",
    "weight_bytes",
]


def default_page_size(device: torch.device) -> int:
    """Tokens in a page of the KV cache, where the configuration does not say."""
    return platform_of(device).default_sizes.page_size


class EngineClient:
    """Gives jobs to an engine of this process, as `Client` gives them to a server."""

    def __init__(self, engine: Engine, endpoint: Endpoint) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._own = {"quantize_bits": engine.card()["quantize_bits"]}

    async def send(self, job: Job, answers: list[Answer] | None = None) -> Answer:
        """As `Client.send`."""
        task = Task.from_fields(**self._own | self._endpoint.body(job))
        answer = Answer(job, time.perf_counter())
        if answers is not None:
            answers.append(answer)
        async with aclosing(self._engine.stream(task)) as chunks:
            async for chunk in chunks:
                answer.lines.append((time.perf_counter(), chunk))
        answer.ended = time.perf_counter()
        return answer
