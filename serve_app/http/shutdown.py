"""The end of an ingress: new requests are refused, and those that run have some seconds left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from serve_app.protocol.failures import Stopping

ENDING_S = 5.0
"""How long requests may take to say that their time is over."""
SCOPE_KEY = "gpt_task_serve.shutdown"
"""Where an ASGI scope holds the `Shutdown` of its ingress."""


class Shutdown:
    """Whether this ingress is being stopped. All methods run on its event loop.

    Serve's own shutdown kills the proxies first, and with them every open connection. So the
    serving command calls `drain` of all ingresses before that.
    """

    def __init__(self, grace_s: float) -> None:
        """``grace_s``: seconds that running requests have to end, once `drain` has been called."""
        self._grace_s = grace_s
        self._deadline: float | None = None  # in the event loop's time
        self._limits: set[asyncio.Timeout] = set()
        self._running = 0
        self._cut = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self) -> int:
        """Refuse new requests; return when no request runs, with the number of those cut off."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._grace_s
            for limit in self._limits:
                limit.reschedule(self._deadline)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline + ENDING_S):
                await self._idle.wait()
        return self._cut

    def refuse_if_stopping(self) -> None:
        """Raises `Stopping` from the beginning of `drain` on."""
        if self._deadline is not None:
            raise Stopping("the server is stopping and takes no new requests", None, self._grace_s)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request: `drain` waits for its end."""
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def limit(self) -> Limit:
        """Around waiting: it is ended when the time of running requests is over."""
        return Limit(self)

    def cut_off(self) -> Stopping:
        """The error of a request that has not ended in time."""
        return Stopping(
            f"the server was stopped, and the request had not ended {self._grace_s:g} seconds "
            "later; send it again",
            None,
            self._grace_s,
        )


class Limit:
    """A block that waits, and that the end of an ingress ends: see `Shutdown.limit`.

    A class and not a generator, because the chunks of all streams pass one each.

    Raises:
        Stopping: in place of any error that the code inside makes of its cancellation.
    """

    def __init__(self, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        self._timeout = asyncio.timeout_at(shutdown._deadline)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._shutdown._limits.add(self._timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shutdown._limits.discard(self._timeout)
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as ended:
            error = ended
        if isinstance(error, Exception) and self.expired():
            self._shutdown._cut += 1
            raise self._shutdown.cut_off() from error

    def expired(self) -> bool:
        """Whether it has ended its block."""
        return self._timeout.expired()

    def lift(self) -> None:
        """Let the block end by itself; for a limit that has not expired."""
        self._shutdown._limits.discard(self._timeout)
        self._timeout.reschedule(None)
