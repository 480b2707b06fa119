"""A Ray cluster of several nodes on this machine, whose GPUs are simulated.

Ray places by what nodes declare and never looks for the card. The graph is the real one, with
replicas on GPUs (``device: cuda``); only the engines in them compute on the CPU.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

import serve_app.app
from benchmarks.harness.server import free_port
from serve_app.config.app_args import AppArgs, ModelArgs
from serve_app.replicas.model_replica import ModelReplica

WAIT_S = 120.0


class CpuReplica(ModelReplica):
    """A replica that Ray places on a GPU, whose engine computes on the CPU."""

    def __init__(self, args: ModelArgs, device: Literal["cpu", "cuda"]) -> None:
        assert device == "cuda"
        super().__init__(args, "cpu")


@dataclass(frozen=True)
class Simulated:
    """A server on such a cluster. ``nodes`` are the Ray nodes that have GPUs, by their names."""

    address: str
    cluster: Cluster
    nodes: dict[str, Any]

    def deploy(self, args: Mapping[str, Any]) -> None:
        """Serve an application with these arguments, in place of the one before; blocks."""
        parsed = AppArgs.model_validate(args)
        serve.run(serve_app.app.graph(parsed, gpus=len(self.nodes)))

    def replicas(self, model: str) -> list[str]:
        """The nodes of a model's replicas that run, by their names."""
        return self.nodes_of(f"Model:{model}:float32")

    def nodes_of(self, deployment: str) -> list[str]:
        """The nodes of a deployment's replicas that run, by their names; "?" is the head."""
        names = {node.node_id: name for name, node in self.nodes.items()}
        return [names.get(replica["node_id"], "?") for replica in self._running(deployment)]

    def processes(self, model: str) -> set[int]:
        """The processes of a model's replicas that run."""
        return {replica["pid"] for replica in self._running(f"Model:{model}:float32")}

    def _running(self, deployment: str) -> list[Any]:
        client = _get_global_client()
        assert client is not None
        deployments = client.get_serve_details()["applications"]["default"]["deployments"]
        replicas = deployments[deployment]["replicas"]
        return [replica for replica in replicas if replica["state"] == "RUNNING"]

    async def wait_for(self, what: str, reached: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + WAIT_S
        while not await asyncio.to_thread(reached):
            assert time.monotonic() < deadline, f"in {WAIT_S:g} s it did not come to {what}"
            await asyncio.sleep(0.5)

    def lose(self, name: str) -> None:
        """Stop a node, as when its power fails."""
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)


@contextmanager
def simulated(gpus: Mapping[str, str]) -> Iterator[Simulated]:
    """A head and a node with one GPU for each item: its name, and the type of its GPU."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve_app.app, "ModelReplica", CpuReplica)
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 4, "include_dashboard": False},
        )
        try:
            nodes = {
                name: cluster.add_node(
                    wait=False,
                    num_cpus=1,
                    num_gpus=1,
                    resources={f"accelerator_type:{kind}": 1},
                )
                for name, kind in gpus.items()
            }
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, log_to_driver=False)
            # One proxy: those of other nodes would want the same port of the same machine.
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            yield Simulated(f"http://127.0.0.1:{port}", cluster, nodes)
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


@dataclass
class Load:
    """Clients that stream one task after another until they are stopped."""

    texts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    open: int = 0


async def stream(http: httpx.AsyncClient, task: Mapping[str, Any]) -> str:
    """The text of a streamed answer; an error in it, or an end too early, is a failed assertion."""
    text, ended = "", False
    async with http.stream("POST", "/v1/tasks?stream=true", json=task) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "choices" in event, event
                text += event["choices"][0]["delta"]["content"]
            elif line:
                ended = line == "data: [DONE]"
                assert ended, line
    assert ended, "the stream broke off"
    return text


@asynccontextmanager
async def load(address: str, task: Mapping[str, Any], clients: int) -> AsyncIterator[Load]:
    """Clients that stream the task while the body runs; waits for their last answers."""
    found, stopping = Load(), asyncio.Event()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=WAIT_S, limits=limits) as http:

        async def client() -> None:
            while not stopping.is_set():
                found.open += 1
                try:
                    found.texts.append(await stream(http, task))
                except (AssertionError, httpx.HTTPError) as error:
                    found.errors.append(repr(error))
                    await asyncio.sleep(0.5)
                finally:
                    found.open -= 1

        running = [asyncio.create_task(client()) for _ in range(clients)]
        try:
            yield found
        finally:
            stopping.set()
            await asyncio.gather(*running)
