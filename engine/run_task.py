"""One task, in process, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.config import EngineConfig
from engine.engine import Engine
from schema.response import StreamChunk, TaskResponse
from schema.task import Task


def run_task(
    task: Task | None = None,
    *,
    stream_callback: Callable[[StreamChunk], None] | None = None,
    engine: Engine | None = None,
    **fields: Any,
) -> TaskResponse:
    """Run one task and return its response.

    Args:
        task: the task; or give its fields instead: ``run_task(model=..., messages=...)``.
        stream_callback: called with every stream chunk as it comes.
        engine: a loaded engine to run on. Without one, the task's model is loaded (from the hub or
            a directory, in the task's dtype and quantization) and dropped again.

    Raises:
        TaskError: the task is invalid, the model cannot be loaded, or the run failed.
    """
    if (task is None) == (not fields):
        raise TypeError("run_task takes either a Task or the fields of one")
    if task is None:
        task = Task.from_fields(**fields)
    if engine is not None:
        return engine.run_blocking(task, stream_callback)
    own = Engine(EngineConfig(model=task.model, dtype=task.dtype, quantize_bits=task.quantize_bits))
    try:
        return own.run_blocking(task, stream_callback)
    finally:
        own.close()
