"""The deployment that owns an engine: one class, one deployment per configured model."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schema.answers.verification import Claim
from schema.errors import Cancelled, TaskError
from schema.task import Task
from serve_app.config.app_args import ModelArgs
from serve_app.observability.engine_metrics import OUTCOMES, EngineMetrics, Ticker, labels_of
from serve_app.observability.identity import identity, request_id
from serve_app.observability.log_filter import REFUSALS, leave_out_refusals
from serve_app.protocol.messages import (
    HEARTBEAT_S,
    Alive,
    Chunk,
    Judged,
    Message,
    Started,
    TokenIds,
)
from serve_app.replicas.autoscaling_policy import KV_RESERVED
from serve_app.replicas.caller_liveness import CallerMonitor
from serve_app.replicas.lazy_imports import load_libraries
from serve_app.replicas.ranks import PlacedRanks

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.vision.preprocessor import ImageInputs

logger = logging.getLogger("ray.serve")

MIN_SPACING_S, SPACING_S, MAX_SPACING_S = 0.01, 0.002, 0.1
"""How far apart the chunks of a stream are: at the least, for each other stream, and at the most.
To pass on a chunk costs this process, the ingress and what is between them about as much as to make
a token of a small model. So they pass on some five hundred a second, which carry all there is, and
a hundred of a stream: more than an eye can follow. Slower models send each token."""


def _log_loading() -> None:
    """Write what the engine logs, such as the progress of loading, where Ray Serve logs.

    In a process of the pool Ray Serve has no log of its own: there it goes to the process's output.
    """
    engine = logging.getLogger("engine")
    if logger.handlers:
        engine.parent = logger
    elif not engine.handlers:
        engine.addHandler(logging.StreamHandler())
        engine.setLevel(logging.INFO)


@dataclass
class _Progress:
    """Whether the last message of a call has been made."""

    is_answered: bool = False


class ModelReplica:
    """One engine in one process. The engine has its own thread; the event loop here only relays.

    The engine's own bounded queue decides when a task is refused, so Ray's queue in front of it is
    larger (``max_ongoing_requests``).

    A model that is always on and cannot be loaded fails its deployment, for the operator to see.
    One that is started by a task has a client waiting, which would wait for as long as Ray tries
    again: it starts without an engine, answers every task with the reason, and ends when it has
    been idle.
    """

    def __init__(self, args: ModelArgs, device: Literal["cpu", "cuda"]) -> None:
        # Blocks until the model is loaded: Ray sends no task to a replica before that.
        _log_loading()
        leave_out_refusals()
        self._loaded: Engine | TaskError
        try:
            self._loaded = self._load(args, device)
        except TaskError as error:
            if args.min_replicas > 0:
                raise
            logger.exception("%s cannot be loaded", args.deployment)
            self._loaded = error
        self._name = identity()
        self._caller_monitor = CallerMonitor()
        self._counts = {"ongoing": 0, **dict.fromkeys(OUTCOMES, 0)}
        self._labels = labels_of(args) | {"replica": self._name or f"pid-{os.getpid()}"}
        self._ticker: Ticker | None = None
        if not isinstance(self._loaded, TaskError):
            metrics = EngineMetrics(self._loaded, self._counts, self._labels)
            self._ticker = Ticker(metrics.record)

    def _load(self, args: ModelArgs, device: Literal["cpu", "cuda"]) -> Engine:
        config = args.engine_config(device=device)
        load_libraries(config)
        from engine.engine import Engine  # noqa: PLC0415 - see `serve_app.replicas.lazy_imports`

        return Engine(config, PlacedRanks(device) if config.tensor_parallel else None)

    async def stream(
        self,
        task: Task,
        images: ImageInputs | None,
        caller: str = "",
        *,
        streamed: bool = True,
        known: TokenIds = (),
        claim: Claim | None = None,
        log_id: str | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Run a task: see `serve_app.protocol.messages.TaskReplica`.

        ``log_id`` is the request's id where Ray Serve does not know it: in a process of the pool.
        """
        with self._counted() as progress:
            yield Started(self._name)
            log_id = log_id or request_id()
            if claim is not None:
                verification = await self._engine.submit_verification(task, claim, images, log_id)
                try:
                    while (found := await verification.next(HEARTBEAT_S)) is None:
                        self._caller_monitor.check(caller)
                        yield Alive()
                    progress.is_answered = True
                    yield Judged(found)
                finally:
                    verification.cancel()
                return
            running = await self._engine.submit(task, images, log_id, known)
            hold_s = 0.0 if streamed else math.inf
            try:
                while not running.done:
                    chunk = await running.next(HEARTBEAT_S, hold_s)
                    self._caller_monitor.check(caller)
                    token_ids = running.take_token_ids()
                    progress.is_answered = running.done
                    yield Alive(token_ids) if chunk is None else Chunk(chunk, token_ids)
                    if streamed:
                        hold_s = 0.0 if chunk is None else self._spacing_s()
            finally:
                running.cancel()

    def _spacing_s(self) -> float:
        others = self._counts["ongoing"] - 1
        return min(max(MIN_SPACING_S, others * SPACING_S), MAX_SPACING_S)

    @property
    def _engine(self) -> Engine:
        """The engine, or the reason why there is none."""
        if isinstance(self._loaded, TaskError):
            raise self._loaded
        return self._loaded

    async def loaded(self) -> tuple[int, dict[str, Any]]:
        """This process's id and the engine's card; raises why there is none."""
        return os.getpid(), self._engine.card()

    async def status(self) -> dict[str, Any]:
        """How its tasks ended, what it does now and what it is, for ``GET /v1/models``."""
        if isinstance(self._loaded, TaskError):
            return {
                "replica": self._labels["replica"],
                "tasks": dict(self._counts),
                **self._loaded.to_dict(),
            }
        return {
            "replica": self._labels["replica"],
            "load_seconds": self._engine.load_seconds,
            "tasks": dict(self._counts),
            "load": self._engine.stats(),
            "card": self._engine.card(),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray every second, for `serve_app.replicas.autoscaling_policy`."""
        if isinstance(self._loaded, TaskError):
            return {KV_RESERVED: 0.0}
        stats = self._loaded.stats()
        available = stats["kv_pages_free"] + stats["kv_pages_kept"]
        return {KV_RESERVED: 1.0 - available / max(1, stats["kv_pages"])}

    async def check_health(self) -> None:
        """Called by Ray; raising has this replica replaced."""
        if not isinstance(self._loaded, TaskError):
            self._loaded.check_health()

    def __del__(self) -> None:
        # Ray calls this when the replica stops. Absent if loading failed.
        loaded: Engine | TaskError | None = getattr(self, "_loaded", None)
        if loaded is not None and not isinstance(loaded, TaskError):
            loaded.close()
        if ticker := getattr(self, "_ticker", None):
            ticker.stop()

    @contextmanager
    def _counted(self) -> Iterator[_Progress]:
        self._counts["ongoing"] += 1
        outcome = "failed"
        progress = _Progress()
        try:
            yield progress
            outcome = "finished"
        except (asyncio.CancelledError, GeneratorExit, Cancelled):
            # An ingress that has the whole answer does not wait for the call's end.
            outcome = "finished" if progress.is_answered else "cancelled"
            raise
        except REFUSALS:
            outcome = "refused"
            raise
        finally:
            self._counts["ongoing"] -= 1
            self._counts[outcome] += 1
