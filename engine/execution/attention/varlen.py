"""Attention of a packed batch in one call of a paged kernel: the CUDA counterpart of `PagedBatch`.

`torch.nn.attention.varlen.varlen_attn` reads keys and values through a table of pages, one row of
it for each sequence. With ``num_splits=1`` it does not split a long context by what else is in the
batch, and is documented to give a sequence the same bits whatever the others are.

Shapes: T rows in the packed batch, N sequences in it, padding included, P pages of the longest.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch.nn.attention.varlen import varlen_attn

from engine.execution.attention.packing import ScheduledTokens, write_slots
from engine.execution.kv_cache import KVCache, KVShape
from engine.platform.transfer import upload

_PAGE_MULTIPLE = 256
_MAX_HEAD_DIM = 256
_CAPABILITY = (8, 0)  # of flash attention, which it is
_DTYPES = (torch.bfloat16, torch.float16)


def varlen_problem(shapes: Collection[KVShape], page_size: int, device: torch.device) -> str | None:
    """Why the kernel does not take a cache of these shapes; None where it does."""
    if device.type != "cuda":
        return "it is a CUDA kernel"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < _CAPABILITY:
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    if page_size % _PAGE_MULTIPLE:
        return f"page_size is {page_size}, not a multiple of {_PAGE_MULTIPLE}"
    for shape in shapes:
        if shape.dtype not in _DTYPES:
            return f"keys and values are {shape.dtype}"
        if shape.key_dim != shape.value_dim or shape.key_dim % 8 or shape.key_dim > _MAX_HEAD_DIM:
            return f"heads have the sizes {shape.key_dim} and {shape.value_dim}"
    return None


@dataclass(frozen=True)
class VarlenBatch:
    """A packed batch over the KV cache; every tensor is on the device.

    Attributes:
        write_slots: int64 [T]: where each row's key and value go; padding goes to the scratch page.
        row_starts: int32 [N + 1]: first row of each sequence, and T.
        contexts: int32 [N]: tokens that each sequence's last row sees.
        block_table: int32 [N, P]: pages of each sequence.
        max_rows: at least the rows of the longest sequence. Kernels are chosen by it, so it is the
            same for all forwards of a kind.
    """

    cache: KVCache
    write_slots: torch.Tensor
    row_starts: torch.Tensor
    contexts: torch.Tensor
    block_table: torch.Tensor
    max_rows: int

    def on(self, device: torch.device) -> VarlenBatch:
        """The same batch for layers on another device."""
        return replace(
            self,
            write_slots=self.write_slots.to(device, non_blocking=True),
            row_starts=self.row_starts.to(device, non_blocking=True),
            contexts=self.contexts.to(device, non_blocking=True),
            block_table=self.block_table.to(device, non_blocking=True),
        )

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [H, T, D]
        key: torch.Tensor,  # [K, T, D]
        value: torch.Tensor,  # [K, T, D]
        *,
        scaling: float | None,
        sliding_window: int | None,
    ) -> torch.Tensor:  # [T, H, D]
        """Write the new keys and values, then attend, all sequences at once."""
        stored = self.cache.layers[layer]
        stored.write(self.write_slots, key, value)
        keys, values = stored.pages(self.cache.page_size)
        output = varlen_attn(
            query.transpose(0, 1),
            keys,
            values,
            self.row_starts,
            None,
            self.max_rows,
            self.block_table.shape[1] * self.cache.page_size,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=query.shape[0] != key.shape[0],
            seqused_k=self.contexts,
            block_table=self.block_table,
            num_splits=1,
        )
        assert isinstance(output, torch.Tensor)
        return output


def varlen_batch(
    cache: KVCache, pieces: Sequence[ScheduledTokens], num_rows: int, max_rows: int
) -> VarlenBatch:
    """Lay a batch out for the kernel.

    Args:
        cache: whose pages they are.
        pieces: the sequences' rows, in order.
        num_rows: T. Rows behind the last piece are one more sequence, in the scratch page; in a
            decode step, where ``max_rows`` is 1, one each.
        max_rows: see `VarlenBatch`.
    """
    real = sum(piece.num_tokens for piece in pieces)
    padding = num_rows - real
    if padding and max_rows == 1:
        pieces = [*pieces, *[ScheduledTokens(0, 1, [cache.scratch_page])] * padding]
    elif padding:
        scratch = [cache.scratch_page] * cache.pages_for(padding)
        pieces = [*pieces, ScheduledTokens(0, padding, scratch)]
    starts = [0, *accumulate(piece.num_tokens for piece in pieces)]
    return VarlenBatch(
        cache,
        write_slots=upload(write_slots(pieces, cache.page_size), cache.device),
        row_starts=upload(starts, cache.device, torch.int32),
        contexts=upload([piece.context for piece in pieces], cache.device, torch.int32),
        block_table=upload(block_table(cache, pieces), cache.device, torch.int32),
        max_rows=max_rows,
    )


def block_table(
    cache: KVCache, pieces: Sequence[ScheduledTokens], width: int = 0
) -> list[list[int]]:
    """The pages of each piece's context, in rows of one length that is at least ``width``."""
    used = [list(piece.pages[: cache.pages_for(piece.context)]) for piece in pieces]
    width = max([width, *map(len, used)])
    return [row + [cache.scratch_page] * (width - len(row)) for row in used]
