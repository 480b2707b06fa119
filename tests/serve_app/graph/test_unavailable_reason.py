"""Why a model does not run: Ray's message as one sentence, also as a real server reports it."""

from __future__ import annotations

import asyncio
import threading
import traceback

import pytest

from schema import ModelDownloadError, TaskError
from serve_app.graph.unavailable_reason import MAX_CHARACTERS, Reasons, reason

SECRET = "hf_secret in /home/somebody"


def _failed(error: Exception) -> str:
    """As Serve's controller reports it: the replica's error, within what Ray raised for it."""
    try:
        try:
            raise error
        except type(error):
            raise RuntimeError(traceback.format_exc()) from None
    except RuntimeError:
        ours = traceback.format_exc()
    return f"A replica failed to start with exception. Retrying 2 more time(s). Error:\n{ours}"


def test_only_the_message_of_our_own_error_is_reported() -> None:
    try:
        raise OSError(SECRET)
    except OSError as cause:
        try:
            raise ModelDownloadError("the hub did not deliver 'org/a'") from cause
        except TaskError as error:
            told = _failed(error)
    assert SECRET in told
    assert reason("UPDATING", told) == "the hub did not deliver 'org/a'"
    said = reason("DEPLOY_FAILED", _failed(ModelDownloadError("x" * 5000)))
    assert said is not None
    assert len(said) == MAX_CHARACTERS


def test_only_the_class_of_another_error_is_reported() -> None:
    said = reason("DEPLOY_FAILED", _failed(ValueError(SECRET)))
    assert said == "its replica failed to start with ValueError; the server's log says more"
    assert (
        reason("DEPLOY_FAILED", f"anything {SECRET}") == "it has failed; the server's log says more"
    )


@pytest.mark.parametrize("status", ["HEALTHY", "UPDATING", "UPSCALING"])
def test_a_deployment_that_runs_or_starts_has_no_reason(status: str) -> None:
    assert reason(status, "") is None
    assert reason(status, "Upscaling from 1 to 2 replicas.") is None


@pytest.mark.parametrize(
    ("required", "free", "told"),
    [
        (
            '{"CPU": 0.1, "GPU": 1.0}',
            '{"CPU": 1.9}',
            "CPU 0.1, GPU 1; free in the whole cluster: GPU 0",
        ),
        ('{"CPU": 0.1, "GPU": 0.5}', '{"CPU": 0.2, "GPU": 0.7}', "CPU 0.1, GPU 0.5"),  # nowhere
        ('[{"CPU": 0.1, "GPU": 1}, {"CPU": 0.1, "GPU": 1}]', "{}", "CPU 0.2, GPU 2"),
    ],
)
def test_missing_resources(required: str, free: str, told: str) -> None:
    said = reason(
        "UPDATING",
        "Deployment 'a' in application 'b' has 1 replicas that have taken more than 30s to be "
        "scheduled. This may be due to waiting for the cluster to auto-scale or for a runtime "
        f"environment to be installed. Resources required for each replica: {required}, total "
        f"resources available: {free}. Use `ray status` for more details.",
    )
    assert said == f"a replica waits for a machine that has free: {told}"


async def test_under_load_the_controller_is_asked_once() -> None:
    asked = []

    def ask() -> dict[str, str]:
        asked.append(1)
        return {"Model:a": "no"}

    reasons = Reasons(ask)
    assert await asyncio.gather(*(reasons.all() for _ in range(50))) == [{"Model:a": "no"}] * 50
    assert await reasons.all() == {"Model:a": "no"}
    assert len(asked) == 1


async def test_the_wait_for_the_controller_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.graph.unavailable_reason.TIMEOUT_S", 0.01)
    monkeypatch.setattr("serve_app.graph.unavailable_reason.KEPT_S", 0.0)
    answers, asked = threading.Event(), []

    def ask() -> dict[str, str]:
        asked.append(1)
        answers.wait()
        return {"Model:a": "no"}

    reasons = Reasons(ask)
    assert await reasons.all() == {}
    assert await reasons.all() == {}
    assert len(asked) == 1  # and it is not asked again meanwhile
    answers.set()
    monkeypatch.setattr("serve_app.graph.unavailable_reason.TIMEOUT_S", 60.0)
    assert await reasons.all() == {"Model:a": "no"}
