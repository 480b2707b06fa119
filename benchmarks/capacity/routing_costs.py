"""The router's cost per decision: the real code with made-up replicas, of one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import PendingRequest, RunningReplica

from benchmarks.capacity.costs import Curve
from serve_app.graph.ejection import EJECTED
from serve_app.graph.prefix_router import PrefixRouter

REPLICAS = (1, 3, 10, 30, 100, 300, 1000)
_SECONDS = 0.4
_ID = DeploymentID(name="Model:demo:float32", app_name="default")


def measure_choosing() -> dict[str, Curve]:
    """CPU seconds of `PrefixRouter.choose_replicas` over the number of replicas.

    ``plain`` and ``beginning`` are tasks without and with a beginning to be routed by; ``cold`` is
    the first with no replica's queue known, ``suspects`` with a hundredth of them suspected.
    """
    return asyncio.run(_measure())


async def _measure() -> dict[str, Curve]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for number in REPLICAS:
        # They stay ejected for a minute: each number has replicas with names of their own.
        replicas = [_replica(f"{number}-{index}") for index in range(number)]
        for name, session, known, suspects in (
            ("plain", "", True, 0),
            ("beginning", "5f2c" * 8, True, 0),
            ("cold", "", False, 0),
            ("suspects", "", True, number // 100),
        ):
            router = _router()
            if known:
                for index, replica in enumerate(replicas):
                    router.replica_queue_len_cache.update(replica.replica_id, index % 7)
            for replica in replicas[:suspects]:
                EJECTED.add(replica.replica_id.unique_id)
            choose = partial(router.choose_replicas, replicas, _pending(session))
            cost = await _cpu_seconds(choose)
            curves.setdefault(name, []).append((number, cost))
    return dict(curves)


def _router() -> PrefixRouter:
    router = PrefixRouter(
        deployment_id=_ID,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state()
    return router


def _replica(name: str) -> RunningReplica:
    """All that choosing looks at."""
    replica_id = ReplicaID(unique_id=name, deployment_id=_ID)
    return cast(RunningReplica, SimpleNamespace(replica_id=replica_id))


def _pending(session: str) -> PendingRequest:
    return cast(
        PendingRequest,
        SimpleNamespace(
            routing_context=SimpleNamespace(should_backoff=False),
            metadata=SimpleNamespace(session_id=session),
        ),
    )


async def _cpu_seconds(call: Callable[[], Awaitable[Any]]) -> float:
    """Of one call, from as many as fit in a moment."""
    await call()
    began, calls, spent = time.process_time(), 0, 0.0
    while spent < _SECONDS:
        await call()
        calls += 1
        spent = time.process_time() - began
    return spent / calls
