"""The state of the graph's model deployments: which of them run, and why others do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.config.app_args import AppArgs
from serve_app.graph.model_list import listing
from serve_app.graph.unavailable_reason import Reasons
from serve_app.protocol.failures import RETRY_AFTER_S, NotReady

STATUS_TIMEOUT_S = 2.0


class Deployments:
    """Asks replicas and Serve's controller. ``handles`` are by reference, by deployment."""

    def __init__(self, args: AppArgs, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._args = args
        self._handles = handles
        self._created = int(time.time())
        self._reasons = Reasons()

    async def models(self) -> list[dict[str, Any]]:
        """Every configured model, and those loaded on demand: see `serve_app.graph.model_list`."""
        statuses, reasons = await asyncio.gather(self._statuses(), self._reasons.all())
        return listing(self._args, statuses, reasons, created=self._created)

    async def running(self) -> dict[str, int]:
        """How many replicas of each deployment answer.

        Raises:
            NotReady: a deployment that is always on has no such replica; with the known reasons.
        """
        statuses = await self._statuses()
        always_on = [owner.deployment for owner in self._args.deployments if owner.min_replicas]
        if missing := [name for name in always_on if not statuses[name]]:
            reasons = await self._reasons.all()
            said = [f"{name}: {reasons[name]}" for name in missing if name in reasons]
            if silent := [name for name in missing if name not in reasons]:
                said.append(f"no replica of {', '.join(silent)} answers yet")
            raise NotReady("; ".join(said))
        return {name: len(replicas) for name, replicas in statuses.items()}

    async def why_not(self, deployment: str) -> str:
        """The end of a sentence about a deployment that does not run: the reason, or ""."""
        reason = (await self._reasons.all()).get(deployment)
        return "" if reason is None else f": {reason}"

    async def unavailable(self, deployment: str) -> NotReady:
        """The error of a task whose model cannot be started."""
        message = f"the model's deployment is not available{await self.why_not(deployment)}"
        return NotReady(message, retry_after_s=RETRY_AFTER_S)

    async def _statuses(self) -> dict[str, list[dict[str, Any]]]:
        """What the running replicas of each deployment report.

        Only replicas that run are asked: a deployment that is scaled to zero stays there.
        """
        names = [owner.deployment for owner in self._args.deployments]
        return dict(zip(names, await asyncio.gather(*map(self._status, names)), strict=True))

    async def _status(self, deployment: str) -> list[dict[str, Any]]:
        response = self._handles[deployment].broadcast("status")
        try:
            answers = await response.results_async(
                timeout_s=STATUS_TIMEOUT_S, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            return []  # no replica runs, or none answers
        return [answer for answer in answers if isinstance(answer, dict)]
