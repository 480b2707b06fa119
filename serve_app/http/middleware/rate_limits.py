"""Limits of one key at one ingress replica: requests a minute and requests at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schema.errors import RateLimited
from serve_app.config.limit_args import KeyLimitArgs

SECONDS_PER_MINUTE = 60.0
RETRY_CONCURRENT_S = 1.0
"""When to try again if all places are taken: it is not known when a stream will end."""


class KeyLimits:
    """The state of one key's limits: a token bucket and a count of open requests."""

    def __init__(
        self, name: str, limits: KeyLimitArgs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._limits = limits
        self._clock = clock
        self._open = 0
        self._tokens = float(limits.requests_per_minute or 0)
        self._filled_at = clock()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, as long as the body runs.

        Raises:
            RateLimited: at once. A request that is refused because too many are open does not count
                as one of the minute.
        """
        most = self._limits.max_concurrent
        if most is not None and self._open >= most:
            raise self._too_many_open(most)
        self._take_token()
        with self.further_place():
            yield

    @contextmanager
    def further_place(self) -> Iterator[None]:
        """A place for a further task of a request that has one. Raises as `place` does."""
        most = self._limits.max_concurrent
        if most is not None and self._open >= most:
            raise self._too_many_open(most)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def count(self, num_tasks: int) -> None:
        """Count further tasks as requests of the minute; only later requests are refused."""
        if self._limits.requests_per_minute is not None:
            self._tokens -= num_tasks

    def _too_many_open(self, most: int) -> RateLimited:
        return RateLimited(
            f"key {self._name!r} has {most} requests open, and may not have more",
            retry_after_s=RETRY_CONCURRENT_S,
        )

    def _take_token(self) -> None:
        per_minute = self._limits.requests_per_minute
        if per_minute is None:
            return
        now, per_second = self._clock(), per_minute / SECONDS_PER_MINUTE
        self._tokens = min(per_minute, self._tokens + (now - self._filled_at) * per_second)
        self._filled_at = now
        if self._tokens < 1:
            raise RateLimited(
                f"key {self._name!r} may send {per_minute} requests a minute",
                retry_after_s=(1 - self._tokens) / per_second,
            )
        self._tokens -= 1
