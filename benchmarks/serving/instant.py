"""The graph with real engines whose decode forwards cost the processor nothing, as those of a GPU.

What is left is the host's work: the step, sampling, text, chunks. A forward takes at least as long
as it is told to, asleep. Its logits are random numbers.
"""

# No `from __future__ import annotations` here: see serve_app/app.py.

import os
import time
from typing import Any, Literal

import torch
from ray import serve

from serve_app import app
from serve_app.config.app_args import AppArgs, ModelArgs
from serve_app.replicas.model_replica import ModelReplica

STEP_S = "BENCHMARK_STEP_S"
"""The environment variable with the least seconds from one decode step to the next."""
LOOP_S = "event_loop_s"
"""What a replica's load says beside all else: the processor seconds of its event loop."""
_KINDS = 8  # of logits, which take turns
_SPECIAL = 16  # the last tokens of the demo model's vocabulary


class InstantReplica(ModelReplica):
    """A replica as it is, but for the forward of its model."""

    def _load(self, args: ModelArgs, device: Literal["cpu", "cuda"]) -> Any:
        engine = super()._load(args, device)
        vocab = engine._loop.assembly.loaded.model.config.get_text_config().vocab_size
        _put(float(os.environ[STEP_S]), vocab, args.engine.max_sequences)
        return engine

    async def status(self) -> dict[str, Any]:
        """Beside all else, the processor time of the event loop."""
        found = await super().status()
        found["load"][LOOP_S] = time.thread_time()
        return found


def _put(step_s: float, vocab: int, most_rows: int) -> None:
    """Let decode forwards sleep instead of computing."""
    from engine.execution.model_runner import Forward, ForwardOutput, ModelRunner  # noqa: PLC0415

    logits = torch.randn(
        _KINDS + most_rows, vocab, generator=torch.Generator().manual_seed(0)
    ).mul_(3)
    logits[:, -_SPECIAL:] = -100.0  # answers do not end by themselves
    computed = ModelRunner.outputs
    last = time.monotonic()
    steps = 0

    def outputs(self: ModelRunner, forward: Forward, watched: Any = None) -> ForwardOutput:
        nonlocal last, steps
        if not forward.decode:
            return computed(self, forward, watched)
        time.sleep(max(0.0, last + step_s - time.monotonic()))
        last = time.monotonic()
        steps += 1
        first = steps % _KINDS
        return ForwardOutput(logits[first : first + len(forward.keep)], ())

    ModelRunner.outputs = outputs  # type: ignore[method-assign]


def build(args: AppArgs) -> serve.Application:
    """The graph as it is, with that replica in the place of ours."""
    app.ModelReplica = InstantReplica  # type: ignore[attr-defined]
    return app.graph(args, gpus=0.0)
