"""What the engine's thread tells the outside: text deltas, usage, the end or the error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from engine.text.message import MessageParser, joined
from schema.errors import TaskError
from schema.response import (
    Choice,
    Delta,
    FinishReason,
    StreamChoice,
    StreamChunk,
    TaskResponse,
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


def collect(chunks: Iterable[StreamChunk]) -> TaskResponse:
    """The response that a task's chunks add up to: there is one text path, and this is its end."""
    deltas: dict[int, list[Delta]] = {}
    reasons: dict[int, FinishReason] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    last: Mapping[str, object] | None = None
    for chunk in chunks:
        last = chunk
        for choice in chunk["choices"]:
            deltas.setdefault(choice["index"], []).append(choice["delta"])
            if (reason := choice["finish_reason"]) is not None:
                reasons[choice["index"]] = reason
            if "logprobs" in choice:
                logprobs.setdefault(choice["index"], []).extend(choice["logprobs"])
    if last is None or set(deltas) != set(reasons):
        raise ValueError("the stream ended before every choice was finished")
    choices: list[Choice] = [
        {
            "index": index,
            "message": joined(deltas[index]),
            "finish_reason": reasons[index],
        }
        for index in sorted(deltas)
    ]
    for whole in choices:
        if whole["index"] in logprobs:
            whole["logprobs"] = logprobs[whole["index"]]
    return {
        "model": chunk["model"],
        "choices": choices,
        "usage": chunk["usage"],
        "system_fingerprint": chunk["system_fingerprint"],
    }


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
            hold_s: it waits for so long even if there are news, unless they are the end.
        """
        timers = []
        if hold_s > 0 and self._hold():
            timers.append(self._loop.call_later(hold_s, self._release))
        if patience_s is not None and not self._arrived.is_set():
            timers.append(self._loop.call_later(max(hold_s, patience_s), self._arrived.set))
        try:
            await self._arrived.wait()
        finally:
            for timer in timers:
                timer.cancel()
        self._arrived.clear()
        with self._lock:
            news, self._news = self._news, []
            self._held = self._woken = False
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
