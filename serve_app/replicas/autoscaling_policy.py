"""How many replicas a model needs: by its tasks, and by how much of their KV caches is reserved.

The number of tasks alone is not enough: a few long tasks fill a replica's cache, and the next one
waits although the number of tasks looks small.
"""

# Ray pickles this module by value into its controller: it imports nothing of this project.

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext

KV_RESERVED = "kv_reserved"
"""What a replica reports: the share of its KV cache that is reserved for running tasks, 0 to 1."""

FULL = 0.8
"""The share that one replica should have reserved at most."""


def wanted_replicas(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Ray's autoscaling policy; it rounds up, bounds and delays what this returns.

    Both numbers are proportional to the load. What the replicas report is averaged over the last
    seconds.
    """
    if context.current_num_replicas == 0:
        return context.target_num_replicas, {}  # Ray itself starts the first one
    assert context.config is not None  # Ray has one for every deployment that scales
    config: AutoscalingConfig = context.config
    by_tasks = context.total_num_requests / config.get_target_ongoing_requests()
    reserved = (context.aggregated_metrics or {}).get(KV_RESERVED, {})
    return max(by_tasks, sum(reserved.values()) / FULL), {}
