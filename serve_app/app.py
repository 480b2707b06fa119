"""The graph, built from the arguments in ``serve_config.yaml``."""

# No `from __future__ import annotations` here: Ray Serve parses a builder's arguments only if the
# annotation of its parameter is the class itself and not a string.

import logging
from collections.abc import Sequence
from typing import Any, Literal

import ray
from ray import serve
from ray.serve import Application

from serve_app.config.app_args import AppArgs, DeploymentArgs, ModelArgs, PoolArgs
from serve_app.config.ray_options import (
    AUTOSCALING,
    HEALTH,
    INGRESS_MAX_QUEUED,
    INGRESS_SPARE,
    MAX_QUEUED,
    NO_GPU,
    NUM_CPUS,
    POOL_HEALTH_TIMEOUT_S,
    PREFIX_ROUTER,
    PREPROCESSOR_MAX_ONGOING,
    SESSION_ROUTER,
    SURGE,
)
from serve_app.http.ingress import Ingress
from serve_app.http.middleware.admission import SENDING_S
from serve_app.replicas.image_replica import PreprocessorReplica
from serve_app.replicas.model_replica import ModelReplica
from serve_app.replicas.pool_replica import PoolReplica

logger = logging.getLogger("ray.serve")

Device = Literal["cpu", "cuda"]


def build(args: AppArgs) -> Application:
    """The application builder that ``serve_config.yaml`` names.

    Ray Serve runs it inside the cluster, so it sees the cluster's GPUs.

    Raises:
        RuntimeError: it runs outside a cluster (``serve run serve_app.app:build key=value``).
    """
    if not ray.is_initialized():
        raise RuntimeError("run it by its configuration file: serve run serve_config.yaml")
    return graph(args, gpus=ray.cluster_resources().get("GPU", 0.0))


def graph(args: AppArgs, gpus: float) -> Application:
    """The graph for a cluster with this many GPUs."""
    models = {}
    for owner, device in zip(args.deployments, place(args.deployments, gpus), strict=True):
        logger.info("%s runs on %s", owner.deployment, device)
        replica = PoolReplica if isinstance(owner, PoolArgs) else ModelReplica
        options = _model_options(owner, device) | _draining(args.limits.request_timeout_s)
        deployment = serve.deployment(**options)(replica)
        models[owner.deployment] = deployment.bind(owner, device)
    preprocessor = serve.deployment(
        name="ImagePreprocessor",
        num_replicas=args.preprocessor_replicas,
        max_ongoing_requests=PREPROCESSOR_MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        ray_actor_options={"num_cpus": NUM_CPUS, "runtime_env": NO_GPU},
        **HEALTH,
        **SURGE,
    )(PreprocessorReplica)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=args.ingress_replicas,
        max_ongoing_requests=args.limits.max_in_flight + INGRESS_SPARE,
        max_queued_requests=INGRESS_MAX_QUEUED,
        ray_actor_options={"num_cpus": NUM_CPUS, "runtime_env": NO_GPU},
        **HEALTH,
        **SURGE,
        **_draining(args.limits.body_timeout_s + args.limits.request_timeout_s + SENDING_S),
    )(serve.ingress()(Ingress))
    return ingress.bind(
        args, preprocessor.bind(list(args.models), args.pool, args.image_urls), models
    )


def place(models: Sequence[DeploymentArgs], gpus: float) -> list[Device]:
    """The device of each model, or of the pool; "auto" takes GPUs while there are any left.

    In the operator's order. Each counts with the replicas that are always on (at least one).
    """

    def need(model: DeploymentArgs) -> float:
        return model.gpus_per_replica * max(1, model.min_replicas)

    free = gpus - sum(need(model) for model in models if model.device == "cuda")
    if free < 0:
        logger.warning("models with device: cuda need %g GPUs more than the cluster has", -free)
    devices: list[Device] = []
    for model in models:
        device = model.device
        if device == "auto":
            # Shares like 0.3 do not add up exactly.
            device = "cuda" if need(model) <= free + 1e-9 else "cpu"
            free -= need(model) if device == "cuda" else 0.0
        devices.append(device)
    return devices


def _draining(longest_s: float) -> dict[str, Any]:
    """How a replica stops: it gets no more requests and ends those that it has.

    Ray kills it after ``longest_s``, the time of the longest request.
    """
    return {"graceful_shutdown_timeout_s": longest_s, "graceful_shutdown_wait_loop_s": 0.5}


def _placed_ranks(actor: dict[str, Any], num_ranks: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A replica's actor, and its placement group: a bundle for each rank, all on one machine.

    The replica is rank 0 and starts the other ranks in their bundles (`ranks`). They end with the
    replica, because Serve then removes the group.
    """
    bundle: dict[str, float] = {"CPU": actor["num_cpus"]}
    if "num_gpus" in actor:
        bundle["GPU"] = 1
        actor = actor | {"num_gpus": 1}
    if kind := actor.pop("accelerator_type", None):
        bundle[f"accelerator_type:{kind}"] = 0.001  # as Ray itself asks for a type
    bundles = [bundle] * num_ranks
    return actor, {"placement_group_bundles": bundles, "placement_group_strategy": "STRICT_PACK"}


def _model_options(model: DeploymentArgs, device: Device) -> dict[str, Any]:
    actor: dict[str, Any] = {"num_cpus": NUM_CPUS}
    if device == "cuda":
        actor["num_gpus"] = model.gpus_per_replica
        if model.accelerator_type is not None:
            actor["accelerator_type"] = model.accelerator_type
    else:
        actor["runtime_env"] = NO_GPU
    ranks: dict[str, Any] = {}
    if isinstance(model, ModelArgs) and model.engine_config(device).tensor_parallel:
        actor, ranks = _placed_ranks(actor, model.num_devices(device))
    options: dict[str, Any] = {
        "name": model.deployment,
        "max_ongoing_requests": model.max_ongoing_requests,
        "max_queued_requests": MAX_QUEUED,
        "ray_actor_options": actor,
        **ranks,
        **HEALTH,
    }
    if isinstance(model, PoolArgs):
        options["health_check_timeout_s"] = POOL_HEALTH_TIMEOUT_S
        # Tasks of one model go to one replica; other models may have other replicas.
        options["request_router_config"] = {
            "request_router_class": SESSION_ROUTER,
            "request_router_kwargs": {"num_fallback_replicas": 0},
        }
    else:
        options["request_router_config"] = {"request_router_class": PREFIX_ROUTER}
    if model.min_replicas == model.max_replicas:
        options["num_replicas"] = model.min_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": model.min_replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": model.target_ongoing_requests,
            "upscale_delay_s": model.scale_up_after_s,
            "downscale_delay_s": model.scale_down_after_s,
            "downscale_to_zero_delay_s": model.scale_to_zero_after_s,
            **AUTOSCALING,
        }
    return options
