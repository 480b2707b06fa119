"""The recurrence on a CPU: one compiled call for all sequences of a forward.

In torch's operations each step of each sequence reads and writes its state six times, and is a
dozen calls. This kernel keeps a part of a state in the cache of a core through all tokens of a run.
What it computes for a run is a function of that run alone.

Numba compiles it at its first use (`engine.platform.compiled`). Sums over K are in the order of K.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from numba import prange, types

from engine.execution.modules.recurrence.steps import DecayByValue, Runs, Steps
from engine.platform.compiled import compiled, use_torch_threads

_WIDTH = 64
"""Of the part of V that a thread works on at once: with K of 128, 32 KiB."""


def scan_on_cpu(
    queries: torch.Tensor, steps: Steps, states: torch.Tensor, runs: Runs, output: torch.Tensor
) -> None:
    """See `engine.execution.modules.recurrence.scan.scan`; writes ``output``."""
    decay = steps.decay
    by_value = isinstance(decay, DecayByValue)
    kernel = _compiled(by_value, steps.beta is not None)
    use_torch_threads()
    kernel(
        queries.contiguous().numpy(),
        steps.keys.contiguous().numpy(),
        steps.values.contiguous().numpy(),
        None if isinstance(decay, DecayByValue) else decay.numpy(),
        decay[:].numpy() if isinstance(decay, DecayByValue) else None,
        None if steps.beta is None else steps.beta.contiguous().numpy(),
        runs.first,
        runs.count,
        runs.kept,
        runs.read,
        runs.write,
        states.numpy(),
        output.numpy(),
    )


@lru_cache
def _compiled(by_value: bool, is_delta: bool) -> Callable[..., None]:
    """The kernel for a form of decay, with a delta rule or without."""
    f32 = types.float32
    signature = types.void(
        f32[:, :, ::1],
        f32[:, :, ::1],
        f32[:, :, ::1],
        types.none if by_value else f32[:, :, :],
        f32[:, :, :, ::1] if by_value else types.none,
        f32[:, ::1] if is_delta else types.none,
        *[types.int64[::1]] * 5,
        f32[:, :, :, ::1],
        f32[:, :, ::1],
    )
    return compiled(signature, _scan)


# --- What follows is compiled: Numba's Python, in which loops are fast and arrays have to be made
# --- before they are filled.

_f32 = np.float32


def _copy_part(source: Any, target: Any, size: Any) -> None:
    """The first ``size`` columns of each row."""
    for k in range(source.shape[0]):
        for v in range(size):
            target[k, v] = source[k, v]


_copy = numba.njit(inline="always")(_copy_part)


def _scan(
    queries: Any,  # [T, G, K]
    keys: Any,  # [T, G, K]
    values: Any,  # [T, H, V]
    decay: Any,  # [T, H, K], or None
    decays: Any,  # [T, H, K, V], or None
    beta: Any,  # [T, H], or None
    first: Any,
    count: Any,
    kept: Any,
    read: Any,
    write: Any,
    states: Any,  # [R, H, K, V]
    output: Any,  # [T, H, V]
) -> None:
    """All steps of all runs; a unit of work is a part of a head of a run."""
    num_heads, width = values.shape[1], values.shape[2]
    depth, group = keys.shape[2], num_heads // keys.shape[1]
    parts = (width + _WIDTH - 1) // _WIDTH
    is_delta = beta is not None
    for unit in prange(len(first) * num_heads * parts):
        run, head = unit // (num_heads * parts), unit // parts % num_heads
        start = unit % parts * _WIDTH
        size = min(_WIDTH, width - start)
        of_group = head // group
        state = np.zeros((depth, _WIDTH), np.float32)
        if read[run] >= 0:
            _copy(states[read[run], head, :, start : start + size], state, size)
        new = np.empty(_WIDTH, np.float32)
        seen = np.empty(_WIDTH, np.float32)
        for place in range(count[run]):
            row = first[run] + place
            value = values[row, head, start : start + size]
            for v in range(size):
                new[v] = value[v]
                seen[v] = _f32(0)
            if beta is not None:
                for k in range(depth):
                    key, kept_part = keys[row, of_group, k], decay[row, head, k]
                    for v in range(size):
                        now = state[k, v] * kept_part
                        state[k, v] = now
                        seen[v] += now * key
                for v in range(size):
                    new[v] = (new[v] - seen[v]) * beta[row, head]
                    seen[v] = _f32(0)
                for k in range(depth):
                    key, query = keys[row, of_group, k], queries[row, of_group, k]
                    for v in range(size):
                        now = state[k, v] + key * new[v]
                        state[k, v] = now
                        seen[v] += now * query
            if decays is not None:
                for k in range(depth):
                    key, query = keys[row, of_group, k], queries[row, of_group, k]
                    kept_parts = decays[row, head, k, start : start + size]
                    for v in range(size):
                        now = state[k, v] * kept_parts[v] + key * new[v]
                        state[k, v] = now
                        seen[v] += now * query
            if decay is not None:  # noqa: SIM102 - Numba leaves out a branch on None alone
                if not is_delta:
                    for k in range(depth):
                        key, query = keys[row, of_group, k], queries[row, of_group, k]
                        kept_part = decay[row, head, k]
                        for v in range(size):
                            now = state[k, v] * kept_part + key * new[v]
                            state[k, v] = now
                            seen[v] += now * query
            out = output[row, head, start : start + size]
            for v in range(size):
                out[v] = seen[v]
            if place + 1 == kept[run] and write[run] >= 0:
                _copy(state, states[write[run], head, :, start : start + size], size)
