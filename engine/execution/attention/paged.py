"""Attention over the paged KV cache, computed sequence by sequence.

Because each sequence has its own call, the shape of that call, and so its bits, depend on this
sequence alone. On a CPU one compiled call does this for all rows that are single tokens
(`cpu_decode`).

Shapes: T rows in the packed batch, H query heads, K key/value heads, D head size, L tokens of
context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.execution.attention.cpu_decode import DecodeTokens, decode_tokens, has_kernel
from engine.execution.attention.interface import (
    AttentionBackend,
    AttentionForm,
    AttentionNeeds,
)
from engine.execution.attention.packing import write_slots
from engine.execution.kv_cache import KVCache, Slots
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens


class PerSequenceAttention(AttentionBackend):
    """torch's own attention, for each sequence; the compiled kernel for decode on a CPU.

    It supports every model that calls the attention interface, on every device.
    """

    name = "per sequence"
    decodes_apart = False
    captures_decode = False

    @classmethod
    def problem(cls, needs: AttentionNeeds) -> str | None:
        """None: no problem is known beforehand."""
        return None

    def batch(
        self, cache: KVCache, scheduled: Sequence[ScheduledTokens], num_rows: int, *, decode: bool
    ) -> PagedBatch:
        """See `AttentionBackend.batch`."""
        return paged_batch(cache, scheduled)


@dataclass(frozen=True)
class SequenceRows:
    """Consecutive rows of a packed batch that belong to one sequence.

    Attributes:
        first_row: of them, in the batch.
        tokens: that the rows hold.
        slots: of the sequence's tokens in the cache, from its first to the last of these.
    """

    first_row: int
    tokens: ScheduledTokens
    slots: Slots

    @property
    def rows(self) -> slice:
        """These rows in the batch."""
        return slice(self.first_row, self.first_row + self.tokens.num_tokens)

    def is_causal(self, form: AttentionForm) -> bool:
        """Whether each row attends to all rows up to itself only: then no mask is needed."""
        tokens = self.tokens
        within = all(n is None or tokens.stop <= n for n in (form.sliding_window, form.chunk))
        first_or_single = tokens.start == 0 or tokens.num_tokens == 1
        return within and not self._spans(form.sliding_window) and first_or_single

    def _spans(self, sliding_window: int | None) -> Sequence[tuple[int, int]]:
        """Runs of tokens that attend to each other in a layer with this window."""
        tokens = self.tokens
        here = sliding_window is not None or not tokens.spans_in_windows
        return tokens.bidirectional_spans if here else ()

    def mask(
        self, form: AttentionForm, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        """[rows, L], 0 where a row may attend and -inf elsewhere; None if `is_causal`."""
        if self.is_causal(form):
            return None
        first, end = self.tokens.start, self.tokens.stop
        rows = torch.arange(first, end, device=device)[:, None]
        columns = torch.arange(end, device=device)[None, :]
        visible = columns <= rows
        for start, stop in self._spans(form.sliding_window):
            visible[start - first : stop - first, start:stop] = True
        if form.sliding_window is not None:
            visible &= columns > rows - form.sliding_window
        if form.chunk is not None:
            visible &= columns >= rows - rows % form.chunk
        return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(
            ~visible, -torch.inf
        )


@dataclass
class PagedBatch:
    """A packed batch over the KV cache. Rows beyond ``write_slots`` are padding.

    ``tokens`` are the rows that the compiled kernel takes, ``sequences`` all others.
    """

    cache: KVCache
    sequences: Sequence[SequenceRows]
    write_slots: torch.Tensor  # [real rows]: where each row's key and value go
    tokens: DecodeTokens | None = None
    _masks: dict[tuple[int, int | None, int | None], torch.Tensor | None] = field(
        default_factory=dict
    )

    def on(self, device: torch.device) -> PagedBatch:
        """The same batch for layers on another device."""
        sequences = [
            each
            if isinstance(each.slots, slice)
            else replace(each, slots=each.slots.to(device, non_blocking=True))
            for each in self.sequences
        ]
        slots = self.write_slots.to(device, non_blocking=True)
        return PagedBatch(self.cache, sequences, slots, self.tokens)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Write the new keys and values, then attend sequence by sequence."""
        stored = self.cache.layers[layer]
        real = len(self.write_slots)
        stored.write(self.write_slots, key[:, :real], value[:, :real])
        num_heads, num_rows, _ = query.shape
        output = query.new_empty(num_rows, num_heads, value.shape[2])
        output[real:] = 0
        if self.tokens is not None:
            self.tokens.attend(query, stored, output, form)
        for index, sequence in enumerate(self.sequences):
            keys, values = stored.read(sequence.slots)
            mask = self._mask(index, sequence, form, query)
            if not form.is_usual:
                output[sequence.rows] = plainly_attended(
                    query[:, sequence.rows], keys[0], values[0], mask, form
                ).transpose(0, 1)
                continue
            several = sequence.tokens.num_tokens > 1
            attended = scaled_dot_product_attention(
                _queries(query, sequence, len(key)),
                keys,
                values,
                attn_mask=mask,
                is_causal=several and sequence.is_causal(form),
                scale=form.scaling,
                enable_gqa=several and num_heads != len(key),
            )
            output[sequence.rows] = (
                attended[0].transpose(0, 1) if several else attended.view(1, num_heads, -1)
            )
        return output

    def _mask(
        self, index: int, sequence: SequenceRows, form: AttentionForm, like: torch.Tensor
    ) -> torch.Tensor | None:
        """The mask of a sequence, computed once a forward instead of once a layer."""
        key = (index, form.sliding_window, form.chunk)
        if key not in self._masks:
            self._masks[key] = sequence.mask(form, like.dtype, like.device)
        return self._masks[key]


def _queries(query: torch.Tensor, sequence: SequenceRows, kv_heads: int) -> torch.Tensor:
    """A sequence's queries: [1, H, rows, D], of a single row [1, K, H / K, D].

    The heads that share a key/value head are rows of one product then: the same sums, over
    keys that are read once instead of once a head (6 to 10 times faster at 7 heads a group).
    """
    if sequence.tokens.num_tokens > 1:
        return query[None, :, sequence.rows]
    num_heads, _, dim = query.shape
    return query[:, sequence.first_row].reshape(1, kv_heads, num_heads // kv_heads, dim)


def plainly_attended(
    query: torch.Tensor,  # [H, rows, D]
    keys: torch.Tensor,  # [K, L, D]
    values: torch.Tensor,  # [K, L, E]
    mask: torch.Tensor | None,  # [rows, L]; None: rows attend to all rows up to themselves
    form: AttentionForm,
) -> torch.Tensor:  # [H, rows, E]
    """Attention of a sequence in plain operations, in float32, a key/value head at a time."""
    num_heads, num_rows, dim = query.shape
    group = num_heads // len(keys)
    scale = dim**-0.5 if form.scaling is None else form.scaling
    if mask is None and num_rows > 1:
        mask = query.new_full((num_rows, num_rows), -torch.inf).triu(1)
    outputs = []
    for head in range(len(keys)):
        own = slice(head * group, (head + 1) * group)
        scores = query[own].float() @ keys[head].float().t() * scale
        if form.softcap is not None:
            scores = form.softcap * torch.tanh(scores / form.softcap)
        if mask is not None:
            scores = scores + mask.float()
        if form.sinks is not None:
            sinks = form.sinks[own].float()[:, None, None].expand(group, num_rows, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1)[..., : keys.shape[1]]
        outputs.append(weights @ values[head].float())
    return torch.cat(outputs).to(query.dtype)


def paged_batch(cache: KVCache, scheduled: Sequence[ScheduledTokens]) -> PagedBatch:
    """Lay a batch out: single tokens for the compiled kernel, where there is one."""
    sequences: list[SequenceRows] = []
    singles: dict[int, ScheduledTokens] = {}
    by_kernel = has_kernel(cache)
    row = 0
    for tokens in scheduled:
        if tokens.num_tokens == 1 and by_kernel:
            singles[row] = tokens
        else:
            sequences.append(SequenceRows(row, tokens, cache.slots(tokens.pages, 0, tokens.stop)))
        row += tokens.num_tokens
    return PagedBatch(
        cache,
        sequences,
        upload(write_slots(scheduled, cache.page_size), cache.device),
        decode_tokens(cache, singles) if singles else None,
    )
