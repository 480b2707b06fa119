"""The paged KV cache: who owns which page, and where the keys and values of each layer lie.

A page holds the keys and values of ``page_size`` consecutive tokens of one sequence in every layer.
Token ``i`` of a sequence lies in slot ``pages[i // page_size] * page_size + i % page_size``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch


@dataclass(frozen=True)
class KVShape:
    """Shape of one layer's keys and values for one token."""

    num_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in this layer."""
        return self.num_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True)
class LayerKV:
    """One layer's storage: [slots, kv_heads, key_dim] and [slots, kv_heads, value_dim]."""

    keys: torch.Tensor
    values: torch.Tensor


class KVCache:
    """A fixed pool of pages. Not thread safe: the engine's thread owns it."""

    def __init__(
        self,
        shapes: Mapping[int, KVShape],
        *,
        num_pages: int,
        page_size: int,
        device: torch.device,
    ) -> None:
        slots = num_pages * page_size
        self.num_pages = num_pages
        self.page_size = page_size
        self.device = device
        self.layers = {
            index: LayerKV(
                keys=torch.zeros(
                    slots, shape.num_heads, shape.key_dim, dtype=shape.dtype, device=device
                ),
                values=torch.zeros(
                    slots, shape.num_heads, shape.value_dim, dtype=shape.dtype, device=device
                ),
            )
            for index, shape in shapes.items()
        }
        self._free = np.ones(num_pages, dtype=bool)

    @property
    def num_free_pages(self) -> int:
        """Pages that nobody owns."""
        return int(self._free.sum())

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.num_pages * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that a sequence of ``num_tokens`` tokens needs."""
        return -(-num_tokens // self.page_size)

    def allocate(self, num_pages: int) -> list[int]:
        """Take pages out of the pool; the caller has checked ``num_free_pages``.

        A contiguous run is preferred, because attention then reads it as a view instead of a copy.
        """
        free = np.flatnonzero(self._free)
        if num_pages > len(free):
            raise RuntimeError(f"KV cache: {num_pages} pages wanted, {len(free)} free")
        starts = free[: len(free) - num_pages + 1]
        runs = starts[free[num_pages - 1 :] - starts == num_pages - 1] if num_pages else starts
        pages = np.arange(runs[0], runs[0] + num_pages) if len(runs) else free[:num_pages]
        self._free[pages] = False
        return [int(page) for page in pages]

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back."""
        if self._free[list(pages)].any():
            raise RuntimeError("KV cache: a page was released twice")
        self._free[list(pages)] = True

    def slots(self, pages: Sequence[int], start: int, stop: int) -> slice | torch.Tensor:
        """Slots of the tokens ``start`` to ``stop`` of a sequence: a slice where they are
        contiguous.
        """
        first, last = start // self.page_size, (stop - 1) // self.page_size
        used = pages[first : last + 1]
        offset = start - first * self.page_size
        if used[-1] - used[0] == len(used) - 1 and all(b - a == 1 for a, b in pairwise(used)):
            begin = used[0] * self.page_size + offset
            return slice(begin, begin + stop - start)
        base = torch.tensor(used, device=self.device) * self.page_size
        slots = (base[:, None] + torch.arange(self.page_size, device=self.device)).flatten()
        return slots[offset : offset + stop - start]

    def copy(self, source: Sequence[int], target: Sequence[int], num_tokens: int) -> None:
        """Copy the first ``num_tokens`` tokens of one sequence's pages into another's."""
        read, write = self.slots(source, 0, num_tokens), self.slots(target, 0, num_tokens)
        for layer in self.layers.values():
            for stored in (layer.keys, layer.values):
                stored[write] = stored[read].clone()  # a slice is a view, not to be written from

    def check_integrity(self, owned: Sequence[Sequence[int]]) -> None:
        """Raise unless every page is free or owned exactly once (``owned``: each owner's pages)."""
        counts = np.zeros(self.num_pages, dtype=int)
        for pages in owned:
            np.add.at(counts, list(pages), 1)
        if not np.array_equal(counts, (~self._free).astype(int)):
            raise RuntimeError("KV cache: pages leaked or owned twice")
