"""Launches of the kernels: what they are given, and over how many programs.

Beside tensors a launch is given numbers that the host knows. Nothing here reads a tensor of the
device, so nothing waits for it, and a launch for tokens can be captured as a graph: its grid and
its memory depend on how many rows there are and on the width of the table of pages.

Shapes: T rows of the batch, N sequences, P pages of the longest one, H query heads, K key/value
heads, D and E sizes of a key and of a value.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from triton import JITFunction, TritonError

from engine.execution.kernels import paged
from engine.execution.kernels.tiles import Heads, prompt_tile, token_tile

_ALL = 2**30  # a window, or a chunk, that is longer than any sequence
_LOG2_E = math.log2(math.e)
_PROGRAMS = 1024  # for a few on each multiprocessor of a large GPU
_FEWEST_SHARES = 8  # programs for the splits of a row: one of many rows may have a long context


class KernelError(RuntimeError):
    """Triton cannot compile or launch a kernel here: no C compiler, say, or too large a tile."""


@dataclass(frozen=True)
class PagedKeys:
    """Keys and values of a layer, of all sequences of a batch.

    Attributes:
        keys: [slots, K, D] of any strides with contiguous heads.
        values: [slots, K, E], alike.
        block_table: int32 [N, P], the pages of each sequence.
        page_size: tokens of a page.
    """

    keys: torch.Tensor
    values: torch.Tensor
    block_table: torch.Tensor
    page_size: int


@dataclass(frozen=True)
class Scoring:
    """How scores become weights.

    Attributes:
        scale: of products of queries and keys.
        window: how many tokens are seen, the last one included; None for all.
        chunk: only tokens of the same chunk of so many tokens are seen; None for all.
        softcap: scores are ``softcap * tanh(score / softcap)``; None leaves them.
        sinks: [H], scores of a key without a value; None for none.
    """

    scale: float
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def numbers(self) -> tuple[int, int, float, float]:
        """Window, chunk, scale and soft cap, as kernels take them: for powers of two."""
        window, chunk = self.window or _ALL, self.chunk or _ALL
        if self.softcap is None:
            return window, chunk, self.scale * _LOG2_E, 0.0
        return window, chunk, self.scale / self.softcap, self.softcap * _LOG2_E


def attend_prompts(
    query: torch.Tensor,  # [H, T, D]
    cached: PagedKeys,
    scoring: Scoring,
    row_starts: torch.Tensor,  # int32 [N + 1]
    contexts: torch.Tensor,  # int32 [N]
    seen_until: torch.Tensor | None,  # int32 [T]
    capability: tuple[int, int],
) -> torch.Tensor:  # [T, H, E]
    """Attention of rows that are consecutive tokens of sequences, the last ones of their contexts.

    Args:
        query: of all rows.
        cached: keys and values, of these rows too.
        scoring: how scores become weights.
        row_starts: the first row of each sequence, and T.
        contexts: tokens of each sequence, these rows included.
        seen_until: for each row the first token that it does not see; None: that after its own.
        capability: of the GPU.
    """
    num_heads, num_rows, _ = query.shape
    heads = _heads(query, cached)
    tile = prompt_tile(heads, capability)
    window, chunk, scale, softcap = scoring.numbers
    output = query.new_empty(num_rows, num_heads, heads.value_dim)
    grid = (num_rows * heads.group // tile.rows + len(contexts), num_heads // heads.group)
    constants = heads.constants(tile, capped=scoring.softcap is not None, widen=_widens(query))
    with _errors_of_triton():
        paged.attend_prompts[grid](
            output,
            *_tensors(query, cached),
            row_starts,
            contexts,
            cached.block_table,
            seen_until,
            scoring.sinks,
            *_strides(query, cached),
            len(contexts),
            window,
            chunk,
            scale,
            softcap,
            **constants,
            **tile.options,
        )
    return output


def attend_tokens(
    query: torch.Tensor,  # [H, T, D]
    cached: PagedKeys,
    scoring: Scoring,
    contexts: torch.Tensor,  # int32 [T]
    capability: tuple[int, int],
) -> torch.Tensor:  # [T, H, E]
    """Attention of rows that are the last tokens of one context each: see `attend_prompts`."""
    num_heads, num_rows, _ = query.shape
    heads = _heads(query, cached)
    tile = token_tile(heads, capability)
    window, chunk, scale, softcap = scoring.numbers
    longest = cached.block_table.shape[1] * cached.page_size
    longest = min(longest, min(window, chunk) + tile.block)  # what is seen begins with a block
    num_slots = min(paged.MAX_SPLITS.value, -(-longest // paged.SPLIT.value))
    partial_sums = query.new_empty(
        num_rows, num_heads, num_slots, heads.value_dim, dtype=torch.float32
    )
    partial_totals = query.new_empty(num_rows, num_heads, num_slots, 2, dtype=torch.float32)
    constants = heads.constants(tile, capped=scoring.softcap is not None, widen=_widens(query))
    output = query.new_empty(num_rows, num_heads, heads.value_dim)
    tiles = num_rows * -(-heads.group // tile.rows)
    kv_heads = num_heads // heads.group
    shares = min(num_slots, max(_FEWEST_SHARES, -(-_PROGRAMS // (tiles * kv_heads))))
    with _errors_of_triton():
        paged.attend_tokens[(tiles, kv_heads, shares)](
            partial_sums,
            partial_totals,
            *_tensors(query, cached),
            contexts,
            cached.block_table,
            *_strides(query, cached),
            num_slots,
            window,
            chunk,
            scale,
            softcap,
            **constants,
            **tile.options,
        )
        paged.combine_splits[(num_rows, num_heads)](
            output,
            partial_sums,
            partial_totals,
            contexts,
            scoring.sinks,
            num_slots,
            window,
            chunk,
            **{name: constants[name] for name in ("VALUE_DIM", "BLOCK", "VALUE_COLUMNS")},
        )
    return output


@contextmanager
def _errors_of_triton() -> Iterator[None]:
    """What Triton raises when it compiles, runs the C compiler, or writes to its cache."""
    try:
        yield
    except (TritonError, OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"Triton does not run here: {error}") from error


def _heads(query: torch.Tensor, cached: PagedKeys) -> Heads:
    return Heads(
        group=len(query) // cached.keys.shape[1],
        key_dim=cached.keys.shape[2],
        value_dim=cached.values.shape[2],
        page_size=cached.page_size,
        dtype=query.dtype,
    )


def _widens(query: torch.Tensor) -> bool:
    """Triton's interpreter, which computes on the host, multiplies bfloat16 wrongly."""
    return query.dtype == torch.bfloat16 and not isinstance(paged.attend_tokens, JITFunction)


def _tensors(query: torch.Tensor, cached: PagedKeys) -> tuple[torch.Tensor, ...]:
    return query, cached.keys, cached.values


def _strides(query: torch.Tensor, cached: PagedKeys) -> tuple[int, ...]:
    """In elements; the heads themselves are contiguous."""
    return (
        *query.stride()[:2],
        *cached.keys.stride()[:2],
        *cached.values.stride()[:2],
        cached.block_table.stride(0),
    )
