"""How many replicas a model needs."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.app import _model_options
from serve_app.config.app_args import ModelArgs
from serve_app.replicas.autoscaling_policy import KV_RESERVED, wanted_replicas

DEPLOYMENT = DeploymentID("Model:a", "default")
shares = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def context(tasks: float, reserved: list[float], target: int = 4) -> AutoscalingContext:
    """What Ray passes to a policy for a deployment whose replicas have reserved so much."""
    replicas = [ReplicaID(str(number), DEPLOYMENT) for number in range(len(reserved))]
    return AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name=DEPLOYMENT.name,
        app_name=DEPLOYMENT.app_name,
        current_num_replicas=len(reserved),
        target_num_replicas=len(reserved),
        running_replicas=replicas,
        total_num_requests=tasks,
        total_queued_requests=0,
        aggregated_metrics={KV_RESERVED: dict(zip(replicas, reserved, strict=True))},
        raw_metrics=None,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=AutoscalingConfig(max_replicas=8, target_ongoing_requests=target),
    )


def wanted(tasks: float, reserved: list[float]) -> int:
    """In whole replicas, as Ray rounds."""
    return math.ceil(wanted_replicas(context(tasks, reserved))[0])


def test_tasks_and_memory_both_count() -> None:
    assert wanted(0, [0.0, 0.0]) == 0
    assert wanted(4, [0.1]) == 1
    assert wanted(5, [0.1]) == 2
    assert wanted(1, [0.95]) == 2  # one task that fills a cache: the next one would wait
    assert wanted(2, [0.95, 0.0]) == 2
    assert wanted(4, [0.95, 0.95, 0.95, 0.95]) == 5


@given(st.integers(0, 40), shares)
def test_more_load_never_needs_fewer_replicas(tasks: int, reserved: list[float]) -> None:
    less = wanted(tasks, reserved)
    assert wanted(tasks + 1, reserved) >= less
    assert wanted(tasks, [*reserved[1:], 1.0]) >= less
    assert wanted(tasks, reserved) >= math.ceil(tasks / 4)


def test_rays_options_are_the_operators() -> None:
    fields = {"id": "a", "min_replicas": 0, "max_replicas": 4, "scale_to_zero_after_s": 7.0}
    made = _model_options(ModelArgs.model_validate(fields), "cpu")["autoscaling_config"]
    config = AutoscalingConfig(**made)
    assert config.policy.get_policy()(context(5, [0.1]))[0] > 1  # as the controller unpickles it
    assert (config.upscale_delay_s, config.downscale_delay_s) == (5.0, 300.0)
    assert config.downscale_to_zero_delay_s == 7.0
