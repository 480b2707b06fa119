"""One call to one replica: its deadline, its silence, its end, and what an error of it means."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ray.serve.exceptions import DeploymentUnavailableError

from schema.answers.response import StreamChunk
from schema.answers.verification import Claim, Verdict
from schema.errors import Cancelled, EngineStopped, RequestTimeout, TaskError
from schema.task import Task
from serve_app.graph.health import Deployments
from serve_app.graph.replay import KnownTokens
from serve_app.protocol.failures import RETRY_AFTER_S, ProcessLost, as_task_error
from serve_app.protocol.messages import Chunk, Judged, Message, Started


@dataclass(frozen=True)
class Limits:
    """How long a task may take.

    Attributes:
        timeout_s: for the whole task, as the error says.
        deadline: when that is over, in the event loop's time.
        stall_s: how long a replica that has begun may be silent.
    """

    timeout_s: float
    deadline: float
    stall_s: float


@dataclass(frozen=True)
class Call:
    """What is called, and with what arguments.

    Attributes:
        deployment: whose replica is called.
        handle: to the replicas' method `stream`.
        preprocessor: the handle to the method that prepares images.
        task: without its images.
        images: the task's images, as `Task.split_images` gives them.
        caller: `actor_name` of this process.
        streamed: whether the answer is read while it grows.
        claim: what is claimed to be the answer, if it is to be verified.
    """

    deployment: str
    handle: Any
    preprocessor: Any
    task: Task
    images: list[str]
    caller: str
    streamed: bool
    claim: Claim | None = None


class Attempt:
    """One call to a replica. Leaving the ``with`` block cancels what still runs of it.

    Attributes:
        silent_replica: the name of the replica that was given up because it was silent.
        verdict: on the claim, once it has come; then `next` has no chunks.
    """

    def __init__(
        self, call: Call, limits: Limits, deployments: Deployments, known: KnownTokens
    ) -> None:
        """Nothing is sent before the first chunk is asked for.

        Args:
            call: what is called.
            limits: how long it may take.
            deployments: which know why a replica cannot be called.
            known: the tokens of earlier attempts, which the replica is told; it gets those of this
                one.
        """
        self._call = call
        self._limits = limits
        self._deployments = deployments
        self._known = known
        self._messages: Any = None  # a DeploymentResponseGenerator while the call runs
        self._prepared: Any = None  # a DeploymentResponse until the replica has begun
        self._replica: str | None = None  # once it has begun
        self._ended = False
        self.silent_replica: str | None = None
        self.verdict: Verdict | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._ended:
            _cancel(self._messages)
        _cancel(self._prepared)

    async def next(self) -> StreamChunk | None:
        """The next chunk; None after the last one.

        Raises:
            TaskError: and nothing else but cancellation.
        """
        timeout: asyncio.Timeout | None = None
        watched = False
        now = asyncio.get_running_loop().time
        try:
            if self._messages is None:
                self._begin()
            while True:
                silence = now() + self._limits.stall_s
                watched = self._replica is not None and silence < self._limits.deadline
                timeout = asyncio.timeout_at(silence if watched else self._limits.deadline)
                async with timeout:
                    message: Message = await self._messages.__anext__()
                self._prepared = None
                if isinstance(message, Started):
                    self._replica = message.replica
                    continue
                if isinstance(message, Judged):
                    self.verdict = message.verdict
                    continue
                if message.token_ids:
                    self._known.take(message.token_ids)
                if isinstance(message, Chunk):
                    return message.chunk
        except StopAsyncIteration:
            self._ended = True
            return None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise _stopped() from None
        except Exception as error:  # noqa: BLE001 - each becomes a `TaskError`
            # Asked of the timeout itself: Ray may turn its cancellation into another error.
            if timeout is not None and timeout.expired():
                raise await self._too_late(watched) from None
            found = await self._translated(error)
            # Ray gives an error of a replica a second class of its own, which cannot be copied.
            raise found from (None if isinstance(error, TaskError) else error)

    def _begin(self) -> None:
        call = self._call
        self._known.again()
        if call.images:
            # Never awaited here: the replica gets a pointer to the tensors.
            self._prepared = call.preprocessor.remote(call.deployment, call.task, call.images)
        verifies = {} if call.claim is None else {"claim": call.claim}
        self._messages = call.handle.remote(
            call.task,
            self._prepared,
            call.caller,
            streamed=call.streamed,
            known=self._known.token_ids(),
            **verifies,
        )

    async def _translated(self, error: Exception) -> TaskError:
        """The error for the client, for an error of the call."""
        if isinstance(error, DeploymentUnavailableError):
            return await self._deployments.unavailable(self._call.deployment)
        found = as_task_error(error)
        return _stopped() if isinstance(found, Cancelled) and not _is_cancelled() else found

    async def _too_late(self, watched: bool) -> TaskError:
        """Why waiting was given up: for the deadline, or for a replica that was silent."""
        if watched:
            self.silent_replica = self._replica
            return EngineStopped(
                f"the replica sent no message for {self._limits.stall_s:g} seconds",
                retry_after_s=RETRY_AFTER_S,
            )
        begun = self._replica is not None
        why_not = "" if begun else await self._deployments.why_not(self._call.deployment)
        return RequestTimeout(
            f"the task did not end within {self._limits.timeout_s:g} seconds{why_not}"
        )


def _is_cancelled() -> bool:
    """Whether this coroutine was cancelled; if not, Ray has cancelled the call by itself."""
    running = asyncio.current_task()
    return running is None or running.cancelling() > 0


def _stopped() -> ProcessLost:
    message = "the replica was stopped before the task had ended"
    return ProcessLost(message, retry_after_s=RETRY_AFTER_S)


def _cancel(call: Any) -> None:
    """Cancel a call that still runs. Ray raises here what the call has failed with already."""
    if call is not None:
        with suppress(Exception):
            call.cancel()
