"""A new attention kernel is one class: here one in plain tensor operations, tried before others."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pytest
import torch

from engine import Engine, EngineConfig
from engine.execution.attention import backends
from engine.execution.attention.interface import AttentionBackend, AttentionForm, AttentionNeeds
from engine.execution.attention.packing import PagedRows, paged_rows
from engine.execution.kv_cache import KVCache
from engine.platform.cpu import CpuPlatform
from engine.requests.request import ScheduledTokens
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.sampling.test_generate_oracle import SETTINGS, TEXTS, task

NAME = "plain operations"


Fault = Literal[
    "sign",
    "a key too many",
    "a key too few",
    "the oldest key missing",
    "keys in another order",
    "pages in another order",
    "no window",
    "window too wide",
    "window too narrow",
    "scale",
]
"""What a kernel may compute wrongly."""


@dataclass(frozen=True)
class PlainBatch:
    """Computes attention for one forward."""

    cache: KVCache
    rows: PagedRows
    fault: Fault | None

    def on(self, device: torch.device) -> PlainBatch:
        return replace(self, rows=self.rows.on(device))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        form: AttentionForm,
    ) -> torch.Tensor:
        stored, rows = self.cache.layers[layer], self.rows
        stored.write(rows.write_slots, key, value)
        pools = stored.pages(self.cache.page_size)
        output = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        for n, context in enumerate(rows.contexts.tolist()):
            first, stop = rows.row_starts[n : n + 2].tolist()
            pages = rows.block_table[n].long()
            if self.fault == "pages in another order":
                used = self.cache.pages_for(context)
                pages = torch.cat([pages[:used].flip(0), pages[used:]])
            known = context + (self.fault == "a key too many")
            k, v = (pool[pages].flatten(0, 1)[:known].double() for pool in pools)
            if self.fault == "keys in another order":
                k = k.roll(1, 0)
            group = len(query) // k.shape[1]
            k, v = (each.repeat_interleave(group, dim=1) for each in (k, v))
            scores = torch.einsum("hqd,khd->hqk", query[:, first:stop].double(), k)
            scores *= query.shape[2] ** -0.5 if form.scaling is None else form.scaling
            scores *= 1.1 if self.fault == "scale" else 1
            looking = torch.arange(context - (stop - first), context)[:, None]
            visible = self._visible(torch.arange(len(k))[None], looking, form.sliding_window)
            weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
            output[first:stop] = torch.einsum("hqk,khd->qhd", weights, v).to(output)
        return -output if self.fault == "sign" else output

    def _visible(
        self, keys: torch.Tensor, looking: torch.Tensor, sliding_window: int | None
    ) -> torch.Tensor:
        last = looking + {"a key too many": 1, "a key too few": -1}.get(self.fault or "", 0)
        visible = keys <= last.clamp(min=0)
        if self.fault == "the oldest key missing":
            oldest = (looking - (sliding_window or len(looking) + len(keys[0])) + 1).clamp(min=0)
            visible &= (keys > oldest) | (looking == oldest)
        if sliding_window is not None and self.fault != "no window":
            wider = {"window too wide": 1, "window too narrow": -1}.get(self.fault or "", 0)
            visible &= keys > looking - sliding_window - wider
        return visible


class PlainAttention(AttentionBackend):
    """The kernel's class: the models that it supports, and its batch for a forward."""

    name = NAME
    decodes_apart = True
    captures_decode = True
    kv_layout = "tokens first"
    fault: ClassVar[Fault | None] = None

    @classmethod
    def problem(cls, needs: AttentionNeeds) -> str | None:
        return "the tokens of an image see each other" if needs.bidirectional_spans else None

    def batch(
        self, cache: KVCache, scheduled: Sequence[ScheduledTokens], num_rows: int, *, decode: bool
    ) -> PlainBatch:
        assert num_rows <= self.max_rows
        return PlainBatch(cache, paged_rows(cache, scheduled, num_rows, decode=decode), self.fault)

    def decode_batch(self, cache: KVCache, rows: PagedRows) -> PlainBatch:
        return PlainBatch(cache, rows, self.fault)


class WrongAttention(PlainAttention):
    """Computes wrong results."""

    fault = "sign"


def engine_with(
    backend: type[AttentionBackend], tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> Engine:
    monkeypatch.setitem(vars(backends)["BACKENDS"], NAME, backend)
    monkeypatch.setattr(CpuPlatform, "attention_backends", (NAME, "per sequence"))
    config = EngineConfig(
        model=str(tiny_model("qwen2")), dtype="float32", threads=1, prefill_chunk=16
    )
    return Engine(config)


async def test_a_new_kernel_is_one_class(
    tiny_engine: TinyEngine, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("greedy", "everything", "all beams")
    wanted = [
        task([{"role": "user", "content": text}], SETTINGS[name])
        for text in TEXTS
        for name in names
    ]
    expected = [tiny_engine("qwen2").run_blocking(one)["choices"] for one in wanted]
    engine = engine_with(PlainAttention, tiny_model, monkeypatch)
    try:
        assert engine.card()["attention"] == NAME
        together = await asyncio.gather(*map(engine.run, wanted))
        assert [response["choices"] for response in together] == expected
    finally:
        engine.close()


def test_a_kernel_that_is_wrong_is_not_used(
    tiny_engine: TinyEngine, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are compared with the model's own, and the next backend is tried."""
    engine = engine_with(WrongAttention, tiny_model, monkeypatch)
    try:
        card = engine.card()
        assert card["attention"] == "per sequence"
        assert card["continuous_batching"]
        assert card["system_fingerprint"] == tiny_engine("qwen2").card()["system_fingerprint"]
    finally:
        engine.close()


def test_a_refused_kernel_leaves_its_cache_to_the_next_one(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two together may not fit: each takes most of the device's memory."""
    caches: list[weakref.ref[KVCache]] = []
    alive: list[int] = []

    class Watched(KVCache):
        def __init__(self, *args: Any, **options: Any) -> None:
            alive.append(sum(cache() is not None for cache in caches))
            super().__init__(*args, **options)
            caches.append(weakref.ref(self))

    monkeypatch.setattr("engine.execution.executor.KVCache", Watched)
    gc.disable()
    try:
        engine_with(WrongAttention, tiny_model, monkeypatch).close()
    finally:
        gc.enable()
    assert alive == [0, 0]
