"""The recurrence that all such layers have in common, step by step from each sequence's state.

A head keeps a matrix S [K, V]. For each token it is scaled, written and read:

    S = decay * S
    S = S + k (v - read) beta,  where a delta rule reads k S first, and others read nothing
    output = q S

A gated delta net has one decay for each head, Kimi's one for each of K; in a Mamba 2, k and q are
its B and C, and v is its input times its time step; in a Mamba 1 each channel is one of V, with a
decay for each of K and V. Prompts take the same steps as decoded tokens, so that a token has the
same bits wherever it is computed: transformers' form in chunks is quicker, and rounds otherwise.

Shapes: T rows, H heads, G of them for queries and keys (each serves H / G consecutive heads), R
rows of states.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from engine.execution.modules.recurrence.cpu_scan import scan_on_cpu
from engine.execution.modules.recurrence.steps import DecayByValue, Runs, Steps
from engine.platform.platforms import platform_of


def scan(queries: torch.Tensor, steps: Steps, states: torch.Tensor, runs: Runs) -> torch.Tensor:
    """Run all runs from their states; returns the outputs [T, H, V], zero in rows of no run.

    Args:
        queries: [T, G, K], float32.
        steps: of all rows.
        states: [R, H, K, V], float32. No run writes a row that another one reads.
        runs: which rows belong together.
    """
    output = torch.zeros_like(steps.values, memory_format=torch.contiguous_format)
    if not len(runs):
        return output
    if platform_of(states.device).shares_host_memory:
        scan_on_cpu(queries, steps, states, runs, output)
    else:
        scan_in_steps(queries, steps, states, runs, output)
    return output


def scan_in_steps(
    queries: torch.Tensor, steps: Steps, states: torch.Tensor, runs: Runs, output: torch.Tensor
) -> None:
    """As `scan`, in torch's operations, a token of all runs at a time, on any device."""
    heads, groups = steps.values.shape[1], steps.keys.shape[1]
    by_value = isinstance(steps.decay, DecayByValue)
    known = torch.from_numpy(runs.read).clamp(min=0).to(states.device)
    fresh = torch.from_numpy(runs.read < 0).to(states.device)
    state = states[known].masked_fill_(fresh[:, None, None, None], 0.0)
    for place in range(int(runs.count.max())):
        going = np.flatnonzero(runs.count > place)
        members = torch.from_numpy(going).to(states.device)
        rows = torch.from_numpy(runs.first[going] + place).to(states.device)
        query, key = (
            each[rows].repeat_interleave(heads // groups, dim=1)[..., None]
            for each in (queries, steps.keys)
        )
        decay, value = steps.decay[rows], steps.values[rows]
        now = state[members] * (decay if by_value else decay[..., None])
        if steps.beta is not None:
            value = (value - _sum_of_keys(now * key)) * steps.beta[rows][..., None]
        now = now + key * value[..., None, :]
        output[rows] = _sum_of_keys(now * query)
        state[members] = now
        done = np.flatnonzero((runs.kept == place + 1) & (runs.write >= 0))
        if len(done):
            ended = torch.from_numpy(done).to(states.device)
            states[torch.from_numpy(runs.write[done]).to(states.device)] = state[ended]


def _sum_of_keys(terms: torch.Tensor) -> torch.Tensor:
    """[..., K, V] to [..., V], by sums of single elements: the order is the same in any shape."""
    while (size := terms.shape[-2]) > 1:
        half = -(-size // 2)
        lower, upper = terms[..., :half, :], terms[..., half:, :]
        terms = lower + pad(upper, (0, 0, 0, half - upper.shape[-2]))
    return terms[..., 0, :]
