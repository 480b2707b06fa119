"""Outputs from the engine's thread to one coroutine: merged while it is busy, the end at once."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import suppress

from engine.requests.outputs import RequestOutput, merge


class RequestOutputCollector:
    """Carries outputs from the engine's thread to one coroutine.

    Outputs that arrive while the consumer is busy are merged into one, so that none pile up.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._outputs: list[RequestOutput] = []
        self._ended = False
        self._held = False  # the consumer waits for the end only
        self._woken = False
        self._timer: asyncio.TimerHandle | None = None

    def put(self, progress: RequestOutput) -> None:
        """The task's sink."""
        with self._lock:
            self._outputs.append(progress)
            self._ended |= progress.done or progress.error is not None
            wake = not self._woken and (self._ended or not self._held)
            self._woken |= wake
        if wake:
            with suppress(RuntimeError):  # the loop is closed: there is no consumer any more
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self, patience_s: float | None = None, hold_s: float = 0.0) -> RequestOutput:
        """Everything since the last call; waits until there is something.

        Args:
            patience_s: the longest wait; then it returns an empty output.
            hold_s: the shortest wait, which only the end of the task cuts short. With ``math.inf``
                it returns only the end, or an empty output after ``patience_s``.
        """
        only_the_end = hold_s == math.inf
        if hold_s > 0 and self._hold() and not only_the_end:
            # One timer for both: nearly always there is something to return when it is over.
            self._timer = self._loop.call_later(hold_s, self._release, patience_s, hold_s)
        elif patience_s is not None and not self._arrived.is_set():
            self._timer = self._loop.call_later(patience_s, self._arrived.set)
        try:
            await self._arrived.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._arrived.clear()
        with self._lock:
            outputs, self._outputs = self._outputs, []
            self._held = self._woken = False
            if only_the_end and not self._ended:
                self._outputs = [merge(outputs)] if outputs else []  # so that none pile up
                return RequestOutput()
        return merge(outputs) if outputs else RequestOutput()

    def _hold(self) -> bool:
        """Begin to hold outputs back; False if the end is among them."""
        with self._lock:
            self._held = not self._ended
            if self._held:
                self._woken = False
                self._arrived.clear()
            return self._held

    def _release(self, patience_s: float | None, held_s: float) -> None:
        """Stop holding outputs back; if there are none, wait for the rest of the patience."""
        with self._lock:
            self._held = False
            if self._outputs:
                self._woken = True
                self._arrived.set()
                return
        if patience_s is not None:
            rest_s = max(0.0, patience_s - held_s)
            self._timer = self._loop.call_later(rest_s, self._arrived.set)
