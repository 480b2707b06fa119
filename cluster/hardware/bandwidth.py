"""How many bytes a second a device moves: the floor of a decode step, which reads all weights."""

from __future__ import annotations

import time

import torch

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
