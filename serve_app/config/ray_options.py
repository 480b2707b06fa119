"""Options of Ray Serve that do not depend on ``serve_config.yaml``."""

from __future__ import annotations

from typing import Any

WEB_CHAT = "WebChat"
"""The name of the web chat's deployment."""

NUM_CPUS = 0.1
"""Every deployment asks for a small share of a CPU: they mostly wait (for GPUs, sockets or their
own threads), and Ray would otherwise leave the third deployment on a two-core machine pending."""

NO_GPU = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""The runtime environment of actors without a GPU: Ray does not hide GPUs from them."""

HEALTH: dict[str, Any] = {"health_check_period_s": 1.0, "health_check_timeout_s": 10.0}
"""The controller notices a dead or stuck replica only by this check, a stuck one when three checks
have failed. Ray's default period is 10 s."""

POOL_HEALTH_TIMEOUT_S = 30.0
"""Longer, because the pool asks the processes of its engines before it answers."""

AUTOSCALING: dict[str, Any] = {
    "metrics_interval_s": 1.0,
    "look_back_period_s": 5.0,
    "policy": {"policy_function": "serve_app.replicas.autoscaling_policy:wanted_replicas"},
}
"""Ray's default is to look at the load every 10 s, and a task for a model that is scaled to zero
would wait as long. `metrics_interval_s` is deprecated for two environment variables that this
version of Ray does not use yet."""

SURGE: dict[str, Any] = {"max_surge_percent": 100}
"""For deployments without GPUs: an update starts the new processes before it stops the old ones."""

MAX_QUEUED = 1024
"""Tasks that wait in one ingress for a replica to come up; further ones are refused (503)."""

INGRESS_SPARE = 1024
"""Places beyond `limits.max_in_flight`, for requests that are refused and for health checks."""

INGRESS_MAX_QUEUED = 4096
"""Requests that wait in Ray's proxy for a place; Ray itself refuses further ones, in plain text."""

PREPROCESSOR_MAX_ONGOING = 64
"""Each holds the base64 of one task's images."""

PREFIX_ROUTER = "serve_app.graph.prefix_router:PrefixRouter"
SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
