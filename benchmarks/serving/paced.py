"""The graph in front of an engine that computes nothing: a token for each task at every step."""

# No `from __future__ import annotations` here: see serve_app/app.py.

import os
import threading
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Literal

from ray import serve

from engine.requests.chunks import ChunkBuilder
from engine.requests.handle import RequestHandle
from engine.requests.output_collector import RequestOutputCollector
from engine.requests.outputs import ChoiceDelta, RequestOutput
from schema.task import Task
from serve_app import app
from serve_app.config.app_args import AppArgs, ModelArgs
from serve_app.replicas.model_replica import ModelReplica

STEP_S = "BENCHMARK_STEP_S"
"""The environment variable with the seconds from one token of a stream to the next."""


class PacedEngine:
    """In the place of an engine."""

    load_seconds = 0.0

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._running: list[tuple[Any, int, RequestOutputCollector]] = []
        threading.Thread(target=self._run, daemon=True).start()

    async def submit(self, task: Task, *_: Any) -> RequestHandle:
        """Take a task; its answer has all the tokens that it may have."""
        request: Any = SimpleNamespace(
            settings=SimpleNamespace(batched=True, num_beams=1),
            sequences=[SimpleNamespace(token_ids=[])],
            cancel_requested=False,
        )
        outputs = RequestOutputCollector()
        tokens = task.generation_config.max_new_tokens or 16
        self._running.append((request, tokens, outputs))
        return RequestHandle(request, ChunkBuilder(task.model, "fp_none", 9), outputs)

    def _run(self) -> None:
        while True:
            time.sleep(self._step_s)
            for one in tuple(self._running):
                request, tokens, outputs = one
                token_ids = request.sequences[0].token_ids
                token_ids.append(len(token_ids))
                done = len(token_ids) == tokens
                delta = ChoiceDelta(0, " token", "length" if done else None)
                outputs.put(RequestOutput((delta,), len(token_ids), done))
                if done or request.cancel_requested:
                    self._running.remove(one)

    def stats(self) -> dict[str, int]:
        """Nothing is counted."""
        return defaultdict(int)

    def take_times(self) -> list[Any]:
        """Nothing is timed."""
        return []

    def card(self) -> dict[str, Any]:
        """Nothing is known of it."""
        return {}

    def check_health(self) -> None:
        """It is healthy."""

    def close(self) -> None:
        """It ends with its process."""


class PacedReplica(ModelReplica):
    """A replica as it is, but for its engine."""

    def _load(self, args: ModelArgs, device: Literal["cpu", "cuda"]) -> Any:
        return PacedEngine(float(os.environ[STEP_S]))


def build(args: AppArgs) -> serve.Application:
    """The graph as it is, with that replica in the place of ours."""
    app.ModelReplica = PacedReplica  # type: ignore[attr-defined]
    return app.graph(args, gpus=0.0)
