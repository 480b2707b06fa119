"""Every failure in the graph becomes one kind of error."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

from schema import (
    Cancelled,
    ModelDownloadError,
    Overloaded,
    TaskArgsInvalid,
    TaskError,
    TaskExecutionError,
)
from serve_app.protocol.failures import ProcessLost, as_task_error, headers_of


def _remote(cause: Exception) -> RayTaskError:
    """``cause`` as it arrives from another process."""
    arrived: RayTaskError = pickle.loads(pickle.dumps(RayTaskError("run", "traceback", cause)))
    return arrived


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_a_task_error_survives_two_hops() -> None:
    sent = TaskArgsInvalid("too long", param="messages")
    for arrived in (_remote(sent), _remote(sent).as_instanceof_cause(), _remote(_remote(sent))):
        got = as_task_error(arrived)
        assert type(got) is TaskArgsInvalid
        assert (got.message, got.param) == ("too long", "messages")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ActorDiedError(), ProcessLost),
        (ActorUnavailableError("gone", b"0" * 16), ProcessLost),
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), Overloaded),
        (_caused(RayServeException("upstream actor died"), ActorDiedError()), ProcessLost),
        (_remote(ObjectLostError("0" * 56, None, "call site")), ProcessLost),
        (_caused(RayServeException("something else"), ValueError()), TaskExecutionError),
        (RequestCancelledError("id"), Cancelled),
        (_remote(ValueError("secret")), TaskExecutionError),
        (ValueError("secret"), TaskExecutionError),
    ],
)
def test_errors_for_clients(error: Exception, kind: type[TaskError]) -> None:
    got = as_task_error(error)
    assert type(got) is kind
    assert "secret" not in got.message


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (Overloaded("full", retry_after_s=2.2), {"retry-after": "3"}),
        (Overloaded("full", retry_after_s=0.1), {"retry-after": "1"}),
        (Overloaded("full"), {"retry-after": "1"}),
        (ModelDownloadError("hub", retry_after_s=30), {"retry-after": "30"}),
        (TaskArgsInvalid("wrong"), {}),
    ],
)
def test_retry_after(error: TaskError, headers: dict[str, str]) -> None:
    assert headers_of(error) == headers


# --- gRPC, which carries text in the tuned mode --------------------------------------------------

LIMIT = 1000


async def _said(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"begun"
    if request == b"large":
        yield bytes(2 * LIMIT)
    if request == b"fail":
        raise ValueError("secret")
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (b"stop", ProcessLost),  # the replica has to stop while it works
        (b"large", ProcessLost),  # runs again, by reference
        (b"fail", TaskExecutionError),  # a bug; a task's own errors do not come as a status
    ],
)
async def test_calls_that_break(request_: bytes, kind: type[TaskError]) -> None:
    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(_said)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("r", {"say": method})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.max_receive_message_length", LIMIT)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.unary_stream("/r/say")(request_)
            assert await anext(aiter(call)) == b"begun"
            if request_ == b"stop":
                await server.stop(None)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [piece async for piece in call]
    finally:
        await server.stop(None)
    got = as_task_error(caught.value)
    assert type(got) is kind
    assert "secret" not in got.message
