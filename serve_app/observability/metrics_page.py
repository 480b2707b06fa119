"""``GET /metrics``: this server's metrics from all machines, for Prometheus or `curl`.

Ray's agents have them, one on each machine, at ports that Ray chooses; among two thousand lines of
Ray's own. Here they are at the server's own address, and behind its keys.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import ray

from schema.errors import Overloaded
from serve_app.observability.metrics import METRICS

logger = logging.getLogger("ray.serve")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIMEOUT_S = 5.0


async def metrics_page() -> str:
    """The metrics of `serve_app.observability.metrics`, in Prometheus' text format.

    A machine that does not answer is left out, and the log says so. Where Ray does not run there
    are none.

    Raises:
        Overloaded: none answers.
    """
    addresses = await asyncio.to_thread(_agents) if ray.is_initialized() else []
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        pages = await asyncio.gather(*(_page(session, address) for address in addresses))
    answered = [page for page in pages if page is not None]
    if addresses and not answered:
        raise Overloaded("no agent of Ray tells its metrics", retry_after_s=TIMEOUT_S)
    return merged(answered)


def _agents() -> list[str]:
    """Where Ray's agents tell the metrics of their machines."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


async def _page(session: aiohttp.ClientSession, address: str) -> str | None:
    try:
        async with session.get(address, raise_for_status=True) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        logger.warning("%s does not tell its metrics: %r", address, error)
        return None


def merged(pages: list[str]) -> str:
    """One page of several, with our families only; each family once, as the format wants it."""
    families: dict[str, list[str]] = {metric.exported: [] for metric in METRICS}
    for page in pages:
        family: list[str] | None = None
        for line in page.splitlines():
            if line.startswith("# HELP "):
                family = families.get(line.split(" ", 3)[2])
            if family is not None and (not line.startswith("#") or line not in family):
                family.append(line)
    return "".join(f"{line}\n" for family in families.values() for line in family)
