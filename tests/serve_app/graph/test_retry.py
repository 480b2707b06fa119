"""When a task runs again, how it is sent, and how one call to a replica ends."""

from __future__ import annotations

from typing import Any

import pytest

from schema import EngineStopped, ModelInvalid, Overloaded, ReplayDiffers, Task, TaskError
from serve_app.graph.ejection import EJECTED
from serve_app.graph.retry import MAX_MESSAGE, RetryPolicy
from serve_app.protocol.failures import ProcessLost

LOST = EngineStopped("gone")
DIED = ProcessLost("gone")
FULL = Overloaded("full")


def policy(num_bytes: int = 100, max_replays: int = 3, **config: Any) -> RetryPolicy:
    messages = [{"role": "user", "content": "hi"}]
    task = Task.from_fields(model="demo", messages=messages, generation_config=config)
    return RetryPolicy(task, num_bytes, max_replays)


def test_a_lost_task_runs_again_at_once_then_after_pauses() -> None:
    retry = policy(max_replays=3)
    assert [retry.pause_after(LOST) for _ in range(4)] == [0.0, 2.0, 4.0, None]
    assert retry.losses == 3


def test_a_task_whose_replica_died_does_not_wait_for_long() -> None:
    """Ray's router waits until there is another one, and no longer."""
    retry = policy(max_replays=6)
    pauses = [retry.pause_after(DIED) for _ in range(7)]
    assert pauses == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, None]


@pytest.mark.parametrize("error", [ModelInvalid("no"), ReplayDiffers("no"), FULL])
def test_other_errors_are_not_retried(error: TaskError) -> None:
    assert policy().pause_after(error) is None


def test_a_task_that_had_a_place_retries_until_it_has_another() -> None:
    retry = policy(max_replays=1)
    assert retry.pause_after(LOST) == 0.0
    assert [retry.pause_after(FULL) for _ in range(5)] == [1.0] * 5
    assert retry.pause_after(LOST) is None


def test_a_silent_replica_is_ejected_even_if_the_task_does_not_run_again() -> None:
    assert policy(max_replays=0).pause_after(LOST, "test_retry: silent") is None
    assert "test_retry: silent" in EJECTED
    assert "test_retry: another" not in EJECTED


def test_a_small_task_is_sent_as_a_message_the_first_time() -> None:
    small = policy(MAX_MESSAGE)
    assert small.transport(with_images=False) == "plain"
    assert small.transport(with_images=True) == "by_reference"
    assert policy(MAX_MESSAGE + 1).transport(with_images=False) == "by_reference"
    assert policy(logprobs=5).transport(with_images=False) == "by_reference"
    for echo, transport in ((False, "plain"), (True, "by_reference")):  # ids become text
        ids = Task.from_fields(model="demo", prompt_token_ids=[1], echo=echo)
        assert RetryPolicy(ids, 100, 3).transport(with_images=False) == transport
    small.pause_after(LOST)
    assert small.transport(with_images=False) == "by_reference"
