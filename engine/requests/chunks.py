"""The outputs of a task as stream chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.requests.outputs import ChoiceDelta, RequestOutput
from engine.text.message import MessageParser
from schema.response import (
    Delta,
    StreamChoice,
    StreamChunk,
    Usage,
)


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
