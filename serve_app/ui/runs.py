"""Requests that run, each in its own asyncio task, so that it can be stopped at any moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from serve_app.ui.client import ChatError

logger = logging.getLogger("ray.serve")

# How often new text is shown; a shorter time makes no difference in a browser.
REFRESH_S = 0.05


class Run:
    """One request in progress."""

    def __init__(self, request: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(request)

    def stop(self) -> None:
        """End it and close its connection to the server, which frees its place there."""
        self._task.cancel()

    async def progress(self) -> AsyncGenerator[None, None]:
        """Yields about every `REFRESH_S` seconds until the request has ended."""
        while not self._task.done():
            await asyncio.wait({self._task}, timeout=REFRESH_S)
            yield

    @property
    def stopped(self) -> bool:
        """Whether it has ended because it was stopped."""
        return self._task.cancelled()

    @property
    def error(self) -> str | None:
        """The message for the user if it has failed."""
        failure = None if self.stopped else self._task.exception()
        if failure is None:
            return None
        if isinstance(failure, ChatError):
            return str(failure)
        logger.error("a run of the web chat failed", exc_info=failure)
        return "The web chat has a fault; the server's log has the details."

    async def end(self) -> None:
        """Stop it and wait until its connection is closed."""
        self.stop()
        await asyncio.wait({self._task})


class Runs:
    """The runs of all sessions, one for each; a new run ends the one before."""

    def __init__(self) -> None:
        self._of: dict[str, Run] = {}

    @asynccontextmanager
    async def running(self, session: str, request: Coroutine[Any, Any, None]) -> AsyncIterator[Run]:
        """Runs the request; it has always ended when the body is left."""
        self.stop(session)
        run = self._of[session] = Run(request)
        try:
            yield run
        finally:
            if self._of.get(session) is run:
                del self._of[session]
            await run.end()

    def busy(self, session: str) -> bool:
        """Whether the session has a run that has not ended."""
        return session in self._of

    def stop(self, session: str) -> None:
        """Stop the session's run, if there is one."""
        if run := self._of.get(session):
            run.stop()
