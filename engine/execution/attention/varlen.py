"""Attention of a packed batch in one call of a paged kernel: the CUDA counterpart of `paged`.

`torch.nn.attention.varlen.varlen_attn` reads keys and values through a table of pages, one row of
it for each sequence. With ``num_splits=1`` it does not split a long context depending on the batch,
and is documented to give a sequence the same bits in any batch. The kernel is FlashAttention 2's;
those that a process can activate in its place (`torch.nn.attention.activate_flash_attention_impl`)
take other arguments and give other bits.

Shapes: T rows in the packed batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import current_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from engine.execution.attention.interface import (
    AttentionBackend,
    AttentionForm,
    AttentionNeeds,
    UnsupportedAttentionError,
)
from engine.execution.attention.packing import PagedRows, paged_rows
from engine.execution.kv_cache import KVCache, KVShape
from engine.requests.request import ScheduledTokens

_PAGE_MULTIPLE = 256
_MAX_HEAD_DIM = 256
_CAPABILITY = (8, 0)  # of flash attention, which it is
_DTYPES = (torch.bfloat16, torch.float16)
_MOST_KEYS = 1 << 24
"""Told to the kernel as the longest context, which it need not be: more tokens than any window has.

A layer with a window takes another kernel, with other bits, where no context reaches beyond the
window. By the longest context of the batch, that choice would depend on other tasks."""


class VarlenAttention(AttentionBackend):
    """torch's kernel for sequences of various lengths."""

    name = "paged kernel"
    decodes_apart = True  # it chooses another kernel where a sequence has one row
    captures_decode = True
    kv_layout = "tokens first"

    @classmethod
    def problem(cls, needs: AttentionNeeds) -> str | None:
        """Why the kernel does not support a model: device, page size, dtype, heads or masks."""
        problem = varlen_problem(needs.shapes.values(), needs.page_size, needs.device)
        if problem is None and needs.bidirectional_spans:
            return "the tokens of an image attend to each other"
        return problem

    def batch(
        self, cache: KVCache, scheduled: Sequence[ScheduledTokens], num_rows: int, *, decode: bool
    ) -> VarlenBatch:
        """See `AttentionBackend.batch`."""
        rows = paged_rows(cache, scheduled, num_rows, decode=decode)
        return VarlenBatch(cache, rows, 1 if decode else self.max_rows)

    def decode_batch(self, cache: KVCache, rows: PagedRows) -> VarlenBatch:
        """See `AttentionBackend.decode_batch`."""
        return VarlenBatch(cache, rows, max_rows=1)


def varlen_problem(shapes: Collection[KVShape], page_size: int, device: torch.device) -> str | None:
    """Why the kernel does not support a cache of these shapes; None if it does."""
    if (problem := gpu_problem(device)) is not None:
        return problem
    if page_size % _PAGE_MULTIPLE:
        return f"page_size is {page_size}, not a multiple of {_PAGE_MULTIPLE}"
    for shape in shapes:
        if shape.dtype not in _DTYPES:
            return f"keys and values are {shape.dtype}"
        if shape.key_dim != shape.value_dim or shape.key_dim % 8 or shape.key_dim > _MAX_HEAD_DIM:
            return f"heads have the sizes {shape.key_dim} and {shape.value_dim}"
    return None


def gpu_problem(device: torch.device) -> str | None:
    """Why the kernel does not run on a device, in this process; None if it does."""
    if device.type != "cuda":
        return "it is a CUDA kernel"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < _CAPABILITY:
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    if (other := current_flash_attention_impl()) is not None:
        return f"this process has activated {other} in its place"
    return None


@dataclass(frozen=True)
class VarlenBatch:
    """A packed batch over the KV cache.

    Attributes:
        cache: where keys and values are.
        rows: where the rows belong.
        max_rows: at least the rows of the longest sequence. Kernels are chosen by it, so it is the
            same for all forwards of a kind.
    """

    cache: KVCache
    rows: PagedRows
    max_rows: int

    def on(self, device: torch.device) -> VarlenBatch:
        """The same batch for layers on another device."""
        return replace(self, rows=self.rows.on(device))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [H, T, D]
        key: torch.Tensor,  # [K, T, D]
        value: torch.Tensor,  # [K, T, D]
        form: AttentionForm,
    ) -> torch.Tensor:  # [T, H, D]
        """Write the new keys and values, then attend, all sequences at once.

        Raises:
            UnsupportedAttentionError: the kernel refuses these shapes. All ranks of a split model
                have the same, so all of them get it, and stay in step.
        """
        if not form.is_usual or form.chunk is not None:
            raise UnsupportedAttentionError("the kernel has no soft caps, sinks and chunks")
        stored, rows = self.cache.layers[layer], self.rows
        stored.write(rows.write_slots, key, value)
        keys, values = stored.pages(self.cache.page_size)
        try:
            output = varlen_attn(
                query.transpose(0, 1),
                keys,
                values,
                rows.row_starts,
                # It has to be there, but the kernel reads contexts and the table of pages instead.
                rows.row_starts,
                self.max_rows,
                _MOST_KEYS,
                scale=form.scaling,
                window_size=(-1 if form.sliding_window is None else form.sliding_window - 1, 0),
                enable_gqa=query.shape[0] != key.shape[0],
                seqused_k=rows.contexts,
                block_table=rows.block_table,
                num_splits=1,
            )
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except (RuntimeError, ValueError) as error:
            raise UnsupportedAttentionError(f"the kernel refuses its inputs: {error}") from error
        assert isinstance(output, torch.Tensor)
        return output
