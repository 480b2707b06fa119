"""Why a deployment does not run: what Serve's controller knows of it, as one sentence.

The controller keeps a status and a message for each deployment. The message of a replica that could
not be made is a whole traceback. Only the errors of our own tree are written for clients, so of any
other error only the class is shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from schema import errors

logger = logging.getLogger("ray.serve")

KEPT_S = 1.0
"""An answer is kept for so long, so that many refused tasks do not mean many calls to it."""
TIMEOUT_S = 1.5
"""The longest wait for the controller; an error without its reason is better than a late one."""
MAX_CHARACTERS = 400

_OURS = re.compile(r"^\s*schema\.errors\.(\w+): (\S.*)$", re.MULTILINE)
_ANY = re.compile(r"^\s*(?:\w+\.)*(\w*(?:Error|Exception))\b", re.MULTILINE)
_NO_PLACE = re.compile(r"for each replica: ([\[{].*), total resources available: ({.*?})")


def _ask() -> dict[str, str]:
    """Ask the controller, which blocks this thread."""
    try:
        own = serve.get_replica_context().app_name
    except RayServeException:
        return {}  # outside a cluster, where asking would start one
    if not ray.is_initialized():
        return {}
    try:
        found = serve.status().applications[own].deployments
    except Exception:
        # It must not replace the error that is being explained.
        logger.exception("Serve's controller does not report the status of the deployments")
        return {}
    said = {name: reason(status.status.value, status.message) for name, status in found.items()}
    return {name: sentence for name, sentence in said.items() if sentence}


class Reasons:
    """What keeps this application's deployments from running. Belongs to an event loop.

    ``ask`` gives the sentences, by deployment. It may block, and raises nothing.
    """

    def __init__(self, ask: Callable[[], dict[str, str]] = _ask) -> None:
        self._ask = ask
        self._asked: asyncio.Task[dict[str, str]] | None = None
        self._asked_at = 0.0

    async def all(self) -> Mapping[str, str]:
        """A sentence for each deployment whose reason is known, by its name.

        Empty if the controller does not answer in time. It raises nothing but cancellation.
        """
        now = asyncio.get_running_loop().time()
        if self._asked is None or (self._asked.done() and now >= self._asked_at + KEPT_S):
            self._asked_at = now
            self._asked = asyncio.create_task(asyncio.to_thread(self._ask))
        if self._asked.done():
            return self._asked.result()
        try:
            # Shielded: others wait for the same answer.
            return await asyncio.wait_for(asyncio.shield(self._asked), TIMEOUT_S)
        except TimeoutError:
            return {}


def reason(status: str, message: str) -> str | None:
    """One sentence about a deployment that does not run; None while it starts or if it does.

    Args:
        status: of the deployment, as Ray names it.
        message: Ray's own text (`ray.serve._private.deployment_state`).
    """
    if status == "HEALTHY" or not message:
        return None
    _, failed, traceback = message.partition("Error:\n")
    if failed:
        return _of_traceback(traceback)
    if found := _NO_PLACE.search(message):
        return _no_place(json.loads(found[1]), json.loads(found[2]))
    if "to initialize" in message:
        return "its model is still being loaded"
    if "health check failed" in message:
        return "a replica failed its health check and is being replaced"
    if status in ("UNHEALTHY", "DEPLOY_FAILED"):
        return "it has failed; the server's log says more"
    return None


def _of_traceback(traceback: str) -> str:
    ours = _OURS.findall(traceback)
    if ours and isinstance(getattr(errors, ours[-1][0], None), type):
        return _clipped(ours[-1][1])
    kinds = _ANY.findall(traceback)
    kind = f" with {kinds[-1]}" if kinds else ""
    return f"its replica failed to start{kind}; the server's log says more"


def _no_place(required: Any, free: Mapping[str, float]) -> str:
    """``required`` is a mapping, or one for each bundle, for which Ray reports no ``free``."""
    bundles = required if isinstance(required, list) else [required]
    needs: Counter[str] = Counter()
    for bundle in bundles:
        needs.update(bundle)
    waits = f"a replica waits for a machine that has free: {_amounts(needs)}"
    lacking = {name: free.get(name, 0.0) for name in needs if needs[name] > free.get(name, 0.0)}
    if bundles is required or not lacking:
        return waits
    return f"{waits}; free in the whole cluster: {_amounts(lacking)}"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items())


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
