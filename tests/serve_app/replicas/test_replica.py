"""A replica whose model cannot be loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schema import ModelInvalid, Task, TaskArgsInvalid
from serve_app.config.app_args import ModelArgs
from serve_app.protocol.messages import Alive, Chunk, Message, Started
from serve_app.replicas.model_replica import ModelReplica


def model(directory: Path, **fields: Any) -> ModelArgs:
    return ModelArgs.model_validate({"id": "broken", "source": str(directory), **fields})


async def test_a_replica_started_by_a_task_reports_the_reason(tmp_path: Path) -> None:
    """Its client would otherwise wait for as long as Ray tries to start it."""
    replica = ModelReplica(model(tmp_path, min_replicas=0), "cpu")
    task = Task.from_fields(model="broken", messages=[{"role": "user", "content": "hi"}])
    for streamed in (False, True):
        with pytest.raises(ModelInvalid, match="broken"):
            async for _ in replica.stream(task, None, streamed=streamed):
                pass
    status = await replica.status()
    assert status["tasks"]["failed"] == 2
    assert status["error"]["code"] == "model_not_found"
    await replica.check_health()


async def test_alive_messages_while_an_answer_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that holds its chunks back still has to send `Alive`."""
    monkeypatch.setattr("serve_app.replicas.model_replica.HEARTBEAT_S", 0.05)
    demo = {"id": "demo", "source": "./demo/model", "dtype": "float32"}
    replica = ModelReplica(ModelArgs.model_validate(demo), "cpu")
    task = Task.from_fields(
        model="demo",
        messages=[{"role": "user", "content": "hi"}],
        generation_config={"do_sample": True, "temperature": 100.0, "num_return_sequences": 8},
    )
    *signs, last = [message async for message in replica.stream(task, None, streamed=False)]
    assert isinstance(last, Chunk)
    assert {choice["finish_reason"] for choice in last.chunk["choices"]} <= {"stop", "length"}
    assert len(signs) > 2  # the first is `Started`
    assert isinstance(signs[0], Started)
    assert all(isinstance(sign, Alive) for sign in signs[1:])


@pytest.mark.parametrize("streamed", [False, True])
async def test_how_a_task_ended_whose_caller_left(*, streamed: bool) -> None:
    """An ingress leaves as soon as it has the whole answer, and its call's end is cancelled."""
    demo = {"id": "demo", "source": "./demo/model", "dtype": "float32"}
    replica = ModelReplica(ModelArgs.model_validate(demo), "cpu")
    task = Task.from_fields(model="demo", messages=[{"role": "user", "content": "hi"}])

    async def leave_when(is_time: Callable[[Message], bool]) -> dict[str, int]:
        messages = replica.stream(task, None, streamed=streamed)
        async for message in messages:
            if is_time(message):
                await messages.aclose()
        tasks: dict[str, int] = (await replica.status())["tasks"]
        return {name: count for name, count in tasks.items() if count}

    assert await leave_when(_is_last) == {"finished": 1}
    assert await leave_when(lambda _: True) == {"finished": 1, "cancelled": 1}


def _is_last(message: Message) -> bool:
    """For a task of one answer."""
    return isinstance(message, Chunk) and any(
        choice["finish_reason"] for choice in message.chunk["choices"]
    )


def test_a_replica_that_is_always_on_fails_its_deployment(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="broken"):
        ModelReplica(model(tmp_path, min_replicas=1), "cpu")


def test_the_log_has_no_traceback_of_a_refused_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray Serve logs exceptions of a replica's methods in this way."""
    ModelReplica(model(tmp_path, min_replicas=0), "cpu")
    for raised in (TaskArgsInvalid("too long"), ValueError("a bug")):
        try:
            raise raised
        except type(raised):
            logging.getLogger("ray.serve").exception("Request failed.")
    assert "a bug" in caplog.text
    assert "too long" not in caplog.text
