"""Models on demand from a hub: a real server, and a hub on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from engine import Engine, EngineConfig
from schema import Task
from tests.engine.hub import COMMIT, serve_hub
from tests.engine.tiny_models import save_tiny_model
from tests.serve_app.conftest import running_server
from tests.serve_app.tasks import answer, error, text_task

ENGINE: dict[str, Any] = {"kv_cache_tokens": 2048, "prefill_chunk": 16, "threads": 1}


def test_a_model_of_the_hub_and_those_that_it_does_not_give(tmp_path: Path) -> None:
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
    application = {"import_path": "serve_app.app:build", "args": {"pool": pool}}
    config = {"applications": [{"name": "default", "route_prefix": "/", **application}]}
    with serve_hub() as hub:
        # The last one is also a directory of the repository, where the server runs.
        hub.repositories = {"org/good": model, "org/gated": model, "demo/model": model}
        hub.access["org/gated"] = "gated"
        environment = {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
        }
        with (
            running_server(config, tmp_path, environment) as (address, _),
            httpx.Client(base_url=address, timeout=200) as client,
        ):
            task = text_task(model="org/good", dtype="float32", seed=3)
            task["generation_config"] = {"max_new_tokens": 12, "do_sample": True}
            first = answer(client.post("/v1/tasks", json=task))
            (entry,) = client.get("/v1/models").json()["data"]
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
