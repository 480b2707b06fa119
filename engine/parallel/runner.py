"""Rank 0's runner and KV cache: what they do, the followers do as well.

This is the whole of what ranks share: the engine's loop, its scheduler and its sampler know nothing
of them. Images are encoded on rank 0, and their features sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from engine.execution.attention.packing import ScheduledTokens
from engine.execution.kv_cache import KVCache, KVShape
from engine.execution.model_runner import Runner
from engine.loading.loaded_model import LoadedModel
from engine.parallel.coordinator import Coordinator
from engine.parallel.group import expect_step


class SplitCache(KVCache):
    """Rank 0's part of the cache, and the book of pages that holds for all parts."""

    def __init__(self, lead: Coordinator, shapes: Mapping[int, KVShape], **sizes: Any) -> None:
        lead.tell("make_cache", sizes["num_pages"], sizes["page_size"])
        with lead.together():
            super().__init__(shapes, **sizes)
        self._lead = lead

    def copy(self, source: Sequence[int], target: Sequence[int], start: int, stop: int) -> None:
        """As `KVCache.copy`, on all ranks."""
        self._lead.tell("copy", list(source), list(target), start, stop)
        with self._lead.together():
            super().copy(source, target, start, stop)

    def fill_randomly(self, pages: Sequence[int], seed: int) -> None:
        """As `KVCache.fill_randomly`, on all ranks."""
        self._lead.tell("fill_randomly", list(pages), seed)
        with self._lead.together():
            super().fill_randomly(pages, seed)

    def bits(self, pages: Sequence[int], start: int, stop: int) -> bytes:
        """As `KVCache.bits`, of all ranks."""
        others = self._lead.ask("bits", list(pages), start, stop)
        return b"".join([super().bits(pages, start, stop), *others])


class SplitRunner(Runner):
    """Runs every forward on all ranks. Belongs to the engine's thread."""

    def __init__(self, loaded: LoadedModel, image_cache_bytes: int, lead: Coordinator) -> None:
        super().__init__(loaded, image_cache_bytes)
        self._lead = lead
        lead.wait_until_loaded()
        expect_step(loaded.model)

    def check_health(self) -> None:
        """Raise `RanksLostError` if a rank is gone; on any thread."""
        self._lead.check()

    def close(self) -> None:
        """End the followers."""
        self._lead.close()

    def make_cache(
        self, shapes: Mapping[int, KVShape], *, num_pages: int, page_size: int
    ) -> KVCache:
        """As `Runner.make_cache`, on all ranks."""
        return SplitCache(
            self._lead, shapes, num_pages=num_pages, page_size=page_size, device=self.device
        )

    def use_cache(self, cache: KVCache) -> None:
        """As `Runner.use_cache`, on all ranks."""
        self._lead.tell("use_cache")
        super().use_cache(cache)

    def use_paged_kernel(self, cache: KVCache, *, max_pages: int, max_rows: int) -> None:
        """As `Runner.use_paged_kernel`, on all ranks."""
        self._lead.tell("use_paged_kernel", max_pages, max_rows)
        super().use_paged_kernel(cache, max_pages=max_pages, max_rows=max_rows)

    def kv_room(self, device: torch.device) -> int | None:
        """The least that there is on any rank's device."""
        rooms = [super().kv_room(device), *self._lead.ask("kv_room")]
        return min((room for room in rooms if room is not None), default=None)

    def kv_shapes(self) -> dict[int, KVShape]:
        """As `Runner.kv_shapes`: the shapes of this rank's part."""
        self._lead.tell("kv_shapes")
        with self._lead.together():
            return super().kv_shapes()

    def set_attention(self, implementation: str) -> None:
        """As `Runner.set_attention`, on all ranks."""
        self._lead.tell("set_attention", implementation)
        super().set_attention(implementation)

    def plain_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """As `Runner.plain_logits`."""
        self._lead.tell("plain_logits", list(token_ids))
        with self._lead.together():
            return super().plain_logits(token_ids)

    def forward(
        self, token_ids: torch.Tensor, pieces: Sequence[ScheduledTokens], **options: Any
    ) -> torch.Tensor:
        """As `Runner.forward`; the logits are whole, and are used on this rank alone."""
        features = [_tensors(piece) for piece in pieces]
        shapes = [[(tuple(t.shape), t.dtype) for t in tensors] for tensors in features]
        options["keep"] = list(options["keep"])
        bare = [_bare(piece) for piece in pieces]
        self._lead.tell("forward", len(token_ids), bare, shapes, self.vision.layout, options)
        with self._lead.together():
            dist.broadcast(token_ids, 0)
            for tensor in (t for tensors in features for t in tensors):
                dist.broadcast(tensor, 0)
            return super().forward(token_ids, pieces, **options)


def _tensors(piece: ScheduledTokens) -> list[torch.Tensor]:
    if piece.features is None:
        return []
    return [part.contiguous() for part in (piece.features.tokens, *piece.features.deepstack)]


def _bare(piece: ScheduledTokens) -> ScheduledTokens:
    """A piece as it is sent: no tensors, and no positions of a prompt that is over."""
    rotary = piece.rotary
    if rotary is not None and piece.start >= rotary.prompt.shape[1]:
        rotary = replace(rotary, prompt=rotary.prompt[:, :0])
    return replace(piece, features=None, rotary=rotary)
