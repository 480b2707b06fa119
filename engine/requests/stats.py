"""Measurements of the engine as plain numbers: tokens since the start, times of ended tasks.

These numbers do not change what is computed. They are taken from the outputs of tasks, so a token
counts when its text is reported, and the first token of a beam search comes with its end.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from engine.requests.outputs import RequestOutput, Sink

MAX_KEPT = 8192
"""Tasks whose times are kept until `take_times`; the oldest are dropped first."""


class TaskTimes(NamedTuple):
    """How long a completed task took: not one that failed or was cancelled.

    Attributes:
        first_s: seconds from its arrival, before it was tokenized, to its first token.
        per_token_s: seconds between two tokens of one answer; None where all came at once.
        total_s: seconds from its arrival to its end.
    """

    first_s: float
    per_token_s: float | None
    total_s: float


class Meter:
    """The numbers of one engine. Written on the engine's thread, read on any."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        """Of tasks that have reported a token."""
        self.generated_tokens = 0
        """Of all tasks, also of those that failed or were cancelled."""
        self.verified_tokens = 0
        """Of answers that were verified and not generated."""
        self._ended: deque[TaskTimes] = deque(maxlen=MAX_KEPT)

    def watch(
        self,
        sink: Sink,
        *,
        prompt_tokens: int,
        num_answers: int,
        arrived: float,
        verifies: bool = False,
    ) -> Sink:
        """A sink that measures a task, which came at ``arrived`` (`time.monotonic`).

        Of one that ``verifies`` a claimed answer only the tokens are counted: nobody reads them.
        """
        num_reported = 0
        first_tokens = 0
        first_at = 0.0

        def measured(progress: RequestOutput) -> None:
            nonlocal num_reported, first_tokens, first_at
            now = time.monotonic()
            if not first_at and (progress.completion_tokens or progress.done):
                self.prompt_tokens += prompt_tokens
                first_tokens, first_at = progress.completion_tokens, now
            news = progress.completion_tokens - num_reported
            num_reported = progress.completion_tokens
            if verifies:
                self.verified_tokens += news
            else:
                self.generated_tokens += news
            if progress.done and not verifies:
                pace = per_token(now - first_at, num_reported - first_tokens, num_answers)
                self._ended.append(TaskTimes(first_at - arrived, pace, now - arrived))
            sink(progress)

        return measured

    def take_times(self) -> list[TaskTimes]:
        """The times of tasks that have ended since the last call, in the order of their ends."""
        taken: list[TaskTimes] = []
        while self._ended:
            taken.append(self._ended.popleft())
        return taken


def per_token(seconds: float, num_tokens: int, num_answers: int) -> float | None:
    """Seconds between two tokens of one answer, when several answers grow at the same time.

    Args:
        seconds: from the first token to the last.
        num_tokens: tokens that came in this time, after the first ones, in all answers.
        num_answers: answers of the task.
    """
    return seconds * num_answers / num_tokens if num_tokens > 0 else None
