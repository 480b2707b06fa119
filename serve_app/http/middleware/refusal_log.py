"""Refused requests in the ingress's log: the first in a second has a line, the others share one.

Refusing a request takes less time than logging it, and under load such lines would hide what an
operator looks for. Each request can still be found: Ray writes a line of its own for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections import Counter

from serve_app.observability.request_record import Entry

logger = logging.getLogger("ray.serve")

PERIOD_S = 1.0


class RefusalLog:
    """Counts refusals and logs how many there were. Belongs to an event loop."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] | None = None

    def joins(self, refused: Entry) -> bool:
        """Count a refusal. False if it is the first of its second and needs a line of its own."""
        if self._counts is None:
            self._counts = Counter()
            # In an empty context, because the line is not about the current request.
            context = contextvars.Context()
            asyncio.get_running_loop().call_later(PERIOD_S, self._write, context=context)
            return False
        self._counts[refused.deployment, refused.key or "-"] += 1
        return True

    def _write(self) -> None:
        counts, self._counts = self._counts, None
        if counts:
            listed = ", ".join(
                f"{count} for {json.dumps(deployment or 'all')} key={key}"
                for (deployment, key), count in counts.most_common()
            )
            logger.info(
                "%d more were refused within %g s: %s; Ray's lines with 503 have their ids",
                counts.total(),
                PERIOD_S,
                listed,
            )
