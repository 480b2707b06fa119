"""Every failure in the graph becomes one kind of error."""

import pickle

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

from schema import (
    Cancelled,
    EngineStopped,
    ModelDownloadError,
    Overloaded,
    TaskArgsInvalid,
    TaskError,
    TaskExecutionError,
)
from serve_app.failures import as_task_error, headers_of


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
        (ActorDiedError(), EngineStopped),
        (ActorUnavailableError("gone", b"0" * 16), EngineStopped),
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), Overloaded),
        (_caused(RayServeException("upstream actor died"), ActorDiedError()), EngineStopped),
        (_remote(ObjectLostError("0" * 56, None, "call site")), EngineStopped),
        (_caused(RayServeException("something else"), ValueError()), TaskExecutionError),
        (RequestCancelledError("id"), Cancelled),
        (_remote(ValueError("secret")), TaskExecutionError),
        (ValueError("secret"), TaskExecutionError),
    ],
)
def test_what_clients_are_told(error: Exception, kind: type[TaskError]) -> None:
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
