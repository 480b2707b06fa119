"""What an ingress counts of requests: for Prometheus, and for ``GET /v1/models``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray

from serve_app.observability import metrics
from serve_app.observability.identity import identity
from serve_app.observability.request_record import Entry

OK = "ok"


class RequestMetrics:
    """The counts of one ingress replica. Belongs to its event loop.

    A deployment is one of the configured ones, or empty for requests that were refused before their
    deployment was known.
    """

    def __init__(self) -> None:
        self._exports = ray.is_initialized()  # without Ray they could not be read
        self._requests: Counter[tuple[str, str]] = Counter()
        self._replays: Counter[str] = Counter()
        self._replayed_tokens: Counter[str] = Counter()

    def ended(self, entry: Entry) -> None:
        """Count a request that has come to its end.

        A request that ended well and named no model (``GET /v1/models``) is not counted.
        """
        code = entry.error
        if code is None and not entry.deployment:
            return
        self._requests[entry.deployment, code or OK] += 1
        if not self._exports:
            return
        labels = {"deployment": entry.deployment}
        metrics.REQUESTS.record(1, {**labels, "code": code or OK})
        if code is not None:
            return
        if entry.verdict is not None:
            metrics.VERIFICATIONS.record(1, {**labels, "verdict": entry.verdict})
            metrics.VERIFICATION.record(entry.seconds, labels)
            return
        metrics.REQUEST.record(entry.seconds, labels)
        if entry.first_token_s is None or entry.usage is None:
            return
        metrics.REQUEST_FIRST_TOKEN.record(entry.first_token_s, labels)
        tokens = entry.usage["completion_tokens"] - entry.first_tokens
        if tokens > 0:  # of all answers together, which grow at the same time
            pace = (entry.last_token_s - entry.first_token_s) * entry.num_answers / tokens
            metrics.REQUEST_TOKEN.record(pace, labels)

    def replayed(self, deployment: str, known: int) -> None:
        """Count a task that is run again, and the tokens that are known of it."""
        self._replays[deployment] += 1
        self._replayed_tokens[deployment] += known
        if self._exports:
            metrics.REPLAYS.record(1, {"deployment": deployment})
            metrics.REPLAYED_TOKENS.record(known, {"deployment": deployment})

    def counts(self) -> dict[str, Any]:
        """By deployment: requests by code, replays, and the tokens they brought. JSON-able."""
        requests: dict[str, dict[str, int]] = {}
        for (deployment, code), count in sorted(self._requests.items()):
            requests.setdefault(deployment, {})[code] = count
        return {
            "replica": identity() or "-",
            "requests": requests,
            "replays": dict(self._replays),
            "replayed_tokens": dict(self._replayed_tokens),
        }
