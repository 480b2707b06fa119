"""The process group of the ranks: what their devices exchange while they compute."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.platform.platforms import platform_of
from schema.errors import ModelInvalid

logger = logging.getLogger(__name__)

# How long a rank waits for the others while all are in step. A rank that has ended is noticed at
# once (`engine.parallel.coordinator`); this limit is for one that hangs. While the ranks load, some
# slower than others, torch's own limit of 10 minutes or more holds.
EXCHANGE_TIMEOUT = timedelta(minutes=2)


def check_can_join(device: torch.device) -> None:
    """Raise `ModelInvalid` if this process cannot be a rank on this kind of device."""
    if dist.is_initialized():
        raise ModelInvalid(
            "one process can have one model that is split tensor by tensor: close the other "
            "engine first, or start this one in a process of its own"
        )
    if (problem := platform_of(device).rank_problem()) is not None:
        raise ModelInvalid(problem)


def join_group(store: str, rank: int, num_ranks: int, device: torch.device) -> None:
    """Form the group of this process with the others, which call this too.

    Args:
        store: a file's path, the same for all.
        rank: this process's.
        num_ranks: of all.
        device: this process's.
    """
    dist.init_process_group(
        store=dist.FileStore(store, num_ranks),  # type: ignore[attr-defined]
        rank=rank,
        world_size=num_ranks,
        timeout=EXCHANGE_TIMEOUT,
        **platform_of(device).group_options(device),
    )


def expect_step(model: Any) -> None:
    """From now on the ranks are in step: wait at most `EXCHANGE_TIMEOUT` for each."""
    group = model._mesh_manager.get_mesh("tp").get_group()
    dist.distributed_c10d._set_pg_timeout(EXCHANGE_TIMEOUT, group)


def leave_group() -> None:
    """Leave the group without waiting for the others. Idempotent."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # raised if another rank has ended already
            dist.destroy_process_group()


def abort_group() -> None:
    """End the exchanges that wait for a rank that has ended; called by any thread.

    gloo ends them by itself, as soon as the connection breaks.
    """
    if dist.is_initialized() and dist.get_backend() != dist.Backend.GLOO:
        try:
            dist.distributed_c10d._abort_process_group()
        except RuntimeError:
            logger.exception("the exchange with a lost rank could not be ended")
