"""A served model over two processes: a replica and the rank in its placement group.

``make test-cluster``: it needs a server of its own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import yaml

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.conftest import running_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MODEL: dict[str, Any] = {
    "id": "split",
    "source": "./demo/model",
    "dtype": "float32",
    "device": "cpu",
    "engine": {"threads": 1, "num_devices": 2},
}
TASK: dict[str, Any] = {
    "model": "split",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "generation_config": {
        "do_sample": True,
        "temperature": 100.0,
        "top_k": 0,
        "max_new_tokens": 400,
    },
    "seed": 7,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text(encoding="utf-8"))
    config["applications"] = [
        application
        for application in config["applications"]
        if application["import_path"] == "serve_app.app:build"
    ]
    config["applications"][0]["args"] = {"models": [MODEL]}
    with running_server(config, tmp_path_factory.mktemp("server")) as server:
        yield server


def ranks(server: int) -> list[psutil.Process]:
    """The processes of the other ranks, which Ray names after their actor."""
    return [p for p in psutil.Process(server).children(recursive=True) if "_Rank" in name(p)]


def name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_rank_is_lost_during_a_stream(server: tuple[str, int]) -> None:
    """The replica and all of its ranks are replaced, and the stream continues to the same bytes."""
    address, pid = server
    with httpx.Client(base_url=address, timeout=300) as client:
        whole = client.post("/v1/tasks", json=TASK).raise_for_status().json()
        (rank,) = ranks(pid)
        text = ""
        with client.stream("POST", "/v1/tasks?stream=true", json=TASK) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "choices" in event, event
                for choice in event["choices"]:
                    text += choice["delta"].get("content", "")
                if text and rank.is_running():
                    os.kill(rank.pid, signal.SIGKILL)
                    rank.wait(60)
        assert text == whole["choices"][0]["message"]["content"]
        (other,) = ranks(pid)
        assert other.pid != rank.pid
        (model,) = client.get("/v1/models").json()["data"]
        assert "tensor:2" in json.dumps(model)
