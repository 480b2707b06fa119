"""From a task to its answer: the calls that the ingress makes into the graph."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, nullcontext, suppress
from typing import Any, cast

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from schema.errors import (
    Cancelled,
    EngineStopped,
    Overloaded,
    RequestTimeout,
    TaskError,
    TaskExecutionError,
)
from schema.response import StreamChunk, TaskResponse
from schema.task import Task
from serve_app.config.app_args import AppArgs
from serve_app.graph.ejection import SUSPECTS
from serve_app.graph.health import Deployments
from serve_app.graph.load_shedding import LoadShedder
from serve_app.graph.model_routes import Route, Routes, peek_variant
from serve_app.graph.prefix_key import prefix_key
from serve_app.graph.replay import Delivered
from serve_app.observability.identity import own_actor
from serve_app.observability.request_metrics import RequestMetrics
from serve_app.observability.request_record import entry
from serve_app.protocol.failures import RETRY_AFTER_S, as_task_error

logger = logging.getLogger("ray.serve")

REPLAY_PAUSE_S = 1.0

MAX_MESSAGE = 1_000_000
"""Bytes of a task that is sent as a message. gRPC takes 4 MiB; what is larger goes by reference."""

_END = object()


class Dispatcher:
    """Owns the handles to the graph. Every call ends: with an answer, an error or the deadline.

    Whichever way a call is left (also by cancellation), the work that it started is cancelled.

    Attributes:
        metrics: what this ingress counts of requests.
        deployments: which models run.
    """

    def __init__(
        self,
        args: AppArgs,
        preprocessor: DeploymentHandle[Any],
        replicas: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        self._args = args
        self.metrics = RequestMetrics()
        self._routes = Routes(args.models, args.pool)
        self._refusals = LoadShedder()
        self._stall_s = args.limits.stall_timeout_s
        self._own_actor = own_actor()
        # By reference: the preprocessor's result is handed on as a pointer into the object store
        # and never enters this process. Both ends of the hand-over must say so.
        self._preprocessor = preprocessor.options(_by_reference=True)
        by_reference = {
            name: handle.options(_by_reference=True) for name, handle in replicas.items()
        }
        self.deployments = Deployments(args, by_reference)
        self._calls_by_reference = _calls(by_reference)
        # In the tuned mode the plain ones are gRPC, which takes a third of the time for a chunk.
        # What they carry is ours: it needs none of what cloudpickle can beyond pickle.
        self._plain_calls = _calls(
            {
                name: handle.options(
                    request_serialization="pickle", response_serialization="pickle"
                )
                for name, handle in replicas.items()
            }
        )

    def refuse_if_full(self, body: bytes) -> None:
        """Refuse a request's body before it is validated if its model was full a moment ago.

        Raises:
            Overloaded: as the model did then. It says nothing of what is in the body.
        """
        wanted = peek_variant(body) if self._refusals else None
        if wanted is None:
            return
        try:
            route = self._routes.choose(wanted)
        except TaskError:
            return  # validation will say more
        if route.session is None:
            logged = entry()
            logged.model, logged.deployment = wanted.id, route.deployment
            self._refusals.check(route.deployment)

    async def run(self, task: Task) -> TaskResponse:
        """The whole answer.

        Raises:
            TaskError: and no other exception but cancellation.
        """
        async with aclosing(self._follow(task, "run", _nothing)) as items:
            async for response in items:
                entry().usage = response["usage"]
                return cast(TaskResponse, response)
        raise TaskExecutionError("the engine ended the task without an answer")

    async def stream(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        """The answer in chunks, just as the engine made them. Raises as `run` does."""
        delivered, logged = Delivered(), entry()
        async with aclosing(self._follow(task, "stream", delivered.again)) as chunks:
            async for chunk in chunks:
                if (news := delivered.take(chunk)) is not None:
                    logged.streamed(news["usage"])
                    yield news

    async def _follow(
        self, task: Task, method: str, again: Callable[[], None]
    ) -> AsyncGenerator[Any, None]:
        """What a replica's method yields for a task.

        When the replica is lost another one begins the task anew, after ``again`` was called. The
        client's deadline stays.
        """
        logged = entry()
        logged.model = task.model
        logged.num_answers = task.generation_config.num_return_sequences or 1
        deadline = asyncio.get_running_loop().time() + self._args.limits.request_timeout_s
        losses = 0
        while True:
            try:
                async with aclosing(self._attempt(task, method, deadline, losses)) as items:
                    async for item in items:
                        yield item
                return
            except EngineStopped as error:
                if losses == self._args.limits.max_replays:
                    raise
                logger.warning("a task for %s runs again: %s", task.model, error)
                self.metrics.replayed(self._routes.choose(task).deployment)
                again()
                # At first at once: Ray knows already which replica has died. A replica whose
                # process lives while its engine has stopped is replaced after three health checks,
                # which the pauses together have to outlast.
                pause = 2 * REPLAY_PAUSE_S * losses
                losses += 1
            except Overloaded:
                if losses == 0:
                    raise
                pause = REPLAY_PAUSE_S  # it had a place; the deadline bounds the wait for another
            await asyncio.sleep(pause)

    async def _attempt(
        self, task: Task, method: str, deadline: float, losses: int
    ) -> AsyncGenerator[Any, None]:
        route = self._routes.choose(task)
        entry().deployment = route.deployment
        calls: Any = None  # a DeploymentResponseGenerator while it runs
        pixels: Any = None  # a DeploymentResponse until the replica has begun
        replica: str | None = None  # once it has begun
        # A pool may be full for one model only; a task that had a place asks until it has another.
        may_ask = route.session is None and losses == 0
        timeout = asyncio.timeout_at(deadline)
        watched = False
        now = asyncio.get_running_loop().time
        with self._refusals.asked(route.deployment) if may_ask else nullcontext():
            try:
                session = route.session or prefix_key(task)
                text, pixels = self._split(task, route)
                # What is lost may have been an answer that is too large for a message.
                plain = pixels is None and losses == 0 and _is_small(text)
                handles = self._plain_calls if plain else self._calls_by_reference
                handle = handles[route.deployment, method]
                if session:
                    handle = handle.options(session_id=session)
                calls = handle.remote(text, pixels, self._own_actor)
                while True:
                    silence = now() + self._stall_s
                    watched = replica is not None and silence < deadline
                    timeout = asyncio.timeout_at(silence if watched else deadline)
                    # Not around the `yield`: a deadline must not strike in the consumer's code.
                    async with timeout:
                        item = await anext(calls, _END)
                    pixels = None
                    if item is _END:
                        calls = None
                        return
                    if isinstance(item, str):
                        replica = item
                    else:
                        yield item
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                raise _stopped() from None
            except Exception as error:
                # Asked of the timeout itself: Ray may turn its cancellation into another error.
                if timeout.expired():
                    why_not = "" if replica else await self.deployments.why_not(route.deployment)
                    raise self._too_late(replica if watched else None, why_not) from None
                plain_error = as_task_error(error)
                if isinstance(error, DeploymentUnavailableError):
                    plain_error = await self.deployments.unavailable(route.deployment)
                if isinstance(plain_error, Cancelled) and not _is_cancelled():
                    raise _stopped() from error
                # Ray gives an error of a replica a second class of its own, which nobody can copy.
                raise plain_error from (None if isinstance(error, TaskError) else error)
            finally:
                _cancel(calls)
                _cancel(pixels)

    def _too_late(self, silent: str | None, why_not: str) -> TaskError:
        """Why waiting was given up: for the deadline, or for a replica that was silent.

        ``why_not`` is why no replica has begun, if that is known.
        """
        if silent is None:
            limit = self._args.limits.request_timeout_s
            return RequestTimeout(f"the task did not end within {limit:g} seconds{why_not}")
        SUSPECTS.add(silent)
        message = f"the replica gave no sign of life for {self._stall_s:g} seconds"
        return EngineStopped(message, retry_after_s=RETRY_AFTER_S)

    def _split(self, task: Task, route: Route) -> tuple[Task, Any]:
        """The task without its pixels, and the un-awaited tensors: never awaited here."""
        text, images = task.split_images()
        if not images:
            return text, None
        return text, self._preprocessor.prepare.remote(route.deployment, text, images)


def _calls(handles: Mapping[str, DeploymentHandle[Any]]) -> dict[tuple[str, str], Any]:
    """Handles for a replica's methods. Made once: Ray takes as long for one as we for a chunk."""
    return {
        (name, method): handle.options(stream=True, method_name=method)
        for name, handle in handles.items()
        for method in ("run", "stream")
    }


def _is_small(task: Task) -> bool:
    """Whether a task fits into a message between replicas, and its answers surely do.

    Chunks are small unless each token brings twenty others with it.
    """
    return (
        task.generation_config.logprobs is None
        and len(pickle.dumps(task, pickle.HIGHEST_PROTOCOL)) <= MAX_MESSAGE
    )


def _is_cancelled() -> bool:
    """Whether somebody has cancelled what runs here; else Ray has cancelled the call by itself."""
    running = asyncio.current_task()
    return running is None or running.cancelling() > 0


def _stopped() -> EngineStopped:
    message = "the replica was stopped before the task had ended"
    return EngineStopped(message, retry_after_s=RETRY_AFTER_S)


def _nothing() -> None:
    """A task that has told nobody anything begins anew."""


def _cancel(call: Any) -> None:
    """Cancel a call that still runs. Ray raises here what the call has failed with already."""
    if call is not None:
        with suppress(Exception):
            call.cancel()
