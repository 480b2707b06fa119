"""What the deployments ask of Ray Serve, whatever ``serve_config.yaml`` says."""

from __future__ import annotations

from typing import Any

NUM_CPUS = 0.1
"""Every deployment asks for a sliver of a CPU: they mostly wait (for GPUs, sockets or their own
threads), and Ray would otherwise leave the third deployment on a two-core machine pending."""

NO_GPU = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""The runtime environment of what computes on no GPU: Ray does not hide GPUs from such actors."""

HEALTH: dict[str, Any] = {"health_check_period_s": 1.0, "health_check_timeout_s": 10.0}
"""The controller notices a dead or stuck replica only by this check: a stuck one when three have
failed. Ray's default period is 10 s."""

POOL_HEALTH_TIMEOUT_S = 30.0
"""The pool asks the processes of its engines before it answers."""

AUTOSCALING: dict[str, Any] = {
    "metrics_interval_s": 1.0,
    "look_back_period_s": 5.0,
    "policy": {"policy_function": "serve_app.replicas.autoscaling_policy:wanted_replicas"},
}
"""Ray's defaults look at the load every 10 s, which a task for a model that is scaled to zero
waits. `metrics_interval_s` is deprecated for two environment variables that this Ray does not yet
obey."""

SURGE: dict[str, Any] = {"max_surge_percent": 100}
"""An update starts the new processes of what needs no GPU before it stops the old ones."""

MAX_QUEUED = 1024
"""Tasks that wait in one ingress for a replica to come up; further ones are refused (503)."""

INGRESS_SPARE = 1024
"""Places beyond `limits.max_in_flight`, for requests that are refused and for health checks."""

INGRESS_MAX_QUEUED = 4096
"""Requests that find no place wait in Ray's proxy, so many at most; Ray itself refuses the next
one, in plain text."""

PREPROCESSOR_MAX_ONGOING = 64
"""Each holds the base64 of one task's images."""

PREFIX_ROUTER = "serve_app.graph.prefix_router:PrefixRouter"
SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
