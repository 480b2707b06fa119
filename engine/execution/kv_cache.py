"""The paged KV cache: the owners of pages, and the storage of each layer's keys and values.

A page holds the keys and values of ``page_size`` consecutive tokens of one sequence in every layer.
Token ``i`` of a sequence lies in slot ``pages[i // page_size] * page_size + i % page_size``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from engine.execution.operations import ONE_RANK, Ranks
from engine.platform.interface import KVLayout
from engine.platform.platforms import platform_of


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


Slots = slice | torch.Tensor
"""The slots of a sequence's tokens: a slice if they are contiguous, else [tokens] indices."""


class LayerKV:
    """One layer's storage: ``keys`` [slots, kv_heads, key_dim], ``values`` alike."""

    def __init__(
        self, shape: KVShape, num_slots: int, device: torch.device, layout: KVLayout
    ) -> None:
        self.device = device
        self._platform = platform_of(device)
        self.keys, self.values = (
            self._storage(num_slots, shape.num_heads, dim, shape.dtype, layout)
            for dim in (shape.key_dim, shape.value_dim)
        )
        # Views made once, so that one more operation gives what attention takes.
        self._keys_by_head = self.keys.transpose(0, 1)[None]
        self._values_by_head = self.values.transpose(0, 1)[None]

    def _storage(
        self, slots: int, heads: int, dim: int, dtype: torch.dtype, layout: KVLayout
    ) -> torch.Tensor:
        """Zeros [slots, heads, dim], in the order of memory that the layout says."""
        if layout == "heads first":
            return self._platform.zeros((heads, slots, dim), dtype, self.device).transpose(0, 1)
        return self._platform.zeros((slots, heads, dim), dtype, self.device)

    def pages(self, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [pages, page_size, kv_heads, dim], views, as paged kernels want them."""
        return self.keys.unflatten(0, (-1, page_size)), self.values.unflatten(0, (-1, page_size))

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the keys and values [kv_heads, len(slots), dim] of new tokens."""
        self._platform.write_rows(
            slots, (self.keys, keys.transpose(0, 1)), (self.values, values.transpose(0, 1))
        )

    def read(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [1, kv_heads, tokens, dim]: views where the slots are contiguous."""
        if isinstance(slots, slice):
            start, length = slots.start, slots.stop - slots.start
            return (
                self._keys_by_head.narrow(2, start, length),
                self._values_by_head.narrow(2, start, length),
            )
        return self._keys_by_head[:, :, slots], self._values_by_head[:, :, slots]


def bits_of(tensor: torch.Tensor) -> bytes:
    """All bits of a tensor."""
    return bytes(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())


class KVCache:
    """A fixed pool of pages. Not thread safe: the engine's thread owns it.

    After the pages comes one without an owner, ``scratch_page``, for rows that are padding.
    """

    def __init__(
        self,
        shapes: Mapping[int, KVShape],
        *,
        num_pages: int,
        page_size: int,
        device: torch.device,
        layout: KVLayout | None = None,
        layer_devices: Mapping[int, torch.device] | None = None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        """Make the pool.

        Args:
            shapes: of each layer.
            num_pages: pages that can be owned.
            page_size: tokens in a page.
            device: where the batch's numbers are, and all layers that are not in ``layer_devices``.
            layout: the order in memory; None takes what suits the device.
            layer_devices: of layers that lie elsewhere.
            ranks: those that have a part of this cache each.
        """
        where = layer_devices or {}
        self.layout = layout or platform_of(device).kv_layout
        slots = (num_pages + 1) * page_size
        self._ranks = ranks
        self.scratch_page = num_pages
        self.num_pages = num_pages
        self.page_size = page_size
        self.device = device
        self.layers = {
            index: LayerKV(shape, slots, where.get(index, device), self.layout)
            for index, shape in shapes.items()
        }
        self._free = np.ones(num_pages, dtype=bool)

    @property
    def num_free_pages(self) -> int:
        """Pages without an owner."""
        return int(self._free.sum())

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.num_pages * self.page_size

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        layers = self.layers.values()
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

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

    def slots(
        self, pages: Sequence[int], start: int, stop: int, device: torch.device | None = None
    ) -> Slots:
        """Slots of the tokens ``start`` to ``stop`` of a sequence: a slice where they are
        contiguous, else a tensor on ``device`` (the cache's own if None).
        """
        device = device or self.device
        first, last = start // self.page_size, (stop - 1) // self.page_size
        used = pages[first : last + 1]
        offset = start - first * self.page_size
        if used[-1] - used[0] == len(used) - 1 and all(b - a == 1 for a, b in pairwise(used)):
            begin = used[0] * self.page_size + offset
            return slice(begin, begin + stop - start)
        base = torch.tensor(used, device=device) * self.page_size
        slots = (base[:, None] + torch.arange(self.page_size, device=device)).flatten()
        return slots[offset : offset + stop - start]

    def copy(self, source: Sequence[int], target: Sequence[int], start: int, stop: int) -> None:
        """Copy the tokens ``start`` to ``stop`` of one sequence's pages into another's."""
        self._ranks.run(CopyTokens(tuple(source), tuple(target), start, stop), self)

    def fill_randomly(self, pages: Sequence[int], seed: int) -> None:
        """Fill whole pages with random keys and values, for the batch invariance check."""
        self._ranks.run(FillPages(tuple(pages), seed), self)

    def bits(self, pages: Sequence[int], start: int, stop: int) -> bytes:
        """All bits of the tokens ``start`` to ``stop`` of a sequence; for `batch_invariance`."""
        return b"".join(self._ranks.gather(ReadBits(tuple(pages), start, stop), self))

    def layer_slots(
        self, pages: Sequence[int], start: int, stop: int
    ) -> Iterator[tuple[LayerKV, Slots]]:
        """Each layer with `slots` on its own device; of this rank's part of the cache."""
        on: dict[torch.device, Slots] = {}
        for layer in self.layers.values():
            if layer.device not in on:
                on[layer.device] = self.slots(pages, start, stop, layer.device)
            yield layer, on[layer.device]

    def check_integrity(self, owned: Sequence[Sequence[int]]) -> None:
        """Raise unless every page is free or owned exactly once (``owned``: each owner's pages)."""
        counts = np.zeros(self.num_pages, dtype=int)
        for pages in owned:
            np.add.at(counts, list(pages), 1)
        if not np.array_equal(counts, (~self._free).astype(int)):
            raise RuntimeError("KV cache: pages leaked or owned twice")


@dataclass(frozen=True)
class CopyTokens:
    """See `KVCache.copy`."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    start: int
    stop: int

    def run(self, cache: KVCache) -> None:
        """Copy on this rank."""
        reads = cache.layer_slots(self.source, self.start, self.stop)
        writes = cache.layer_slots(self.target, self.start, self.stop)
        for (layer, read), (_, write) in zip(reads, writes, strict=True):
            for stored in (layer.keys, layer.values):
                stored[write] = stored[read].clone()  # a slice is a view, not to be written from


@dataclass(frozen=True)
class FillPages:
    """See `KVCache.fill_randomly`."""

    pages: tuple[int, ...]
    seed: int

    def run(self, cache: KVCache) -> None:
        """Fill this rank's part."""
        generator = torch.Generator().manual_seed(self.seed)
        for layer, slots in cache.layer_slots(self.pages, 0, len(self.pages) * cache.page_size):
            for stored in (layer.keys, layer.values):
                stored[slots] = torch.randn(stored[slots].shape, generator=generator).to(stored)


@dataclass(frozen=True)
class ReadBits:
    """See `KVCache.bits`."""

    pages: tuple[int, ...]
    start: int
    stop: int

    def run(self, cache: KVCache) -> bytes:
        """The bits of this rank's part."""
        return b"".join(
            bits_of(stored[slots])
            for layer, slots in cache.layer_slots(self.pages, self.start, self.stop)
            for stored in (layer.keys, layer.values)
        )
