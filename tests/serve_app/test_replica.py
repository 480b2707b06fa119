"""A replica whose model cannot be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schema import ModelInvalid, Task
from serve_app.config import ModelArgs
from serve_app.replica import ModelReplica


def model(directory: Path, **fields: Any) -> ModelArgs:
    return ModelArgs.model_validate({"id": "broken", "source": str(directory), **fields})


async def test_started_by_a_task_it_tells_the_reason(tmp_path: Path) -> None:
    """Its client would otherwise wait for as long as Ray tries to start it."""
    replica = ModelReplica(model(tmp_path, min_replicas=0), "cpu")
    task = Task.from_fields(model="broken", messages=[{"role": "user", "content": "hi"}])
    for call in (replica.run, replica.stream):
        with pytest.raises(ModelInvalid, match="broken"):
            async for _ in call(task, None):
                pass
    status = await replica.status()
    assert status["tasks"]["failed"] == 2
    assert status["error"]["code"] == "model_not_found"
    await replica.check_health()


def test_always_on_it_fails_its_deployment(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="broken"):
        ModelReplica(model(tmp_path, min_replicas=1), "cpu")
