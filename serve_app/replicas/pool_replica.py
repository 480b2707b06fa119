"""The deployment of models that are not configured: loaded on demand, in a memory budget."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from schema.answers.verification import Claim
from schema.task import Task
from serve_app.config.app_args import BYTES_PER_GB, PoolArgs, PooledModel
from serve_app.observability import metrics
from serve_app.observability.identity import identity, request_id
from serve_app.observability.log_filter import leave_out_refusals
from serve_app.protocol.failures import as_task_error
from serve_app.protocol.messages import Message, TokenIds
from serve_app.replicas.caller_liveness import CallerMonitor
from serve_app.replicas.lazy_imports import load_libraries
from serve_app.replicas.model_replica import ModelReplica
from serve_app.replicas.residency import Calls, Loaded, Residency

if TYPE_CHECKING:
    from engine.vision.preprocessor import ImageInputs

logger = logging.getLogger("ray.serve")

HEALTH_TIMEOUT_S = 20.0
EXIT_TIMEOUT_S = 30.0
EXIT_POLL_S = 0.05


@dataclass(frozen=True, eq=False)
class EngineProcess:
    """A process of its own with one engine."""

    actor: Any  # an actor of the class `ModelReplica`
    pid: int


class PoolReplica:
    """Loads the models that tasks name, and passes the tasks on to them.

    Each engine lives in a process of its own, a Ray actor on this machine that shares this
    replica's GPU: loading a model changes settings of the whole process (its default dtype, for
    one), which would change the bits of an engine beside it; and a process that ends gives back all
    of its memory.
    """

    def __init__(self, args: PoolArgs, device: Literal["cpu", "cuda"]) -> None:
        load_libraries()
        leave_out_refusals()
        self._args = args
        self._device = device
        self._models: Residency[PooledModel, EngineProcess] = Residency(
            Calls(self._size, self._load, _end),
            budget=int(args.max_memory_gb * BYTES_PER_GB),
            max_waiting=args.max_waiting,
            max_wait_s=args.max_wait_s,
        )
        self._labels = {"deployment": args.deployment, "replica": identity()}
        self._caller_monitor = CallerMonitor()

    async def stream(
        self,
        task: Task,
        images: ImageInputs | None,
        caller: str = "",
        *,
        streamed: bool = True,
        known: TokenIds = (),
        claim: Claim | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Run a task: see `serve_app.protocol.messages.TaskReplica`.

        The messages are those of the engine's process, so the first one comes when the model is
        loaded. Closing this cancels the task there.
        """
        async with self._process_for(task) as process:
            messages = process.actor.stream.options(num_returns="streaming").remote(
                *(task, images),
                streamed=streamed,
                known=known,
                claim=claim,
                log_id=request_id(),
            )
            ended = False
            try:
                async for message in messages:
                    self._caller_monitor.check(caller)
                    yield await message
                ended = True
            finally:
                if not ended:
                    with suppress(Exception):  # what it has failed with already
                        ray.cancel(messages)

    async def status(self) -> dict[str, Any]:
        """The memory, and the status of each engine, for ``GET /v1/models``."""
        loaded = self._models.loaded()
        statuses = await asyncio.gather(
            *(process.actor.status.remote() for process in loaded.values()), return_exceptions=True
        )
        return {
            "max_memory_bytes": int(self._args.max_memory_gb * BYTES_PER_GB),
            "used_memory_bytes": self._models.used_bytes,
            "models": [
                key.variant.as_json() | status
                for key, status in zip(loaded, statuses, strict=True)
                if isinstance(status, dict)
            ],
        }

    async def check_health(self) -> None:
        """Called by Ray once a second. An engine that has died is dropped.

        The next task loads it again. Metrics are brought up to now here too.
        """
        metrics.POOL_BYTES.record(int(self._args.max_memory_gb * BYTES_PER_GB), self._labels)
        metrics.POOL_USED.record(self._models.used_bytes, self._labels)
        loaded = self._models.loaded()
        await asyncio.gather(*(self._check(key, process) for key, process in loaded.items()))

    async def _check(self, key: PooledModel, process: EngineProcess) -> None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await process.actor.check_health.remote()
        except Exception:  # its engine's, its process's, or silence
            logger.exception("%s has failed and is dropped", key)
            await self._models.discard(key, process)

    @asynccontextmanager
    async def _process_for(self, task: Task) -> AsyncIterator[EngineProcess]:
        """The process that runs a task; errors leave the body as `TaskError`."""
        key = self._args.model(task.variant)
        async with self._models.use(key) as process:
            try:
                yield process
            except Exception as error:
                if isinstance(error, RayActorError):
                    await self._models.discard(key, process)
                raise as_task_error(error) from error

    # --- What `Residency` calls ------------------------------------------------------------------

    async def _size(self, key: PooledModel) -> int:
        from engine.loading.estimate import estimate_bytes  # noqa: PLC0415 - see `serve_app.replicas.lazy_imports`

        return await asyncio.to_thread(estimate_bytes, key.engine_config(self._device))

    async def _load(self, key: PooledModel) -> Loaded[EngineProcess]:
        """Start a process and wait until it has loaded the model.

        Raises:
            TaskError: why it cannot be loaded.
        """
        here = ray.get_runtime_context().get_node_id()
        # It holds no resources of its own: this replica has reserved them for all of its models.
        # What Ray derives from resources is therefore passed on.
        inherited = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        variables = {name: os.environ[name] for name in inherited if name in os.environ}
        actor: Any = (
            ray.remote(ModelReplica)
            .options(
                num_cpus=0,
                num_gpus=0,
                max_concurrency=self._args.max_ongoing_requests,
                runtime_env={"env_vars": variables},
                scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            )
            .remote(key, self._device)
        )
        try:
            pid, card = await actor.loaded.remote()
        except Exception as error:
            ray.kill(actor)
            raise as_task_error(error) from error
        except asyncio.CancelledError:
            ray.kill(actor)
            raise
        memory = card["memory"]
        return Loaded(EngineProcess(actor, pid), memory["weights_bytes"] + memory["kv_cache_bytes"])


async def _end(process: EngineProcess) -> None:
    """End a process, and wait until its memory is free."""
    ray.kill(process.actor)
    deadline = asyncio.get_running_loop().time() + EXIT_TIMEOUT_S
    # There is no event for the end of a process that is not a child of this one.
    while _is_alive(process.pid) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(EXIT_POLL_S)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    return True
