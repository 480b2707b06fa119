"""The memory-bandwidth floor: a decode step cannot take less time than reading what it needs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks.engine.peer import TaskResult
from benchmarks.harness.client import Job

PROMPT_TOKENS = 128
ANSWER_TOKENS = 128

_CUDA_BUFFER_BYTES = 2 << 30
_CPU_BUFFER_BYTES = 128 << 20
_COPIES = 10
_TRIALS = 5


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy within the device reads and writes; the best of a few."""
    size = _CUDA_BUFFER_BYTES if device.type == "cuda" else _CPU_BUFFER_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(1 + _TRIALS):  # the first warms up, and is the slowest
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(_COPIES):
            target.copy_(source)
        _synchronize(device)
        best = max(best, 2 * size * _COPIES / (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kv_bytes(rows: int, bytes_per_token: int) -> int:
    """What a step of so many rows reads of the KV cache, in the middle of the answers."""
    return rows * (PROMPT_TOKENS + ANSWER_TOKENS // 2) * bytes_per_token


def step_seconds(tasks: Sequence[Job], results: Sequence[TaskResult]) -> float:
    """How long a decode step of all rows took: measured on the task that began last.

    From its first token on nothing is left to prefill, and the others are in its steps.
    """
    task, result = max(zip(tasks, results, strict=True), key=lambda pair: pair[1].first_s)
    return (result.last_s - result.first_s) / (task.max_tokens - 1)
