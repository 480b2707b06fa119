"""One task, in process, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from schema.errors import ModelInvalid
from schema.response import StreamChunk, TaskResponse
from schema.task import Task

if TYPE_CHECKING:
    from engine.engine import Engine

PATHS = ("/", "./", "../", "~")  # what can be no id of the hub


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
        engine: a loaded engine to run on. Without one, the task's model is loaded in the task's
            dtype and quantization, and dropped again.
        fields: as those of a task; but without an engine ``model`` may also be a directory, which
            is known by its own name then. A task itself never names one: tasks come from strangers.

    Raises:
        TaskError: the task is invalid, the model cannot be loaded, or the run failed.
    """
    if (task is None) == (not fields):
        raise TypeError("run_task takes either a Task or the fields of one")
    source = fields.get("model")
    if engine is None and isinstance(source, str) and Path(source).is_dir():
        fields["model"] = Path(source).resolve().name
    elif engine is None and isinstance(source, str) and source.startswith(PATHS):
        raise ModelInvalid(f"model: there is no directory {source!r} here", param="model")
    else:
        source = None
    if task is None:
        task = Task.from_fields(**fields)
    if engine is not None:
        return engine.run_blocking(task, stream_callback)
    from engine.engine import Engine  # noqa: PLC0415 - see `engine`

    own = Engine(
        EngineConfig(
            model=source or task.model,
            model_id=task.model,
            dtype=task.dtype,
            quantize_bits=task.quantize_bits,
        )
    )
    try:
        return own.run_blocking(task, stream_callback)
    finally:
        own.close()
