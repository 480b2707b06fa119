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

from engine.kv_cache import KVCache, KVShape

PAGED = "paged_per_sequence"

# Arguments that change the result and that this function does not implement. A model that passes
# one is refused here, which sends it to the exclusive lane (engine.probe).
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
class SpreadBatch:
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
    whole: Sequence[tuple[int, int]] = ()  # runs of the sequence whose tokens see each other

    @property
    def rows(self) -> slice:
        """This segment's rows in the batch."""
        return slice(self.first_row, self.first_row + self.num_rows)

    @property
    def context(self) -> int:
        """Tokens of this sequence that the last row sees, itself included."""
        return self.start + self.num_rows

    def mask(self, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
        """[num_rows, context], True where a row may look; None where every row sees everything."""
        if self.num_rows == 1 and (sliding_window is None or self.context <= sliding_window):
            return None
        rows = torch.arange(self.start, self.context, device=device)[:, None]
        columns = torch.arange(self.context, device=device)[None, :]
        visible = columns <= rows
        for start, stop in self.whole:
            visible[start - self.start : stop - self.start, start:stop] = True
        if sliding_window is not None:
            visible &= columns > rows - sliding_window
        return visible


@dataclass
class PagedBatch:
    """A packed batch over the KV cache. Rows beyond ``write_slots`` are padding."""

    cache: KVCache
    segments: Sequence[Segment]
    write_slots: torch.Tensor  # [real rows]: where each row's key and value go
    _masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)

    def on(self, device: torch.device) -> PagedBatch:
        """The same batch for layers on another device."""
        segments = [
            segment
            if isinstance(segment.slots, slice)
            else replace(segment, slots=segment.slots.to(device, non_blocking=True))
            for segment in self.segments
        ]
        return PagedBatch(self.cache, segments, self.write_slots.to(device, non_blocking=True))

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
        attended = [
            scaled_dot_product_attention(
                queries,
                *stored.read(segment.slots),
                attn_mask=self._mask(index, segment, sliding_window, query.device),
                scale=scaling,
                enable_gqa=queries.shape[1] != key.shape[0],
            )
            for index, (segment, queries) in enumerate(
                zip(self.segments, self._queries(query, key.shape[0]), strict=True)
            )
        ]
        return self._rows(attended, query, value.shape[2])

    def _queries(self, query: torch.Tensor, kv_heads: int) -> Sequence[torch.Tensor]:
        """Each segment's queries: [1, H, rows, D], of a single row [1, K, H / K, D].

        The heads that share a key/value head are rows of one product then: the same sums, over
        keys that are read once instead of once a head (6 to 10 times faster at 7 heads a group).
        """
        num_heads, _, dim = query.shape
        if all(segment.num_rows == 1 for segment in self.segments):
            rows = query[:, : len(self.segments)].transpose(0, 1)
            return rows.reshape(-1, 1, kv_heads, num_heads // kv_heads, dim).unbind(0)
        return [
            query[None, :, segment.rows]
            if segment.num_rows > 1
            else query[:, segment.first_row].reshape(1, kv_heads, num_heads // kv_heads, dim)
            for segment in self.segments
        ]

    def _rows(
        self, attended: Sequence[torch.Tensor], query: torch.Tensor, dim: int
    ) -> torch.Tensor:
        """The segments' outputs as rows of the batch [T, H, D]; padding rows are zero."""
        num_heads, num_rows, _ = query.shape
        rows = [
            output.view(1, num_heads, dim) if segment.num_rows == 1 else output[0].transpose(0, 1)
            for segment, output in zip(self.segments, attended, strict=True)
        ]
        padding = num_rows - len(self.write_slots)
        return torch.cat([*rows, query.new_zeros(padding, num_heads, dim)])

    def _mask(
        self, index: int, segment: Segment, sliding_window: int | None, device: torch.device
    ) -> torch.Tensor | None:
        """The segment's mask, computed once a forward instead of once a layer."""
        key = (index, sliding_window)
        if key not in self._masks:
            self._masks[key] = segment.mask(sliding_window, device)
        return self._masks[key]
