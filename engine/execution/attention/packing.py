"""A packed forward as the numbers that the model and attention take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from engine.execution.kv_cache import KVCache
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens


@dataclass(frozen=True)
class PagedRows:
    """Where the rows of a packed batch belong, for kernels that read a table of pages.

    Every tensor is on the device. There are T rows of N sequences, padding included; the longest
    has P pages.

    Attributes:
        write_slots: int64 [T]: where each row's key and value go; padding goes to the scratch page.
        row_starts: int32 [N + 1]: first row of each sequence, and T.
        contexts: int32 [N]: tokens that each sequence's last row sees.
        block_table: int32 [N, P]: pages of each sequence.
    """

    write_slots: torch.Tensor
    row_starts: torch.Tensor
    contexts: torch.Tensor
    block_table: torch.Tensor

    def on(self, device: torch.device) -> PagedRows:
        """The same numbers on another device."""
        return PagedRows(
            self.write_slots.to(device, non_blocking=True),
            self.row_starts.to(device, non_blocking=True),
            self.contexts.to(device, non_blocking=True),
            self.block_table.to(device, non_blocking=True),
        )


def paged_rows(
    cache: KVCache, scheduled: Sequence[ScheduledTokens], num_rows: int, *, decode: bool
) -> PagedRows:
    """Send the numbers of a forward to the device.

    Args:
        cache: whose pages they are.
        scheduled: the sequences' rows, in order.
        num_rows: T. Rows after the tokens are one more sequence, in the scratch page; in a decode
            step, one each.
        decode: it is a decode step, whose sequences have one row each.
    """
    padding = num_rows - sum(tokens.num_tokens for tokens in scheduled)
    if padding and decode:
        scheduled = [*scheduled, *[ScheduledTokens(0, 1, [cache.scratch_page])] * padding]
    elif padding:
        scratch = [cache.scratch_page] * cache.pages_for(padding)
        scheduled = [*scheduled, ScheduledTokens(0, padding, scratch)]
    starts = [0, *accumulate(tokens.num_tokens for tokens in scheduled)]
    return PagedRows(
        write_slots=upload(write_slots(scheduled, cache.page_size), cache.device),
        row_starts=upload(starts, cache.device, torch.int32),
        contexts=upload([tokens.stop for tokens in scheduled], cache.device, torch.int32),
        block_table=upload(block_table(cache, scheduled), cache.device, torch.int32),
    )


def positions(scheduled: Sequence[ScheduledTokens], num_rows: int, axes: int) -> list[list[int]]:
    """The rotary position of every row, on each axis; 0 for padding."""
    real = [tokens.positions(axes) for tokens in scheduled]
    rows = [[i for places in real for i in places[axis]] for axis in range(axes)]
    return [row + [0] * (num_rows - len(row)) for row in rows]


def write_slots(scheduled: Sequence[ScheduledTokens], page_size: int) -> list[int]:
    """Where the keys and values of all tokens go (`engine.execution.kv_cache`)."""
    return [
        tokens.pages[position // page_size] * page_size + position % page_size
        for tokens in scheduled
        for position in range(tokens.start, tokens.stop)
    ]


def block_table(
    cache: KVCache, scheduled: Sequence[ScheduledTokens], width: int = 0
) -> list[list[int]]:
    """The pages of each context, in rows of one length that is at least ``width``."""
    used = [list(tokens.pages[: cache.pages_for(tokens.stop)]) for tokens in scheduled]
    width = max([width, *map(len, used)])
    return [row + [cache.scratch_page] * (width - len(row)) for row in used]
