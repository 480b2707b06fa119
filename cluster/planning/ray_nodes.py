"""The nodes of a running Ray cluster, for the planner and the checks."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

CONNECT_S = 5.0
_TYPE = "accelerator_type:"


@dataclass(frozen=True)
class RayNode:
    """A node as Ray counts it; ``accelerator_type`` is None for a node without GPUs."""

    name: str
    num_gpus: float
    accelerator_type: str | None


def running_nodes(address: str) -> list[RayNode]:
    """The nodes of the cluster at ``address`` ("auto": the one that runs on this machine).

    Connects for a moment and starts nothing.

    Raises:
        ConnectionError: there is no cluster, or it refuses the connection; the message says why.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        # Ray itself waits for minutes for a cluster that is not there.
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        with _connected(address):
            return nodes_of(ray.nodes())
    except (RayError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"Ray cluster {address}: {error}") from error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def nodes_of(nodes: Sequence[Mapping[str, Any]]) -> list[RayNode]:
    """The nodes of `ray.nodes` that are alive, in the order of their names."""
    found = []
    for node in nodes:
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        types = sorted(name.removeprefix(_TYPE) for name in resources if name.startswith(_TYPE))
        gpus = float(resources.get("GPU", 0.0))
        found.append(
            RayNode(node["NodeManagerAddress"], gpus, types[0] if types and gpus else None)
        )
    return sorted(found, key=lambda node: node.name)
