"""What many replicas cost Ray's controller: Ray's own code with made-up reports, in one process.

Measured are the decision about a deployment, which the controller makes in every round of its
control loop, the reports of replicas and handles that it is made of, and what the controller sends
to everybody who listens when a replica comes or goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from ray import cloudpickle
from ray.serve._private import autoscaling_metrics_codec
from ray.serve._private.autoscaling_state import (
    DeploymentAutoscalingState,
    _resolve_policy_callable,
)
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentHandleSource,
    DeploymentID,
    DeploymentTargetInfo,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    RunningReplicaInfo,
    TimeStampedValue,
)
from ray.serve._private.utils import compress_metric_report, decompress_metric_report
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig

from benchmarks.capacity.costs import Curve
from benchmarks.capacity.routing_costs import REPLICAS
from serve_app.config.ray_options import AUTOSCALING
from serve_app.replicas.autoscaling_policy import KV_RESERVED

HANDLES = 4
_SECONDS = 0.3
_ID = DeploymentID(name="Model:demo:float32", app_name="default")


def measure_scaling() -> dict[str, Curve]:
    """CPU seconds over the number of replicas.

    ``decision``: with one handle; ``decision_handle``: each further handle; ``replica_report`` and
    ``handle_report``: taking one in; ``handle_made``: making one, which is the ingress's work;
    ``broadcast`` and ``listen``: packing and unpacking the list of replicas.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for number in REPLICAS:
        for name, cost in _costs([ReplicaID(f"r{index:07d}", _ID) for index in range(number)]):
            curves.setdefault(name, []).append((number, cost))
    return dict(curves)


def _costs(ids: list[ReplicaID]) -> Iterator[tuple[str, float]]:
    decision = _decision(ids, handles=1)
    yield "decision", decision
    further = max(0.0, _decision(ids, handles=HANDLES) - decision)
    yield "decision_handle", further / (HANDLES - 1)
    empty, own = _state(ids), compress_metric_report(_replica_report(ids[0]))

    def take_own() -> None:
        empty.record_request_metrics_for_replica(decompress_metric_report(own))

    yield "replica_report", _cpu_seconds(take_own)
    report = _handle_report(ids, "handle")
    yield "handle_made", _cpu_seconds(lambda: autoscaling_metrics_codec.encode(report))
    frame = autoscaling_metrics_codec.encode(report)
    yield "handle_report", _cpu_seconds(lambda: _take(empty, frame))
    told = DeploymentTargetInfo(is_available=True, running_replicas=list(map(_info, ids)))
    yield "broadcast", _cpu_seconds(lambda: cloudpickle.dumps(told))
    packed = cloudpickle.dumps(told)
    yield "listen", _cpu_seconds(lambda: cloudpickle.loads(packed))


def _state(ids: list[ReplicaID]) -> DeploymentAutoscalingState:
    """The controller's view of one deployment, configured as `serve_app.app` configures models."""
    state = DeploymentAutoscalingState(_ID)
    config = AutoscalingConfig(min_replicas=1, max_replicas=2 * len(ids), **AUTOSCALING)
    state._config = config
    state._policy = _apply_autoscaling_config(_resolve_policy_callable(config.policy))
    state._policy_state = {}
    state.update_running_replica_ids(ids)
    return state


def _decision(ids: list[ReplicaID], handles: int) -> float:
    state = _state(ids)
    for replica in ids:
        state.record_request_metrics_for_replica(_replica_report(replica))
    for number in range(handles):
        report = _handle_report(ids, f"handle{number}")
        _take(state, autoscaling_metrics_codec.encode(report))
    return _cpu_seconds(lambda: state.get_decision_num_replicas(len(ids)))


def _take(state: DeploymentAutoscalingState, frame: bytes) -> None:
    flat: Any = autoscaling_metrics_codec.decode_handle_flat(frame)
    flat["timestamp"] = time.time()  # so that it counts as news
    state.record_columnar_metrics_for_handle(flat)


def _series() -> list[TimeStampedValue]:
    """A value each second of the time that is looked back at."""
    seconds = int(AUTOSCALING["look_back_period_s"])
    now = time.time()
    return [TimeStampedValue(now - age, 3.0) for age in range(seconds, 0, -1)]


def _replica_report(replica: ReplicaID) -> ReplicaMetricReport:
    return ReplicaMetricReport(replica, {KV_RESERVED: _series()}, time.time())


def _handle_report(ids: list[ReplicaID], name: str) -> HandleMetricReport:
    return HandleMetricReport(
        deployment_id=_ID,
        handle_id=name,
        actor_id="a" * 32,
        handle_source=DeploymentHandleSource.REPLICA,
        queued_requests=_series(),
        metrics={RUNNING_REQUESTS_KEY: {one.to_full_id_str(): _series() for one in ids}},
        timestamp=time.time(),
    )


def _info(replica: ReplicaID) -> RunningReplicaInfo:
    return RunningReplicaInfo(
        replica_id=replica,
        node_id="n" * 56,
        node_ip="10.0.0.1",
        availability_zone=None,
        actor_name=f"SERVE_REPLICA::{replica.to_full_id_str()}",
        max_ongoing_requests=4096,
    )


def _cpu_seconds(call: Callable[[], Any]) -> float:
    """Of one call, from as many as fit in a moment."""
    call()
    began, calls, spent = time.process_time(), 0, 0.0
    while spent < _SECONDS:
        call()
        calls += 1
        spent = time.process_time() - began
    return spent / calls
