"""What Ray's controller costs with real replicas that do nothing; needs a Ray of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.handle import DeploymentHandle

from benchmarks.capacity.cpu import Spent, read
from benchmarks.capacity.pictures import measure_store
from benchmarks.engine.report import say
from serve_app.app import AUTOSCALING, HEALTH
from serve_app.replicas.autoscaling_policy import KV_RESERVED

_FEW, _MANY = 1, 14
_CASES = ((_FEW, False), (_MANY, False), (_MANY, True))
_SMALL = {"num_cpus": 0.001}
_WINDOW_S = 8.0
_SETTLE_S = 2.0
_CALLS = 500


class Tiny:
    """In the place of a model's replica: everything that the controller asks of one."""

    async def status(self) -> dict[str, Any]:
        """What is broadcast at ``GET /health``."""
        return {"replica": "tiny", "tasks": {}, "load": {}, "card": {}}

    async def check_health(self) -> None:
        """Called by the controller."""

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray every second where the deployment scales."""
        return {KV_RESERVED: 0.0}


class Front:
    """In the place of the ingress: holds the handle."""

    def __init__(self, tiny: DeploymentHandle[Any]) -> None:
        self._tiny = tiny

    async def ask(self, times: int) -> float:
        """Ask all replicas for their status as often; CPU seconds of this process for one time."""
        began = time.process_time()
        for _ in range(times):
            await self._tiny.broadcast("status").results_async(timeout_s=10)
        return (time.process_time() - began) / times


def measure_control() -> dict[str, Any]:
    """The controller's CPU seconds a second with few and many replicas, and other costs.

    ``points``: whether the deployment may scale, which has its replicas and handles report, changes
    nothing else, so that it costs no restart.
    """
    found: dict[str, Any] = {"points": []}
    with _ray():
        found["store"] = measure_store()
        for replicas, scaling in _CASES:
            front = serve.run(_application(replicas, scaling=scaling), route_prefix=None)
            front.ask.remote(3).result()
            time.sleep(_SETTLE_S)
            root = psutil.Process()
            first = read(root)
            time.sleep(_WINDOW_S)
            spent = Spent.between(first, read(root))
            point: dict[str, Any] = {"replicas": replicas, "scaling": scaling}
            parts = ("controller", "gcs", "raylet")
            point |= {part: spent.cpu.get(part, 0.0) / spent.seconds for part in parts}
            found["points"].append(point | {"health_asked_s": front.ask.remote(20).result()})
            say(str(found["points"][-1]))
        found["probe"] = asyncio.run(_probe())
    return found


@contextmanager
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location=ProxyLocation.Disabled)
        yield
        serve.shutdown()
    finally:
        ray.shutdown()


def _application(number: int, *, scaling: bool) -> serve.Application:
    options: dict[str, Any] = {"name": "Tiny", "ray_actor_options": _SMALL, **HEALTH}
    options |= {"graceful_shutdown_timeout_s": 1.0}
    if scaling:
        between = {"min_replicas": number, "max_replicas": number + 1}
        options["autoscaling_config"] = between | {"initial_replicas": number} | AUTOSCALING
    else:
        options["num_replicas"] = number
    tiny = serve.deployment(**options)(Tiny).bind()
    front = serve.deployment(name="Front", ray_actor_options=_SMALL, **HEALTH)(Front)
    application: serve.Application = front.bind(tiny)
    return application


async def _probe() -> dict[str, float]:
    """What one message costs that asks a replica for the length of its queue, on both sides."""
    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    name = next(actor["name"] for actor in actors if "#Tiny#" in actor["name"])
    replica: Any = ray.get_actor(name, namespace="serve")
    await replica.get_num_ongoing_requests.remote()
    root, began = psutil.Process(), time.process_time()
    first = read(root)
    for _ in range(_CALLS):
        await replica.get_num_ongoing_requests.remote()
    asking = (time.process_time() - began) / _CALLS
    return {"asking": asking, "asked": Spent.between(first, read(root)).cpu["tiny"] / _CALLS}
