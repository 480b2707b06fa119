"""Requests that run: each in a task of its own, so that it can be stopped at any moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from serve_app.ui.client import ChatError

logger = logging.getLogger("ray.serve")

# How often what has come is shown: a browser gains nothing from more.
REFRESH_S = 0.05


class Run:
    """One request in progress."""

    def __init__(self, request: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(request)

    def stop(self) -> None:
        """End it; its connection to the server is closed, which frees its place there."""
        self._task.cancel()

    async def progress(self) -> AsyncGenerator[None, None]:
        """Comes by every now and then until the request has ended."""
        while not self._task.done():
            await asyncio.wait({self._task}, timeout=REFRESH_S)
            yield

    @property
    def stopped(self) -> bool:
        """Whether it has ended because somebody stopped it."""
        return self._task.cancelled()

    @property
    def error(self) -> str | None:
        """What the user is told, if it has failed."""
        failure = None if self.stopped else self._task.exception()
        if failure is None:
            return None
        if isinstance(failure, ChatError):
            return str(failure)
        logger.error("a run of the web chat failed", exc_info=failure)
        return "The web chat has a fault; the server's log has the details."

    async def end(self) -> None:
        """Stop it and wait until it has let go of its connection."""
        self.stop()
        await asyncio.wait({self._task})


class Runs:
    """The runs of all sessions; a session that begins one has ended the one before."""

    def __init__(self) -> None:
        self._of: dict[str, Run] = {}

    @asynccontextmanager
    async def running(self, session: str, request: Coroutine[Any, Any, None]) -> AsyncIterator[Run]:
        """Runs the request; it has ended when this is left, however that happens."""
        self.stop(session)
        run = self._of[session] = Run(request)
        try:
            yield run
        finally:
            if self._of.get(session) is run:
                del self._of[session]
            await run.end()

    def busy(self, session: str) -> bool:
        """Whether a run of the session goes on."""
        return session in self._of

    def stop(self, session: str) -> None:
        """Stop the session's run, if there is one."""
        if run := self._of.get(session):
            run.stop()
