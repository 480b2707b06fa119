"""Decode steps as CUDA graphs: the few thousand kernels of a step are launched as one.

A graph replays what was captured with the addresses that were captured, so each batch size has
its own buffers, into which a step's numbers are copied. Where the platform has no graphs, the same
code runs the forward directly; tests on CPU use this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from engine.execution.attention.interface import AttentionBackend, Batch
from engine.execution.attention.packing import PagedRows, block_table, positions
from engine.execution.kv_cache import KVCache
from engine.platform.interface import Replay
from engine.platform.platforms import platform_of
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens

logger = logging.getLogger(__name__)

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Batch], torch.Tensor]
"""(token ids [T], positions [axes, T], rows of the head [T], batch) -> float32 [T, vocab]."""


class DecodeGraphs:
    """Runs decode steps at fixed batch sizes. Belongs to the engine's thread."""

    def __init__(
        self,
        forward: Forward,
        backend: AttentionBackend,
        cache: KVCache,
        *,
        max_pages: int,
        axes: int,
    ) -> None:
        """For steps of sequences of up to ``max_pages`` pages, with ``axes`` rotary positions."""
        self._axes = axes
        self._forward = forward
        self._backend = backend
        self._cache = cache
        self._max_pages = max_pages
        self._steps: dict[int, _Step] = {}
        self._record = platform_of(cache.device).graph_recorder()

    def logits(
        self,
        token_ids: torch.Tensor,
        scheduled: Sequence[ScheduledTokens],
        num_rows: int,
        keep: Sequence[int],
    ) -> torch.Tensor:
        """One decode step.

        Args:
            token_ids: int64 [at most ``num_rows``], on the device.
            scheduled: one token each.
            num_rows: rows of the step; the rest is padding.
            keep: ``num_rows`` row numbers, in the order in which their logits are wanted.

        Returns:
            float32 [num_rows, vocab]; overwritten by the next step.
        """
        step = self._steps.get(num_rows)
        if step is None:
            step = _Step(self._backend, self._cache, num_rows, self._max_pages, self._axes)
            self._steps[num_rows] = step
            step.load(token_ids, scheduled, keep)
            step.capture(self._forward, self._record)
        step.load(token_ids, scheduled, keep)
        return step.run()


class _Step:
    """One batch size: its buffers, and its graph once it is captured."""

    def __init__(
        self,
        backend: AttentionBackend,
        cache: KVCache,
        num_rows: int,
        max_pages: int,
        axes: int,
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._num_rows = num_rows
        self._max_pages = max_pages
        self._token_ids = torch.zeros(num_rows, dtype=torch.long, device=cache.device)
        self._axes = axes
        # All numbers in one tensor, so that a step copies once: write slot, context, row of the
        # head, rotary positions, pages.
        columns = 3 + axes + max_pages
        self._numbers = torch.zeros(num_rows, columns, dtype=torch.int32, device=cache.device)
        self._row_starts = torch.arange(num_rows + 1, dtype=torch.int32, device=cache.device)
        self._replay: Replay | None = None

    def load(
        self, token_ids: torch.Tensor, scheduled: Sequence[ScheduledTokens], keep: Sequence[int]
    ) -> None:
        """Copy a step's numbers into the buffers."""
        cache, size = self._cache, self._cache.page_size
        padding = ScheduledTokens(0, 1, [cache.scratch_page])
        scheduled = [*scheduled, *[padding] * (self._num_rows - len(scheduled))]
        table = block_table(cache, scheduled, self._max_pages)
        rotary = zip(*positions(scheduled, self._num_rows, self._axes), strict=True)
        rows = [
            [
                token.pages[token.start // size] * size + token.start % size,
                token.stop,
                row,
                *position,
                *pages,
            ]
            for token, row, position, pages in zip(scheduled, keep, rotary, table, strict=True)
        ]
        self._numbers.copy_(upload(rows, cache.device, torch.int32))
        self._token_ids[: len(token_ids)] = token_ids

    def capture(self, forward: Forward, record: Callable[[Replay], Replay]) -> None:
        """Capture the forward on the loaded numbers; if that fails, it runs without a graph."""

        def run() -> torch.Tensor:
            write_slot, context, row = self._numbers[:, :3].unbind(1)
            position = self._numbers[:, 3 : 3 + self._axes].t()
            rows = PagedRows(
                write_slots=write_slot.long(),
                row_starts=self._row_starts,
                contexts=context.contiguous(),
                block_table=self._numbers[:, 3 + self._axes :].contiguous(),
            )
            batch = self._backend.decode_batch(self._cache, rows)
            return forward(self._token_ids, position.long(), row.long(), batch)

        self._replay = run
        try:
            self._replay = record(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("decode runs without a CUDA graph at %d rows: %s", self._num_rows, error)

    def run(self) -> torch.Tensor:
        """The step on the loaded numbers."""
        assert self._replay is not None
        return self._replay()
