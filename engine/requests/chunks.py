"""A task's news as stream chunks, and its chunks as a response. Needs no torch: for the ingress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from engine.requests.outputs import ChoiceDelta, RequestOutput
from engine.text.message import MessageParser, joined
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
