"""The memory-bandwidth floor: a decode step cannot take less time than reading what it needs."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.engine.peer import TaskResult
from benchmarks.harness.client import Job

PROMPT_TOKENS = 128
ANSWER_TOKENS = 128


def kv_bytes(rows: int, bytes_per_token: int) -> int:
    """What a step of so many rows reads of the KV cache, in the middle of the answers."""
    return rows * (PROMPT_TOKENS + ANSWER_TOKENS // 2) * bytes_per_token


def step_seconds(tasks: Sequence[Job], results: Sequence[TaskResult]) -> float:
    """How long a decode step of all rows took: measured on the task that began last.

    From its first token on nothing is left to prefill, and the others are in its steps.
    """
    task, result = max(zip(tasks, results, strict=True), key=lambda pair: pair[1].first_s)
    return (result.last_s - result.first_s) / (task.max_tokens - 1)
