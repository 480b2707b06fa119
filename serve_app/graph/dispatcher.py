"""From a task to its answer: the calls that the ingress makes into the graph."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

from ray.serve.handle import DeploymentHandle

from schema.answers.response import StreamChunk, TaskResponse, collect
from schema.answers.verification import Claim, Verdict, VerificationRequest
from schema.errors import EngineStopped, TaskError, TaskExecutionError
from schema.task import Task
from serve_app.config.app_args import AppArgs
from serve_app.graph.attempt import Attempt, Call, Limits
from serve_app.graph.health import Deployments
from serve_app.graph.load_shedding import LoadShedder
from serve_app.graph.model_routes import Route, Routes, peek_variant
from serve_app.graph.prefix_key import prefix_key
from serve_app.graph.replay import Delivered, KnownTokens
from serve_app.graph.retry import RetryPolicy, Transport
from serve_app.observability.identity import actor_name
from serve_app.observability.request_metrics import RequestMetrics
from serve_app.observability.request_record import entry

logger = logging.getLogger("ray.serve")


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
        self._load_shedder = LoadShedder()
        self._actor_name = actor_name()
        # By reference: the preprocessor's result is handed on as a pointer into the object store
        # and never enters this process. Both ends of the hand-over must say so.
        self._preprocessor = preprocessor.options(_by_reference=True, method_name="prepare")
        by_reference = {
            name: handle.options(_by_reference=True) for name, handle in replicas.items()
        }
        self.deployments = Deployments(args, by_reference)
        # In the tuned mode the plain ones are gRPC, which takes a third of the time for a chunk.
        # What they carry is ours: it needs none of what cloudpickle can beyond pickle.
        plain = {
            name: handle.options(request_serialization="pickle", response_serialization="pickle")
            for name, handle in replicas.items()
        }
        self._handles: dict[Transport, dict[str, Any]] = {
            "plain": _streaming(plain),
            "by_reference": _streaming(by_reference),
        }

    def refuse_if_full(self, body: bytes) -> None:
        """Refuse a request's body before it is validated if its model was full a moment ago.

        Raises:
            Overloaded: as the model did then. It says nothing of what is in the body.
        """
        variant = peek_variant(body) if self._load_shedder else None
        if variant is None:
            return
        try:
            route = self._routes.choose(variant)
        except TaskError:
            return  # validation will say more
        if route.session is None:
            logged = entry()
            logged.model, logged.deployment = variant.id, route.deployment
            self._load_shedder.check(route.deployment)

    @property
    def prompts_at_once(self) -> int:
        """How many tasks of one request may run at the same time."""
        return self._args.limits.prompts_at_once

    def deadline(self) -> float:
        """When a request that begins now has to have ended, in the event loop's time."""
        return asyncio.get_running_loop().time() + self._args.limits.request_timeout_s

    async def run(
        self, task: Task, num_bytes: int, *, deadline: float | None = None
    ) -> TaskResponse:
        """The whole answer. Arguments and errors are those of `stream`."""
        whole = self.stream(task, num_bytes, streamed=False, deadline=deadline)
        async with aclosing(whole) as chunks:
            async for chunk in chunks:  # the whole answer: what comes after it cannot undo it
                try:
                    response = collect([chunk])
                except ValueError as error:
                    raise TaskExecutionError(
                        f"the engine's answer is not whole: {error}"
                    ) from error
                entry().usage = response["usage"]
                return response
        raise TaskExecutionError("the engine ended the task without an answer")

    async def stream(
        self,
        task: Task,
        num_bytes: int,
        *,
        streamed: bool = True,
        deadline: float | None = None,
    ) -> AsyncGenerator[StreamChunk, None]:
        """The answer in chunks, just as the engine made them.

        When the replica is lost another one begins the task anew, reads the tokens that are known,
        and what the client has already is left out. The client's deadline stays.

        Args:
            task: the task.
            num_bytes: of the request that the task was made of.
            streamed: whether the answer is read while it grows. If not, it is one chunk.
            deadline: of a request that has begun earlier; None if it begins now.

        Raises:
            TaskError: and no other exception but cancellation.
        """
        route = self._routed(task)
        logged, delivered, known = entry(), Delivered(), KnownTokens()
        retry = RetryPolicy(task, num_bytes, self._args.limits.max_replays)
        limits = self._time_limits(deadline)
        while True:
            call = self._call(task, route, retry, streamed=streamed)
            attempt = Attempt(call, limits, self.deployments, known)
            try:
                with self._place(route, retry), attempt:
                    while (chunk := await attempt.next()) is not None:
                        if (news := delivered.take(chunk)) is not None:
                            if streamed:
                                logged.streamed(news["usage"])
                            yield news
                return
            except TaskError as error:
                pause_s = self._pause_after(error, attempt, call, retry, len(known))
                if pause_s is None:
                    raise
            delivered.again()
            await asyncio.sleep(pause_s)

    async def verify(self, request: VerificationRequest, num_bytes: int) -> Verdict:
        """The verdict on a claimed answer: by a replica that could have given it.

        When that is lost another one begins anew.

        Args:
            request: the task and the claim.
            num_bytes: of the request's body.

        Raises:
            TaskError: and no other exception but cancellation; its ``param`` is a task's field.
        """
        route = self._routed(request.task)
        retry = RetryPolicy(request.task, num_bytes, self._args.limits.max_replays)
        limits = self._time_limits(None)
        while True:
            call = self._call(request.task, route, retry, streamed=False, claim=request.claim)
            attempt = Attempt(call, limits, self.deployments, KnownTokens())
            try:
                with self._place(route, retry), attempt:
                    await attempt.next()
                if attempt.verdict is None:
                    raise TaskExecutionError("the engine ended the verification without a verdict")
            except TaskError as error:
                pause_s = self._pause_after(error, attempt, call, retry)
                if pause_s is None:
                    raise
            else:
                entry().judged(attempt.verdict)
                return attempt.verdict
            await asyncio.sleep(pause_s)

    def _pause_after(
        self,
        error: TaskError,
        attempt: Attempt,
        call: Call,
        retry: RetryPolicy,
        num_known: int = 0,
    ) -> float | None:
        """Seconds until the next attempt, after one that has failed; None if there is none."""
        pause_s = retry.pause_after(error, attempt.silent_replica)
        if pause_s is not None and isinstance(error, EngineStopped):
            logger.warning(
                "a task for %s runs again, %d tokens are known: %s",
                *(call.task.model, num_known, error),
            )
            self.metrics.replayed(call.deployment, num_known)
        return pause_s

    def _routed(self, task: Task) -> Route:
        """Where the task goes; the log says it too."""
        logged = entry()
        logged.model = task.model
        logged.num_answers = task.generation_config.num_return_sequences or 1
        route = self._routes.choose(task)
        logged.deployment = route.deployment
        return route

    def _time_limits(self, deadline: float | None) -> Limits:
        limits = self._args.limits
        until = self.deadline() if deadline is None else deadline
        return Limits(limits.request_timeout_s, until, limits.stall_timeout_s)

    def _call(
        self,
        task: Task,
        route: Route,
        retry: RetryPolicy,
        *,
        streamed: bool,
        claim: Claim | None = None,
    ) -> Call:
        text, images = task.split_images()
        handle = self._handles[retry.transport(with_images=bool(images))][route.deployment]
        if session := route.session or prefix_key(task):
            handle = handle.options(session_id=session)
        return Call(
            route.deployment,
            handle,
            self._preprocessor,
            text,
            images,
            self._actor_name,
            streamed,
            claim,
        )

    def _place(self, route: Route, retry: RetryPolicy) -> AbstractContextManager[None]:
        """What refuses a task at once if its model was full a moment ago.

        A pool may be full for one model only; a task that had a place asks until it has another.
        """
        if route.session is None and retry.losses == 0:
            return self._load_shedder.admit(route.deployment)
        return nullcontext()


def _streaming(handles: Mapping[str, DeploymentHandle[Any]]) -> dict[str, Any]:
    """Handles to `stream`. Made once: Ray takes as long for one as we for a chunk."""
    return {
        name: handle.options(stream=True, method_name="stream") for name, handle in handles.items()
    }
