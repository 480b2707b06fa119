"""From the engine's thread to one coroutine: nothing piles up, and the end never waits."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import suppress

from engine.requests.outputs import RequestOutput, merge


class RequestOutputCollector:
    """Carries progress from the engine's thread to one coroutine.

    What arrives while the consumer is busy is merged into one piece, so nothing piles up.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._news: list[RequestOutput] = []
        self._ended = False
        self._held = False  # the consumer wants no news but the end
        self._woken = False

    def put(self, progress: RequestOutput) -> None:
        """The task's sink."""
        with self._lock:
            self._news.append(progress)
            self._ended |= progress.done or progress.error is not None
            wake = not self._woken and (self._ended or not self._held)
            self._woken |= wake
        if wake:
            with suppress(RuntimeError):  # the loop is closed, and its consumer with it
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self, patience_s: float | None = None, hold_s: float = 0.0) -> RequestOutput:
        """Everything since the last call; waits for something.

        Args:
            patience_s: it waits no longer than this for news, and returns that there are none.
            hold_s: it waits for so long even if there are news, unless they are the end. With
                ``math.inf`` it returns nothing else, but for those that there are none.
        """
        timers = []
        only_the_end = hold_s == math.inf
        if hold_s > 0 and self._hold() and not only_the_end:
            timers.append(self._loop.call_later(hold_s, self._release))
        if patience_s is not None and not self._arrived.is_set():
            wait_s = patience_s if only_the_end else max(hold_s, patience_s)
            timers.append(self._loop.call_later(wait_s, self._arrived.set))
        try:
            await self._arrived.wait()
        finally:
            for timer in timers:
                timer.cancel()
        self._arrived.clear()
        with self._lock:
            news, self._news = self._news, []
            self._held = self._woken = False
            if only_the_end and not self._ended:
                self._news = [merge(news)] if news else []  # so that nothing piles up
                return RequestOutput()
        return merge(news) if news else RequestOutput()

    def _hold(self) -> bool:
        """Begin to hold news back; False if the end is among them."""
        with self._lock:
            self._held = not self._ended
            if self._held:
                self._woken = False
                self._arrived.clear()
            return self._held

    def _release(self) -> None:
        """Hold no more news back."""
        with self._lock:
            self._held = False
            if self._news:
                self._woken = True
                self._arrived.set()
