"""Chooses the replica of a model that a task is sent to.

Tasks with the same prefix go to the same replica, which has the keys and values of the prefix
(`prefix_cache`), unless it has more to do than others. The replica of a prefix is found by
rendezvous hashing: every ingress finds the same one without asking the others, and when replicas
come or go only their share of the prefixes moves.
"""

# Ray pickles this module by value. So what it shares with the rest of the process is imported
# inside of the functions.

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class PrefixRouter(RequestRouter):
    """Chooses by the key of the task's prefix, which the caller passes as the session's id."""

    def initialize_state(self, slack: int = 4, **_: Any) -> None:
        """Called by Ray Serve.

        Args:
            slack: how many more tasks than the least busy replica the one of a prefix may have.
        """
        self._slack = slack

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, in the order in which they are asked for a place."""
        from serve_app.graph.ejection import EJECTED  # noqa: PLC0415 - see the top

        if pending_request is not None:
            # Without it Ray tries again without a pause while all replicas are full.
            pending_request.routing_context.should_backoff = True
        replicas = [r for r in candidate_replicas if r.replica_id.unique_id not in EJECTED]
        by_load = sorted(
            replicas or candidate_replicas, key=lambda r: (self._load(r), random.random())
        )
        prefix = pending_request.metadata.session_id if pending_request is not None else ""
        if not by_load:
            return []
        if not prefix:
            return [by_load[:2]]
        home = max(by_load, key=lambda r: _weight(prefix, r.replica_id.unique_id))
        if self._load(home) > self._load(by_load[0]) + self._slack:
            return [by_load[:2]]
        return [[home], by_load[:2]]

    def _load(self, replica: RunningReplica) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _weight(prefix: str, replica: str) -> bytes:
    return blake2b(f"{prefix}|{replica}".encode(), digest_size=8).digest()
