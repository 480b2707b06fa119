"""Autoscaling, placement, lost nodes and updates, on a cluster with simulated GPUs.

``make test-cluster``: too long for every run of the tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.cluster.simulated import Simulated, load, simulated, stream
from tests.serve_app.tasks import image_task

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

GPUS = {"one": "L4", "two": "H100", "three": "A100", "four": "A100"}
PACKED = ("a", "b", "c")
SAMPLED = {"do_sample": True, "temperature": 100.0, "top_k": 0, "max_new_tokens": 400}


def model(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": name,
        "source": "./demo/model",
        "dtype": "float32",
        "device": "cuda",
        "min_replicas": 0,
        "scale_up_after_s": 1.0,
        "scale_down_after_s": 2.0,
        "engine": {"threads": 1},
    } | fields


def arguments(**engine_of_h: Any) -> dict[str, Any]:
    engine = {"threads": 1} | engine_of_h
    models = [
        model("h", accelerator_type="H100", scale_to_zero_after_s=8.0, engine=engine),
        *(
            model(name, accelerator_type="L4", num_gpus=0.3, scale_to_zero_after_s=8.0)
            for name in PACKED
        ),
        model("scaled", max_replicas=4, target_ongoing_requests=2),
        # One task fills the cache; by the number of tasks alone one replica would do.
        model(
            "full",
            max_replicas=2,
            target_ongoing_requests=100,
            engine={"threads": 1, "kv_cache_tokens": 448},
        ),
    ]
    return {"models": models, "preprocessor_replicas": 4}


def task(name: str) -> dict[str, Any]:
    message = {"role": "user", "content": "Tell me a story."}
    return {"model": name, "messages": [message], "seed": 7, "generation_config": SAMPLED}


@pytest.fixture(scope="module")
def server() -> Iterator[Simulated]:
    with simulated(GPUS) as server:
        server.deploy(arguments())
        yield server


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """The answer without load, kept once known: all models are the same, so there is one."""
    return {}


async def test_models_start_where_they_belong(server: Simulated, answers: dict[str, str]) -> None:
    """By type of GPU, three on one GPU, each started by its first task, which waits for it."""
    async with httpx.AsyncClient(base_url=server.address, timeout=120) as http:
        texts = await asyncio.gather(*(stream(http, task(name)) for name in ("h", *PACKED)))
        assert len(set(texts)) == 1
        assert len(texts[0]) > 100
        answers["quiet"] = texts[0]
        assert server.replicas("h") == ["two"]
        assert [server.replicas(name) for name in PACKED] == [["one"]] * 3
    await server.wait_for("none", lambda: not any(map(server.replicas, ("h", *PACKED))))


async def test_a_full_cache_counts_as_load(server: Simulated, answers: dict[str, str]) -> None:
    async with load(server.address, task("full"), clients=2) as found:
        await server.wait_for("two replicas", lambda: len(server.replicas("full")) == 2)
    assert not found.errors
    assert set(found.texts) == {answers["quiet"]}
    await server.wait_for("none", lambda: not server.replicas("full"))


async def test_one_to_four_a_lost_node_and_none(server: Simulated, answers: dict[str, str]) -> None:
    async with load(server.address, task("scaled"), clients=16) as found:
        await server.wait_for("four replicas", lambda: len(server.replicas("scaled")) == 4)
        assert sorted(server.replicas("scaled")) == sorted(GPUS)
        await asyncio.sleep(3)  # so that all of them have streams
        assert found.open == 16
        await asyncio.to_thread(server.lose, "four")
        before = len(found.texts)
        await server.wait_for("more answers", lambda: len(found.texts) > before + 32)
        assert sorted(server.replicas("scaled")) == ["one", "three", "two"]
    assert not found.errors
    assert set(found.texts) == {answers["quiet"]}
    await server.wait_for("none", lambda: not server.replicas("scaled"))


async def test_a_node_that_prepares_images_is_lost(server: Simulated) -> None:
    """The preprocessor and the pixels that have not been fetched yet are lost with it."""
    about, description = image_task(1, generation_config={"max_new_tokens": 60})
    about["model"] = "scaled"
    async with load(server.address, about, clients=8) as found:
        await server.wait_for("answers", lambda: len(found.texts) > 8)
        prepared = server.nodes_of("ImagePreprocessor")
        lost = next(name for name in prepared if name in server.nodes)
        await asyncio.to_thread(server.lose, lost)
        before = len(found.texts)
        await server.wait_for("more answers", lambda: len(found.texts) > before + 64)
    assert not found.errors
    assert set(found.texts) == {description}


async def test_an_update_drops_no_request(server: Simulated, answers: dict[str, str]) -> None:
    """Ray replaces all replicas; those that stop end their streams first, new tasks wait.

    The update changes the model's fingerprint (and, of this task, no byte), so that a stream that
    was cut off could not be gone on with.
    """
    async with load(server.address, task("h"), clients=4) as found:
        await server.wait_for("answers", lambda: len(found.texts) > 4)
        old = server.processes("h")
        await asyncio.to_thread(server.deploy, arguments(prefill_chunk=64))
        await server.wait_for(
            "a new process", lambda: bool(new := server.processes("h")) and new.isdisjoint(old)
        )
        before = len(found.texts)
        await server.wait_for("answers after it", lambda: len(found.texts) > before + 8)
    assert not found.errors
    assert set(found.texts) == {answers["quiet"]}
