"""Everything that can go wrong in the graph, as the one kind of error that clients see."""

from __future__ import annotations

import asyncio
import logging
import math

import grpc  # type: ignore[import-untyped]
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)

from schema.errors import (
    BodyTimeout,
    Cancelled,
    EngineStopped,
    InvalidApiKey,
    Overloaded,
    TaskError,
    TaskExecutionError,
)

logger = logging.getLogger("ray.serve")

LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError)
"""What Ray raises when a process, a machine, or an object of one of them has gone."""

BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,  # by a replica that is being stopped
    grpc.StatusCode.INTERNAL,  # the stream was reset
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # a message was too large; again it goes by reference
)
"""How a call in the tuned mode ends when not its task has failed but what carries it. What a
task fails with comes as an ordinary answer."""

RETRY_AFTER_S = 1.0
"""When a client should try again if the error does not say it."""


class NotReady(Overloaded):
    """A model does not run: not yet, for the moment, or because it cannot."""

    code = "not_ready"


class ProcessLost(EngineStopped):
    """A process that worked on the task has gone, or the connection to it. Ray knows it already."""


class Stopping(Overloaded):
    """The server is being stopped: it takes no new request, or a request has not ended in time."""

    code = "server_stopping"


def as_task_error(error: Exception) -> TaskError:
    """The error for the client; a fault of ours is logged with its traceback.

    Ray wraps an exception of a remote call in a class of its own, one layer for each hop.
    """
    cause: BaseException = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    if isinstance(cause, RayServeException) and isinstance(cause.__cause__, LOST):
        cause = cause.__cause__  # the preprocessor died, and with it what the replica waits for
    match cause:
        case TaskError():
            return cause
        case BackPressureError():
            return Overloaded(
                "every replica's queue is full", retry_after_s=cause.retry_after_s or RETRY_AFTER_S
            )
        case _ if isinstance(cause, LOST):
            return ProcessLost(
                "a process that worked on the task has died; send the task again",
                retry_after_s=RETRY_AFTER_S,
            )
        case grpc.aio.AioRpcError() if cause.code() in BROKEN:
            return ProcessLost(
                f"the connection to a process that worked on the task broke ({cause.code().name})",
                retry_after_s=RETRY_AFTER_S,
            )
        case DeploymentUnavailableError():
            return NotReady(
                "a deployment that the task needs is not available", retry_after_s=RETRY_AFTER_S
            )
        case RequestCancelledError() | TaskCancelledError() | asyncio.CancelledError():
            return Cancelled("the task was cancelled")
    logger.error("a task failed", exc_info=error)
    return TaskExecutionError(f"the task failed inside the server: {type(cause).__name__}")


def headers_of(error: TaskError) -> dict[str, str]:
    """The HTTP headers of an error: when to try again (in whole seconds), how to ask."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif error.http_status == Overloaded.http_status:
        headers["retry-after"] = "1"  # a 503 always says when to come back
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, BodyTimeout):
        headers["connection"] = "close"  # the rest of the body may never come
    return headers
