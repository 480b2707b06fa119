"""Attention of a packed batch by this engine's own kernels for CUDA, in Triton.

They compute every `AttentionForm`, and chunks of prompts whose tokens see later ones
(`engine.execution.kernels`). A sequence has the same bits in any batch, and a long one is split.

Shapes: T rows in the packed batch, H query heads, K key/value heads, D and E sizes of a key and of
a value.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import chain

import torch

from engine.execution.attention.interface import (
    AttentionBackend,
    AttentionForm,
    AttentionNeeds,
)
from engine.execution.attention.packing import PagedRows, paged_rows
from engine.execution.kv_cache import KVCache, KVShape
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens

_CAPABILITY = (8, 0)  # the oldest that the kernels are compiled for in the tests
_MAX_HEAD_DIM = 256  # larger tiles do not fit into a multiprocessor
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class TritonAttention(AttentionBackend):
    """The kernels of `engine.execution.kernels`."""

    name = "triton kernel"
    decodes_apart = True  # tokens are computed in splits, and chunks of prompts are not
    captures_decode = True
    kv_layout = "tokens first"

    @classmethod
    def problem(cls, needs: AttentionNeeds) -> str | None:
        """Why the kernels do not support a model: device, dtype, or heads."""
        return triton_problem(needs.shapes.values(), needs.device)

    def batch(
        self, cache: KVCache, scheduled: Sequence[ScheduledTokens], num_rows: int, *, decode: bool
    ) -> TritonBatch:
        """See `AttentionBackend.batch`."""
        rows = paged_rows(cache, scheduled, num_rows, decode=decode)
        seen_until = None if decode else _seen_until(scheduled, num_rows, cache.device)
        return TritonBatch(cache, rows, decode, seen_until)

    def decode_batch(self, cache: KVCache, rows: PagedRows) -> TritonBatch:
        """See `AttentionBackend.decode_batch`."""
        return TritonBatch(cache, rows, decode=True)


def triton_problem(shapes: Collection[KVShape], device: torch.device) -> str | None:
    """Why the kernels do not support a cache of these shapes; None if they do."""
    if device.type != "cuda":
        return "they are CUDA kernels"
    if find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.is_available() and _capability(device) < _CAPABILITY:
        return "they need a GPU of compute capability 8.0 (Ampere) or newer"
    for shape in shapes:
        if shape.dtype not in _DTYPES:
            return f"keys and values are {shape.dtype}"
        if max(shape.key_dim, shape.value_dim) > _MAX_HEAD_DIM:
            return f"heads have the sizes {shape.key_dim} and {shape.value_dim}"
    return None


@dataclass(frozen=True)
class TritonBatch:
    """A packed batch over the KV cache.

    Attributes:
        cache: where keys and values are.
        rows: where the rows belong.
        decode: whether each row is the last token of a context.
        seen_until: int32 [2, T], the first token that each row does not see: in layers without a
            window, and in those with one; None if it is that after its own everywhere.
    """

    cache: KVCache
    rows: PagedRows
    decode: bool
    seen_until: torch.Tensor | None = None

    def on(self, device: torch.device) -> TritonBatch:
        """The same batch for layers on another device."""
        seen_until = self.seen_until
        if seen_until is not None:
            seen_until = seen_until.to(device, non_blocking=True)
        return replace(self, rows=self.rows.on(device), seen_until=seen_until)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [H, T, D]
        key: torch.Tensor,  # [K, T, D]
        value: torch.Tensor,  # [K, T, E]
        form: AttentionForm,
    ) -> torch.Tensor:  # [T, H, E]
        """Write the new keys and values, then attend, all sequences at once.

        Raises:
            KernelError: the kernels cannot be compiled or launched here.
        """
        # Triton comes with torch's builds for CUDA, and is not needed elsewhere.
        from engine.execution.kernels import launch  # noqa: PLC0415

        stored = self.cache.layers[layer]
        stored.write(self.rows.write_slots, key, value)
        query = query if query.stride(2) == 1 else query.contiguous()
        rows = self.rows
        cached = launch.PagedKeys(
            stored.keys, stored.values, rows.block_table, self.cache.page_size
        )
        scoring = launch.Scoring(
            scale=query.shape[2] ** -0.5 if form.scaling is None else form.scaling,
            window=form.sliding_window,
            chunk=form.chunk,
            softcap=form.softcap,
            sinks=form.sinks,
        )
        capability = _capability(query.device)
        with torch.cuda.device_of(query):  # Triton launches on the current device
            if self.decode:
                return launch.attend_tokens(query, cached, scoring, rows.contexts, capability)
            has_window = form.sliding_window is not None
            seen_until = None if self.seen_until is None else self.seen_until[int(has_window)]
            return launch.attend_prompts(
                query, cached, scoring, rows.row_starts, rows.contexts, seen_until, capability
            )


def _seen_until(
    scheduled: Sequence[ScheduledTokens], num_rows: int, device: torch.device
) -> torch.Tensor | None:
    """See `TritonBatch.seen_until`."""
    if not any(tokens.bidirectional_spans for tokens in scheduled):
        return None
    padding = ScheduledTokens(0, num_rows - sum(each.num_tokens for each in scheduled), ())
    layers = [
        list(chain(*(_stops(tokens, windows=windows) for tokens in (*scheduled, padding))))
        for windows in (False, True)
    ]
    return upload(layers, device, torch.int32)


def _stops(tokens: ScheduledTokens, *, windows: bool) -> list[int]:
    """For each token the first one that it does not see, in layers with or without windows."""
    stops = list(range(tokens.start + 1, tokens.stop + 1))
    if windows or not tokens.spans_in_windows:
        for start, stop in tokens.bidirectional_spans:
            stops[start - tokens.start : stop - tokens.start] = [stop] * (stop - start)
    return stops


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """Of a GPU; the oldest one for Triton's interpreter, which has none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _CAPABILITY
