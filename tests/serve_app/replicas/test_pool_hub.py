"""Models from a hub, on demand and always on: a real server, and a hub on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import Engine, EngineConfig
from schema import Task
from serve_app.config.app_args import REPOSITORY
from serve_app.models import main as list_models
from serve_app.status import main as show_status
from tests.engine.loading.hub import COMMIT, serve_hub
from tests.engine.models.tiny_models import save_tiny_model
from tests.serve_app.conftest import running_server
from tests.serve_app.tasks import answer, error, served, text_task

ENGINE: dict[str, Any] = {"kv_cache_tokens": 2048, "prefill_chunk": 16, "threads": 1}


ABSENT = "Model:org--absent: model 'org/absent' does not exist on the hub"


def _only_the_absent_is_missing(health: httpx.Response) -> bool:
    said = health.json()["error"]["message"] if health.status_code == 503 else ""
    return ABSENT in said and "Pool" not in said


def _check_that_the_reason_is_reported(
    client: httpx.Client, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = ABSENT.partition(": ")[2]
    response = client.post("/v1/tasks", json=text_task(model="org/absent"))
    said = error(response, 503)
    assert said["code"] == "not_ready"
    assert reason in said["message"]
    assert "Traceback" not in said["message"]
    assert response.headers["retry-after"]
    assert show_status(["--address", address]) == 3
    assert f"0 of 1 replicas answer: {reason}" in capsys.readouterr().out
    assert list_models(["--address", address]) == 0
    assert f"no replica runs: {reason}" in capsys.readouterr().out


def _first_line_of_the_waiter(config: Path) -> str:
    """What `make serve` prints while it waits."""
    command = [sys.executable, "-m", "serve_app.ready", str(config)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as waiter:
        assert waiter.stdout is not None
        line: str = waiter.stdout.readline()
        waiter.terminate()
    return line


def test_a_model_of_the_hub_and_models_that_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    save_tiny_model("qwen2", model)
    pool = {
        "allow": ["*"],
        "max_memory_gb": 0.01,
        "kv_cache_gb": 0.002,
        "device": "cpu",
        "engine": ENGINE,
    }
    # It can never run, and the server stays up.
    absent = {"id": "org/absent", "device": "cpu", "engine": ENGINE}
    args = {"models": [absent], "pool": pool}
    application = {"import_path": "serve_app.app:build", "args": args}
    config = {"applications": [{"name": "default", "route_prefix": "/", **application}]}
    with serve_hub() as hub:
        # The last one is also a directory of the repository, where the server runs.
        hub.repositories = {"org/good": model, "org/gated": model, "demo/model": model}
        hub.access["org/gated"] = "gated"
        environment = {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
            "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",
        }
        with (
            running_server(config, tmp_path, environment, _only_the_absent_is_missing) as running,
            httpx.Client(base_url=running[0], timeout=200) as client,
        ):
            address, _ = running
            _check_that_the_reason_is_reported(client, address, capsys)
            line = _first_line_of_the_waiter(tmp_path / "config.yaml")
            assert line.startswith(f"not ready: {ABSENT}")
            log = (tmp_path / "server.log").read_text().splitlines()
            # The waiter may have been ended in the midst of its question.
            asked = [line for line in log if "/health" in line and "error=cancelled" not in line]
            assert not [line for line in asked if "error=" in line]
            task = text_task(model="org/good", dtype="float32", seed=3)
            task["generation_config"] = {"max_new_tokens": 12, "do_sample": True}
            first = answer(client.post("/v1/tasks", json=task))
            *_, entry = served(client)
            card = entry["replicas"][0]["card"]
            assert (card["source"], card["revision"]) == ("org/good", COMMIT)
            said = error(client.post("/v1/tasks", json=task | {"model": "org/gated"}), 403)
            assert said["code"] == "model_gated"
            said = error(client.post("/v1/tasks", json=task | {"model": "org/none"}), 404)
            assert "does not exist on the hub" in said["message"]
            same = answer(client.post("/v1/tasks", json=task | {"model": "demo/model"}))
            assert same["choices"] == first["choices"]
            assert hub.downloads["config.json"] == 2
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32", **ENGINE))
    assert engine.run_blocking(Task.from_fields(**task))["choices"] == first["choices"]
    engine.close()
