"""A task that the engine has accepted, as seen by the coroutine that waits for its answer."""

from __future__ import annotations

import math

from engine.requests.chunks import ChunkBuilder
from engine.requests.output_collector import RequestOutputCollector
from engine.requests.request import Request
from engine.requests.verification.verdict import verdict
from schema.answers.response import StreamChunk, TaskResponse, collect
from schema.answers.verification import Claim, Verdict

MAX_TAKEN = 65_536
"""Tokens that `RequestHandle.take_token_ids` returns at once; more follow with the next call. They
become part of a message, whose size is limited."""


class RequestHandle:
    """The chunks of one task, taken one by one. Belongs to one event loop.

    The owner calls `cancel` at the end, on every way out.

    Attributes:
        done: whether `next` has returned the last chunk.
    """

    def __init__(
        self, request: Request, builder: ChunkBuilder, outputs: RequestOutputCollector
    ) -> None:
        self._request = request
        self._builder = builder
        self._outputs = outputs
        # Beams change until the end, and the generate fallback cannot read tokens.
        readable = request.settings.batched and request.settings.num_beams == 1
        self._answers = request.sequences if readable else []
        self._taken = [0] * len(self._answers)
        self.done = False

    async def next(
        self, patience_s: float | None = None, hold_s: float = 0.0
    ) -> StreamChunk | None:
        """What has been generated since the last call; waits until there is something.

        Args:
            patience_s: the longest wait; then it returns None, and the task goes on. None waits
                without a limit.
            hold_s: the shortest wait, which only the end of the task cuts short. With ``math.inf``
                the next chunk is the last one.

        Raises:
            TaskError: the task has failed.
        """
        output = await self._outputs.get(patience_s, hold_s)
        if output.error is not None:
            raise output.error
        self.done = output.done
        return self._builder.chunk(output) if output.deltas or output.done else None

    def verdict(self, claim: Claim, expected: TaskResponse) -> Verdict:
        """The verdict on a claim, once the task that verifies it is done."""
        return verdict(claim, expected, self._builder.by_choice(self._request.losses))

    def take_token_ids(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of each answer since the last call; empty if there are none.

        They are what `Engine.submit` takes as ``known``, and may be ahead of the text that `next`
        has returned. There are none of beams and of the generate fallback, which would not be
        read, and none after the end of the task.
        """
        if self.done:
            return ()
        most = MAX_TAKEN // max(1, len(self._answers))
        # The engine's thread only ever appends to these lists.
        answers = zip(self._answers, self._taken, strict=True)
        new = tuple(tuple(answer.token_ids[taken : taken + most]) for answer, taken in answers)
        if not any(new):
            return ()
        self._taken = [taken + len(ids) for taken, ids in zip(self._taken, new, strict=True)]
        return new

    def cancel(self) -> None:
        """End the task, if it still runs, and free what it holds. Idempotent."""
        self._request.cancel_requested = True


class VerificationHandle:
    """The verification of a claim, as seen by the coroutine that waits for the verdict.

    The owner calls `cancel` at the end, on every way out.
    """

    def __init__(self, task: RequestHandle, claim: Claim) -> None:
        self._task = task
        self._claim = claim

    async def next(self, patience_s: float | None = None) -> Verdict | None:
        """The verdict; None if there is none after ``patience_s`` (None waits without a limit).

        Raises:
            TaskError: the task has failed.
        """
        chunk = await self._task.next(patience_s, math.inf)
        return None if chunk is None else self._task.verdict(self._claim, collect([chunk]))

    def cancel(self) -> None:
        """End the verification, if it still runs, and free what it holds. Idempotent."""
        self._task.cancel()
