"""The attention function given to transformers: paged, and computed per sequence.

transformers' modules call the function registered under `PAGED` with the projected queries, keys
and values of a packed batch (https://huggingface.co/docs/transformers/attention_interface). Each
row of the batch is one token of some sequence. Because every sequence attends in a call of its own,
the shape of that call, and so its bits, depend on this sequence alone.

Shapes: T rows in the packed batch, H query heads, K key/value heads, D head size, L tokens of
context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from engine.execution.attention.cpu_decode import DecodeTokens, decode_tokens, has_kernel
from engine.execution.attention.packing import ScheduledTokens, write_slots
from engine.execution.kv_cache import KVCache, KVShape
from engine.platform.transfer import upload

PAGED = "paged_per_sequence"

# Arguments that change the result and that this function does not implement. A model that passes
# one is refused here, which sends it to the exclusive lane (engine.execution.batch_invariance).
_UNSUPPORTED = ("softcap", "s_aux", "head_mask", "position_bias", "attention_bias")


class UnsupportedAttentionError(NotImplementedError):
    """The model needs attention that the batched lane does not compute."""


class Attend(Protocol):
    """What computes attention for the current forward."""

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
        """Attention output of one layer."""
        ...


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    batch: Attend | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, H, T, D] -> output [1, T, H, D]."""
    if batch is None:
        raise UnsupportedAttentionError("the model does not pass keyword arguments to attention")
    if asked := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise UnsupportedAttentionError(f"attention with {', '.join(asked)}")
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise UnsupportedAttentionError("the attention module has no layer_idx")
    output = batch.attend(
        layer, query[0], key[0], value[0], scaling=scaling, sliding_window=sliding_window
    )
    return output.unsqueeze(0), None


AttentionInterface.register(PAGED, paged_attention)


@dataclass(frozen=True)
class PlacedBatch:
    """A batch of a model whose layers lie on several devices: for each layer, its device's."""

    batches: Mapping[int, Attend]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Attend on the layer's device."""
        return self.batches[layer].attend(
            layer, query, key, value, scaling=scaling, sliding_window=sliding_window
        )


@dataclass
class ShapeRecorder:
    """Stands in for a batch once, at load, to learn the KV shapes of the model's layers."""

    shapes: dict[int, KVShape] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Note the shapes and return zeros."""
        self.shapes[layer] = KVShape(key.shape[0], key.shape[2], value.shape[2], key.dtype)
        return query.new_zeros(query.shape[1], query.shape[0], value.shape[2])


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a packed batch that belong to one sequence.

    The rows hold the tokens ``start .. start + num_rows`` of the sequence; ``slots`` are where its
    tokens
    ``0 .. start + num_rows`` lie in the cache.
    """

    first_row: int
    num_rows: int
    start: int
    slots: slice | torch.Tensor
    bidirectional_spans: Sequence[tuple[int, int]] = ()  # their tokens see each other

    @property
    def rows(self) -> slice:
        """This segment's rows in the batch."""
        return slice(self.first_row, self.first_row + self.num_rows)

    @property
    def context(self) -> int:
        """Tokens of this sequence that the last row sees, itself included."""
        return self.start + self.num_rows

    def is_causal(self, sliding_window: int | None) -> bool:
        """Whether a row sees the rows before it, itself, and nothing else: no mask is needed."""
        within = sliding_window is None or self.context <= sliding_window
        return within and not self.bidirectional_spans and (self.start == 0 or self.num_rows == 1)

    def mask(
        self, sliding_window: int | None, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        """[num_rows, context], 0 where a row may look and -inf elsewhere; None if `is_causal`."""
        if self.is_causal(sliding_window):
            return None
        rows = torch.arange(self.start, self.context, device=device)[:, None]
        columns = torch.arange(self.context, device=device)[None, :]
        visible = columns <= rows
        for start, stop in self.bidirectional_spans:
            visible[start - self.start : stop - self.start, start:stop] = True
        if sliding_window is not None:
            visible &= columns > rows - sliding_window
        return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(
            ~visible, -torch.inf
        )


@dataclass
class PagedBatch:
    """A packed batch over the KV cache. Rows beyond ``write_slots`` are padding.

    ``tokens`` are the rows that the compiled kernel takes, ``segments`` all others.
    """

    cache: KVCache
    segments: Sequence[Segment]
    write_slots: torch.Tensor  # [real rows]: where each row's key and value go
    tokens: DecodeTokens | None = None
    _masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)

    def on(self, device: torch.device) -> PagedBatch:
        """The same batch for layers on another device."""
        segments = [
            segment
            if isinstance(segment.slots, slice)
            else replace(segment, slots=segment.slots.to(device, non_blocking=True))
            for segment in self.segments
        ]
        slots = self.write_slots.to(device, non_blocking=True)
        return PagedBatch(self.cache, segments, slots, self.tokens)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Write the new keys and values, then attend sequence by sequence."""
        stored = self.cache.layers[layer]
        real = len(self.write_slots)
        stored.write(self.write_slots, key[:, :real], value[:, :real])
        num_heads, num_rows, _ = query.shape
        output = query.new_empty(num_rows, num_heads, value.shape[2])
        output[real:] = 0
        if self.tokens is not None:
            self.tokens.attend(
                query, stored, output, scaling=scaling, sliding_window=sliding_window
            )
        for index, segment in enumerate(self.segments):
            attended = scaled_dot_product_attention(
                _queries(query, segment, len(key)),
                *stored.read(segment.slots),
                attn_mask=self._mask(index, segment, sliding_window, query),
                is_causal=segment.num_rows > 1 and segment.is_causal(sliding_window),
                scale=scaling,
                enable_gqa=segment.num_rows > 1 and num_heads != len(key),
            )
            output[segment.rows] = (
                attended.view(1, num_heads, -1)
                if segment.num_rows == 1
                else attended[0].transpose(0, 1)
            )
        return output

    def _mask(
        self, index: int, segment: Segment, sliding_window: int | None, like: torch.Tensor
    ) -> torch.Tensor | None:
        """The segment's mask, computed once a forward instead of once a layer."""
        key = (index, sliding_window)
        if key not in self._masks:
            self._masks[key] = segment.mask(sliding_window, like.dtype, like.device)
        return self._masks[key]


def _queries(query: torch.Tensor, segment: Segment, kv_heads: int) -> torch.Tensor:
    """A segment's queries: [1, H, rows, D], of a single row [1, K, H / K, D].

    The heads that share a key/value head are rows of one product then: the same sums, over
    keys that are read once instead of once a head (6 to 10 times faster at 7 heads a group).
    """
    if segment.num_rows > 1:
        return query[None, :, segment.rows]
    num_heads, _, dim = query.shape
    return query[:, segment.first_row].reshape(1, kv_heads, num_heads // kv_heads, dim)


def paged_batch(cache: KVCache, pieces: Sequence[ScheduledTokens]) -> PagedBatch:
    """Lay a batch out: pieces of a single token for the compiled kernel, where there is one."""
    segments: list[Segment] = []
    singles: dict[int, ScheduledTokens] = {}
    by_kernel = has_kernel(cache)
    row = 0
    for piece in pieces:
        if piece.num_tokens == 1 and by_kernel:
            singles[row] = piece
        else:
            slots = cache.slots(piece.pages, 0, piece.context)
            segments.append(
                Segment(row, piece.num_tokens, piece.start, slots, piece.bidirectional_spans)
            )
        row += piece.num_tokens
    return PagedBatch(
        cache,
        segments,
        upload(write_slots(pieces, cache.page_size), cache.device),
        decode_tokens(cache, singles) if singles else None,
    )
