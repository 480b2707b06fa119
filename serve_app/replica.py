"""The deployment that owns an engine: one class, one deployment per configured model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Literal

from engine.engine import Engine
from engine.images import ImageInputs
from schema.errors import TaskArgsInvalid
from schema.response import StreamChunk, TaskResponse
from schema.task import Task
from serve_app.config import ModelArgs


class ModelReplica:
    """One engine in one process. The engine has its own thread; the event loop here only relays.

    The engine's own bounded queue decides when a task is refused, so Ray's queue in front of it is
    larger (``max_ongoing_requests``).
    """

    def __init__(self, args: ModelArgs, device: Literal["cpu", "cuda"]) -> None:
        # Blocks until the model is loaded: Ray sends no task to a replica before that.
        self._engine = Engine(args.engine_config(device=device))
        self._configured_dtype = args.dtype
        self._counts = {"ongoing": 0, "finished": 0, "failed": 0, "cancelled": 0}

    async def run(self, task: Task, images: ImageInputs | None) -> TaskResponse:
        """The whole answer. Cancelling the call cancels the task.

        Raises:
            TaskError: see `schema.errors`.
        """
        with self._counted():
            self._check_dtype(task)
            return await self._engine.run(task, images)

    async def stream(self, task: Task, images: ImageInputs | None) -> AsyncIterator[StreamChunk]:
        """The answer as it is made, each chunk a JSON-ready dictionary.

        An async generator, because Ray cannot cancel a plain one: closing it cancels the task.

        Raises:
            TaskError: see `schema.errors`; also after the first chunk.
        """
        with self._counted():
            self._check_dtype(task)
            # Closed here and not by the garbage collector: that is what cancels the task.
            chunks: Any = self._engine.stream(task, images)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def status(self) -> dict[str, Any]:
        """How its tasks ended, what it does now and what it is, for ``GET /v1/models``."""
        return {
            "tasks": dict(self._counts),
            "load": self._engine.stats(),
            "card": self._engine.card(),
        }

    async def check_health(self) -> None:
        """Called by Ray; raising has this replica replaced."""
        self._engine.check_health()

    def __del__(self) -> None:
        # Ray calls this when the replica stops. Absent if loading failed.
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()

    def _check_dtype(self, task: Task) -> None:
        """The half of the routing that needs the loaded checkpoint: what "auto" came to."""
        if self._configured_dtype != "auto":
            return
        dtype = self._engine.card()["dtype"]
        if task.dtype not in ("auto", dtype):
            raise TaskArgsInvalid(
                f"{task.model} is not served with dtype {task.dtype!r}; "
                f"its checkpoint's own is {dtype!r}",
                param="dtype",
            )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._counts["ongoing"] += 1
        outcome = "failed"
        try:
            yield
            outcome = "finished"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        finally:
            self._counts["ongoing"] -= 1
            self._counts[outcome] += 1
