"""What the engine's thread tells the outside: text deltas, usage, the end or the error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from schema.errors import TaskError
from schema.response import FinishReason, StreamChunk, TaskResponse, Usage


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """New text of one choice; ``finish_reason`` is None until the choice's last delta."""

    index: int
    text: str
    finish_reason: FinishReason | None


class Progress(NamedTuple):
    """News of one task: ``completion_tokens`` is cumulative, ``done`` or ``error`` ends it."""

    deltas: tuple[ChoiceDelta, ...] = ()
    completion_tokens: int = 0
    done: bool = False
    error: TaskError | None = None


Sink = Callable[[Progress], None]
"""Receives a task's progress on the engine's thread. Must return at once and never raise."""


def join(deltas: Iterable[ChoiceDelta]) -> list[ChoiceDelta]:
    """One delta for each choice, its texts joined; in order of index."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, FinishReason | None] = {}
    for delta in deltas:
        texts.setdefault(delta.index, []).append(delta.text)
        reasons[delta.index] = delta.finish_reason
    return [ChoiceDelta(i, "".join(texts[i]), reasons[i]) for i in sorted(texts)]


def merge(news: Sequence[Progress]) -> Progress:
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


class ResponseFormat(NamedTuple):
    """What all chunks and the response of one task have in common."""

    model: str
    system_fingerprint: str
    prompt_tokens: int

    def chunk(self, progress: Progress) -> StreamChunk:
        """One stream chunk."""
        return {
            "model": self.model,
            "choices": [
                {
                    "index": delta.index,
                    "delta": {"role": "assistant", "content": delta.text},
                    "finish_reason": delta.finish_reason,
                }
                for delta in progress.deltas
            ],
            "usage": usage(self.prompt_tokens, progress.completion_tokens),
            "system_fingerprint": self.system_fingerprint,
        }


def collect(chunks: Iterable[StreamChunk]) -> TaskResponse:
    """The response that a task's chunks add up to: there is one text path, and this is its end."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, FinishReason] = {}
    last: Mapping[str, object] | None = None
    for chunk in chunks:
        last = chunk
        for choice in chunk["choices"]:
            texts.setdefault(choice["index"], []).append(choice["delta"]["content"])
            if (reason := choice["finish_reason"]) is not None:
                reasons[choice["index"]] = reason
    if last is None or set(texts) != set(reasons):
        raise ValueError("the stream ended before every choice was finished")
    return {
        "model": chunk["model"],
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts[index])},
                "finish_reason": reasons[index],
            }
            for index in sorted(texts)
        ],
        "usage": chunk["usage"],
        "system_fingerprint": chunk["system_fingerprint"],
    }


class Mailbox:
    """Carries progress from the engine's thread to one coroutine.

    What arrives while the consumer is busy is merged into one piece: nothing waits for more, and
    nothing piles up.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._news: list[Progress] = []

    def put(self, progress: Progress) -> None:
        """The task's sink."""
        with self._lock:
            self._news.append(progress)
            first = len(self._news) == 1
        if first:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self, patience_s: float | None = None) -> Progress:
        """Everything since the last call; waits for something.

        With ``patience_s`` it waits no longer than this, and returns that there is no news.
        """
        timer = None
        if patience_s is not None and not self._arrived.is_set():
            timer = self._loop.call_later(patience_s, self._arrived.set)
        try:
            await self._arrived.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._arrived.clear()
        with self._lock:
            news, self._news = self._news, []
        return merge(news) if news else Progress()
