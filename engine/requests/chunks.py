"""The outputs of a task as stream chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from engine.requests.outputs import ChoiceDelta, RequestOutput
from engine.text.message import MessageParser
from schema.answers.receipt import ExecutionRecord
from schema.answers.response import (
    Delta,
    StreamChoice,
    StreamChunk,
    Usage,
)

Answered = TypeVar("Answered")


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """The usage object of a response or a chunk."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class ChunkBuilder(NamedTuple):
    """What all chunks and the response of one task have in common.

    ``parsers`` make the messages of its choices; there are none if the answer is text. Of one
    answer that is told several times there are ``copies``. ``record`` makes the record of the
    whole answer, if the task wants a receipt.
    """

    model: str
    system_fingerprint: str
    prompt_tokens: int
    parsers: Sequence[MessageParser] = ()
    copies: int = 1
    record: Callable[[], ExecutionRecord] | None = None

    def chunk(self, progress: RequestOutput) -> StreamChunk:
        """One stream chunk. Call once for each output, in order."""
        chunk: StreamChunk = {
            "model": self.model,
            "choices": [
                self._choice(delta, copy)
                for copy in range(self.copies)
                for delta in progress.deltas
            ],
            "usage": usage(self.prompt_tokens, progress.completion_tokens * self.copies),
            "system_fingerprint": self.system_fingerprint,
        }
        if progress.prompt is not None:
            text, token_ids, logprobs = progress.prompt
            if text is not None:
                chunk["prompt_text"] = text
            if token_ids is not None:
                chunk["prompt_token_ids"] = list(token_ids)
            if logprobs is not None:
                chunk["prompt_logprobs"] = logprobs
        if progress.done and self.record is not None:
            chunk["record"] = self.record()
        return chunk

    def by_choice(self, of_answers: Sequence[Answered]) -> dict[int, Answered]:
        """What belongs to each answer, by the choices in which it is told."""
        copies = range(self.copies)
        return {index + copy: one for index, one in enumerate(of_answers) for copy in copies}

    def _choice(self, new: ChoiceDelta, copy: int) -> StreamChoice:
        index = new.index + copy
        delta: Delta = {"role": "assistant", "content": new.text}
        reason = new.finish_reason
        parser = self.parsers[index] if self.parsers else None
        if parser is not None:
            delta, reason = parser.push(new.text, reason)
        choice: StreamChoice = {"index": index, "delta": delta, "finish_reason": reason}
        if new.logprobs is not None:
            choice["logprobs"] = list(new.logprobs)
        if new.token_ids is not None:
            choice["token_ids"] = list(new.token_ids)
        if reason is not None and parser is not None and parser.stop_string is not None:
            choice["stop_string"] = parser.stop_string
        return choice
