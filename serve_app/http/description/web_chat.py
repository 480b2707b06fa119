"""Where the web chat is, which is an application of its own: Serve's controller knows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from serve_app.config.ray_options import WEB_CHAT

logger = logging.getLogger("ray.serve")

KEPT_S = 10.0
"""An answer is kept for so long, so that many requests do not mean many calls to the controller."""
TIMEOUT_S = 1.5


def _ask() -> Mapping[str, Any]:
    """The state of Serve's applications by name; empty where there is no controller. It blocks."""
    if not ray.is_initialized():
        return {}
    try:
        client = _get_global_client(raise_if_no_controller_running=False)
        details = client.get_serve_details() if client is not None else {}
    except (RayServeException, ray.exceptions.RayError):
        logger.exception("Serve's controller does not say which applications it has")
        return {}
    applications: Mapping[str, Any] = details.get("applications", {})
    return applications


class WebChat:
    """The address of the web chat on this server. Belongs to an event loop."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]] = _ask) -> None:
        self._ask = ask
        self._asked: asyncio.Task[Mapping[str, Any]] | None = None
        self._asked_at = 0.0

    async def prefix(self) -> str | None:
        """Its path, such as ``/ui``; None if it is not on, or not known in time."""
        now = asyncio.get_running_loop().time()
        if self._asked is None or (self._asked.done() and now >= self._asked_at + KEPT_S):
            self._asked_at = now
            self._asked = asyncio.create_task(asyncio.to_thread(self._ask))
        try:
            # Shielded: others wait for the same answer.
            applications = await asyncio.wait_for(asyncio.shield(self._asked), TIMEOUT_S)
        except TimeoutError:
            return None
        for application in applications.values():
            if WEB_CHAT in application.get("deployments", {}):
                prefix: str | None = application.get("route_prefix")
                return prefix
        return None
