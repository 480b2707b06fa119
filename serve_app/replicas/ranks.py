"""The other ranks of a model that is split tensor by tensor, in the replica's placement group."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serve_app.replicas.lazy_imports import load_libraries

if TYPE_CHECKING:
    from engine.parallel.launcher import WorkerProcess

_STOP_TIMEOUT_S = 10.0


class _Rank:
    """The actor of a rank: a process in which `follow` is the only call."""

    def follow(self, address: str, rank: int) -> None:
        load_libraries()
        from engine.parallel.worker import follow  # noqa: PLC0415 - see there

        follow(address, rank)


class PlacedRanks:
    """Starts each rank in its bundle of this replica's placement group."""

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        """Called in a replica: the ranks are started in its placement group."""
        self._device = device
        self._group = get_current_placement_group()

    def start(self, address: str, rank: int) -> WorkerProcess:
        """Start an actor, which waits for its device as the replica did."""
        assert self._group is not None  # serve_app.app makes it
        bundle = self._group.bundle_specs[rank]
        # Ray gives the process one GPU, its first. The number of threads, which Ray derives from
        # resources, is passed on, because a rank must compute as rank 0 does.
        variables = {"LOCAL_RANK": "0"}
        if self._device == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        if "OMP_NUM_THREADS" in os.environ:
            variables["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
        actor: Any = (
            ray.remote(_Rank)
            .options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                runtime_env={"env_vars": variables},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=rank
                ),
            )
            .remote()
        )
        return _RankProcess(actor, actor.follow.remote(address, rank))


class _RankProcess:
    def __init__(self, actor: Any, call: Any) -> None:
        self._actor = actor
        self._call = call

    def ended(self) -> str | None:
        done, _ = ray.wait([self._call], timeout=0)
        if not done:
            return None
        try:
            ray.get(self._call)
        except RayError as error:
            return str(error)
        return "its actor has ended"

    def stop(self) -> None:
        with suppress(RayError):
            ray.kill(self._actor)
            ray.wait([self._call], timeout=_STOP_TIMEOUT_S)
