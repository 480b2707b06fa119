"""From a task to its answer: the calls that the ingress makes into the graph."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from schema.errors import RequestTimeout, TaskError
from schema.response import StreamChunk, TaskResponse
from schema.task import Task
from serve_app.config import AppArgs
from serve_app.failures import as_task_error
from serve_app.listing import listing
from serve_app.log_entry import entry
from serve_app.routing import Route, Routes

STATUS_TIMEOUT_S = 2.0


class Dispatcher:
    """Owns the handles to the graph. Every call ends: with an answer, an error or the deadline.

    Whichever way a call is left (also by cancellation), the work that it started is cancelled.
    """

    def __init__(
        self,
        args: AppArgs,
        preprocessor: DeploymentHandle[Any],
        replicas: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        self._args = args
        self._routes = Routes(args.models, args.pool)
        self._created = int(time.time())
        # By reference: the preprocessor's result is handed on as a pointer into the object store
        # and never enters this process. Both ends of the hand-over must say so.
        self._preprocessor = preprocessor.options(_by_reference=True)
        self._replicas = {
            name: handle.options(_by_reference=True) for name, handle in replicas.items()
        }

    async def run(self, task: Task) -> TaskResponse:
        """The whole answer, as one call.

        Raises:
            TaskError: and no other exception but cancellation.
        """
        call: Any = None  # a DeploymentResponse while it runs
        logged = entry()
        logged.model = task.model
        try:
            async with self._guarded(self._deadline()):
                route = self._routes.choose(task)
                text, images = self._split(task, route)
                call = self._handle(route).run.remote(text, images)
                response: TaskResponse = await call
            call = None
            logged.usage = response["usage"]
            return response
        finally:
            _cancel(call)

    async def stream(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        """The answer in chunks, just as the engine made them. Raises as `run` does."""
        calls: Any = None  # a DeploymentResponseGenerator while it runs
        deadline = self._deadline()
        logged = entry()
        logged.model = task.model
        try:
            async with self._guarded(deadline):
                route = self._routes.choose(task)
                text, images = self._split(task, route)
                calls = self._handle(route).options(stream=True).stream.remote(text, images)
            while True:
                # Not around the `yield`: a deadline must not strike in the consumer's code.
                async with self._guarded(deadline):
                    chunk: StreamChunk | None = await anext(calls, None)
                if chunk is None:
                    calls = None
                    return
                logged.usage = chunk["usage"]
                yield chunk
        finally:
            _cancel(calls)

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

    def _handle(self, route: Route) -> DeploymentHandle[Any]:
        handle = self._replicas[route.deployment]
        return handle if route.session is None else handle.options(session_id=route.session)

    def _split(self, task: Task, route: Route) -> tuple[Task, Any]:
        """The task without its pixels, and the un-awaited tensors: never awaited here."""
        text, images = task.split_images()
        if not images:
            return text, None
        return text, self._preprocessor.prepare.remote(route.deployment, text, images)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._args.limits.request_timeout_s

    @asynccontextmanager
    async def _guarded(self, deadline: float) -> AsyncIterator[None]:
        """Whatever goes wrong in the body leaves it as a `TaskError`."""
        timeout = asyncio.timeout_at(deadline)
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
            if timeout.expired():
                limit = self._args.limits.request_timeout_s
                raise RequestTimeout(f"the task did not end within {limit:g} seconds") from None
            raise as_task_error(error) from error


def _cancel(call: Any) -> None:
    """Cancel a call that still runs. Ray raises here what the call has failed with already."""
    if call is not None:
        with suppress(Exception):
            call.cancel()
