"""The names of this process in the graph, and the request that it works on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.context import _get_serve_request_context, _serve_request_context
from ray.serve.exceptions import RayServeException


def identity() -> str:
    """The name by which routers know this replica; empty in a process of the pool."""
    try:
        return serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return ""


def actor_name() -> str:
    """The name of this replica's actor; empty outside a cluster."""
    try:
        name: str = serve.get_replica_context().replica_id.to_full_id_str()
    except RayServeException:
        return ""
    return name


def request_id() -> str:
    """The id of the request that is being answered, as Ray Serve has it; elsewhere empty."""
    found: str = _get_serve_request_context().request_id
    return found


def call_as_another_request() -> None:
    """From here on, in this context, Ray takes calls for those of another request.

    Its routers know a call that waits for a replica by the request that it belongs to: two calls
    of one request at the same time would hang. The id in log lines stays.
    """
    own: Any = replace(_get_serve_request_context(), _internal_request_id="")
    _serve_request_context.set(own)
