"""Why a model does not run: Ray's words as one sentence, and what a real server tells with it."""

from __future__ import annotations

import traceback

import pytest

from schema import ModelDownloadError, TaskError
from serve_app.reasons import MAX_CHARACTERS, reason

SECRET = "hf_secret in /home/somebody"


def _failed(error: Exception) -> str:
    """As Serve's controller tells it: what the replica raised, within what Ray raised for it."""
    try:
        try:
            raise error
        except type(error):
            raise RuntimeError(traceback.format_exc()) from None
    except RuntimeError:
        ours = traceback.format_exc()
    return f"A replica failed to start with exception. Retrying 2 more time(s). Error:\n{ours}"


def test_an_error_of_ours_is_told_and_nothing_around_it() -> None:
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


def test_of_another_error_only_its_kind_is_told() -> None:
    said = reason("DEPLOY_FAILED", _failed(ValueError(SECRET)))
    assert said == "its replica failed to start with ValueError; the server's log says more"
    assert (
        reason("DEPLOY_FAILED", f"anything {SECRET}") == "it has failed; the server's log says more"
    )


@pytest.mark.parametrize("status", ["HEALTHY", "UPDATING", "UPSCALING"])
def test_of_one_that_runs_or_starts_there_is_nothing_to_tell(status: str) -> None:
    assert reason(status, "") is None
    assert reason(status, "Upscaling from 1 to 2 replicas.") is None


def test_bundles_for_which_there_is_no_room() -> None:
    said = reason(
        "UPDATING",
        "Deployment 'a' in application 'b' has 1 replicas that have taken more than 30s to be "
        'scheduled. Resources required for each replica: [{"CPU": 0.1, "GPU": 1}, {"CPU": 0.1, '
        '"GPU": 1}], total resources available: {"CPU": 3, "GPU": 1}. Use `ray status` for more '
        "details.",
    )
    wanted = "a replica waits for a machine that has free: CPU 0.2, GPU 2"
    assert said == f"{wanted}; the whole cluster has GPU 1"
