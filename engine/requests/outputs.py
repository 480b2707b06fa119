"""What the engine's thread tells the outside: text deltas, usage, the end or the error."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from engine.text.message import MessageParser
from schema.errors import TaskError
from schema.response import (
    Delta,
    FinishReason,
    StreamChoice,
    StreamChunk,
    TokenLogprob,
    Usage,
)


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """New text of one choice; ``finish_reason`` is None until the choice's last delta.

    ``logprobs`` are of the tokens that have come since the last delta; None if nobody asks.
    """

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...] | None = None


class RequestOutput(NamedTuple):
    """News of one task: ``completion_tokens`` is cumulative, ``done`` or ``error`` ends it."""

    deltas: tuple[ChoiceDelta, ...] = ()
    completion_tokens: int = 0
    done: bool = False
    error: TaskError | None = None


Sink = Callable[[RequestOutput], None]
"""Receives a task's progress on the engine's thread. Must return at once and never raise."""


def join(deltas: Iterable[ChoiceDelta]) -> list[ChoiceDelta]:
    """One delta for each choice, its texts joined; in order of index."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, FinishReason | None] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    for delta in deltas:
        texts.setdefault(delta.index, []).append(delta.text)
        reasons[delta.index] = delta.finish_reason
        if delta.logprobs is not None:
            logprobs.setdefault(delta.index, []).extend(delta.logprobs)
    return [
        ChoiceDelta(i, "".join(texts[i]), reasons[i], tuple(logprobs[i]) if i in logprobs else None)
        for i in sorted(texts)
    ]


def merge(news: Sequence[RequestOutput]) -> RequestOutput:
    """Several pieces of news, at least one, as one: what is cumulative is the last one's."""
    deltas = join(delta for item in news for delta in item.deltas)
    return news[-1]._replace(deltas=tuple(deltas))


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """The usage object of a response or a chunk."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class ChunkBuilder(NamedTuple):
    """What all chunks and the response of one task have in common.

    ``parsers`` make the messages of its choices; none if the answer is to be text.
    """

    model: str
    system_fingerprint: str
    prompt_tokens: int
    parsers: Sequence[MessageParser] = ()

    def chunk(self, progress: RequestOutput) -> StreamChunk:
        """One stream chunk. Call once for each piece of news, in order."""
        return {
            "model": self.model,
            "choices": [self._choice(delta) for delta in progress.deltas],
            "usage": usage(self.prompt_tokens, progress.completion_tokens),
            "system_fingerprint": self.system_fingerprint,
        }

    def _choice(self, news: ChoiceDelta) -> StreamChoice:
        delta: Delta = {"role": "assistant", "content": news.text}
        reason = news.finish_reason
        if self.parsers:
            delta, reason = self.parsers[news.index].push(news.text, reason)
        choice: StreamChoice = {"index": news.index, "delta": delta, "finish_reason": reason}
        if news.logprobs is not None:
            choice["logprobs"] = list(news.logprobs)
        return choice


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
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
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
