"""From a task to its answer: the calls that the ingress makes into the graph."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from schema.errors import (
    EngineStopped,
    Overloaded,
    RequestTimeout,
    TaskError,
    TaskExecutionError,
)
from schema.response import StreamChunk, TaskResponse
from schema.task import Task
from serve_app.beginning import beginning_of
from serve_app.config import AppArgs
from serve_app.failures import RETRY_AFTER_S, as_task_error
from serve_app.listing import listing
from serve_app.log_entry import entry
from serve_app.refusals import Refusals
from serve_app.replay import Delivered
from serve_app.request_metrics import RequestMetrics
from serve_app.routing import Route, Routes
from serve_app.suspects import SUSPECTS

logger = logging.getLogger("ray.serve")

STATUS_TIMEOUT_S = 2.0
REPLAY_PAUSE_S = 1.0

_END = object()


class Dispatcher:
    """Owns the handles to the graph. Every call ends: with an answer, an error or the deadline.

    Whichever way a call is left (also by cancellation), the work that it started is cancelled.

    Attributes:
        metrics: what this ingress counts of requests.
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
        self._refusals = Refusals()
        self._stall_s = args.limits.stall_timeout_s
        self._created = int(time.time())
        # By reference: the preprocessor's result is handed on as a pointer into the object store
        # and never enters this process. Both ends of the hand-over must say so.
        self._preprocessor = preprocessor.options(_by_reference=True)
        self._replicas = {
            name: handle.options(_by_reference=True) for name, handle in replicas.items()
        }

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
        if route.session is None and losses == 0:  # a pool may be full for one model only
            self._refusals.check(route.deployment)
        calls: Any = None  # a DeploymentResponseGenerator while it runs
        pixels: Any = None  # a DeploymentResponse until the replica has begun
        replica: str | None = None  # once it has begun
        try:
            async with self._guarded(deadline):
                beginning = beginning_of(task)
                text, pixels = self._split(task, route)
                handle = self._replicas[route.deployment].options(
                    stream=True, session_id=route.session or beginning
                )
                calls = getattr(handle, method).remote(text, pixels)
            while True:
                # Not around the `yield`: a deadline must not strike in the consumer's code.
                async with self._guarded(deadline, replica):
                    item = await anext(calls, _END)
                pixels = None
                if item is _END:
                    calls = None
                    return
                if isinstance(item, str):
                    replica = item
                else:
                    yield item
        except Overloaded as refusal:
            self._refusals.add(route.deployment, refusal)
            raise
        finally:
            _cancel(calls)
            _cancel(pixels)

    async def statuses(self) -> dict[str, list[dict[str, Any]]]:
        """What the running replicas of each deployment say of themselves.

        Asks only replicas that run: a deployment that is scaled to zero stays there.
        """
        names = [owner.deployment for owner in self._args.deployments]
        return dict(zip(names, await asyncio.gather(*map(self._statuses, names)), strict=True))

    async def models(self) -> list[dict[str, Any]]:
        """Every configured model, and those loaded on demand: see `serve_app.listing`."""
        return listing(self._args, await self.statuses(), created=self._created)

    async def _statuses(self, deployment: str) -> list[dict[str, Any]]:
        response = self._replicas[deployment].broadcast("status")
        try:
            answers = await response.results_async(
                timeout_s=STATUS_TIMEOUT_S, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            return []  # none runs, or none answers
        return [answer for answer in answers if isinstance(answer, dict)]

    def _split(self, task: Task, route: Route) -> tuple[Task, Any]:
        """The task without its pixels, and the un-awaited tensors: never awaited here."""
        text, images = task.split_images()
        if not images:
            return text, None
        return text, self._preprocessor.prepare.remote(route.deployment, text, images)

    @asynccontextmanager
    async def _guarded(self, deadline: float, replica: str | None = None) -> AsyncIterator[None]:
        """Whatever goes wrong in the body leaves it as a `TaskError`.

        Args:
            deadline: of the body, in the event loop's time.
            replica: who gives signs of life during the body; None if nobody does yet.

        Raises:
            RequestTimeout: the deadline has passed.
            EngineStopped: the replica was silent for too long, or is lost.
        """
        silence = asyncio.get_running_loop().time() + self._stall_s
        watched = replica is not None and silence < deadline
        timeout = asyncio.timeout_at(silence if watched else deadline)
        try:
            async with timeout:
                yield
        except TaskError as error:
            # Ray gives an error of a replica a second class of its own, which nobody can copy.
            if (plain := as_task_error(error)) is not error:
                raise plain from None
            raise
        except Exception as error:
            # Asked of the timeout itself: Ray may turn its cancellation into an error of its own.
            if not timeout.expired():
                raise as_task_error(error) from error
            if not watched:
                limit = self._args.limits.request_timeout_s
                raise RequestTimeout(f"the task did not end within {limit:g} seconds") from None
            assert replica is not None
            SUSPECTS.add(replica)
            message = f"the replica gave no sign of life for {self._stall_s:g} seconds"
            raise EngineStopped(message, retry_after_s=RETRY_AFTER_S) from None


def _nothing() -> None:
    """A task that has told nobody anything begins anew."""


def _cancel(call: Any) -> None:
    """Cancel a call that still runs. Ray raises here what the call has failed with already."""
    if call is not None:
        with suppress(Exception):
            call.cancel()
