"""Measures a model and builds its runner, in the process that has all of it.

`engine.parallel.split_executor` does the same for a model that is split tensor by tensor.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from engine.execution.attention.backends import BACKENDS
from engine.execution.attention.interface import AttentionNeeds
from engine.execution.kv_cache import KVCache
from engine.execution.model_runner import ModelRunner, Shapes, measured_shapes
from engine.execution.modules.recurrence.states import StateCache
from engine.execution.operations import OneRank
from engine.loading.loaded_model import LoadedModel
from engine.platform.platforms import platform_of


@dataclass(frozen=True)
class RunnerPlan:
    """The plan that a runner is built by, the same on all ranks.

    Attributes:
        attention: name of the backend.
        page_size: tokens of a page of the KV cache.
        num_pages: of the KV cache; 0 for a runner of plain forwards only.
        max_pages: of the longest sequence.
        max_rows: of the largest forward.
        num_states: rows for the states of recurrent layers, if the model has any.
    """

    attention: str
    page_size: int
    num_pages: int
    max_pages: int
    max_rows: int
    num_states: int = 0


class Executor(OneRank):
    """The one rank of a model that is not split. Belongs to the engine's thread."""

    def __init__(self, loaded: LoadedModel, image_cache_bytes: int = 0) -> None:
        self.loaded = loaded
        self._image_cache_bytes = image_cache_bytes
        self._shapes = Shapes({}, [])

    def measure(self) -> Shapes:
        """What is kept of sequences in every layer, or in this rank's part of it; before `build`.

        Raises:
            UnsupportedAttentionError: the model needs attention that no backend computes.
        """
        self._shapes = measured_shapes(self.loaded)
        return self._shapes

    def kv_room(self, device: torch.device) -> int | None:
        """Bytes that a KV cache may take on a device; None where the host decides."""
        return platform_of(device).kv_room(device)

    def attention_problem(self, plan: RunnerPlan) -> str | None:
        """Why the plan's attention backend does not support the model here; after `measure`."""
        loaded = self.loaded
        needs = AttentionNeeds(
            self._shapes.keys_and_values,
            plan.page_size,
            loaded.device,
            bidirectional_spans=bool(loaded.whole_image_tokens),
        )
        return BACKENDS[plan.attention].problem(needs)

    def build(self, plan: RunnerPlan) -> ModelRunner:
        """A runner with a KV cache of its own; those built before must not be used again."""
        loaded = self.loaded
        # A runner's parts refer to each other, so only the collector frees the one before, whose
        # KV cache may have most of the device's memory.
        gc.collect()
        backend = BACKENDS[plan.attention](plan.max_rows)
        cache = KVCache(
            self._shapes.keys_and_values if plan.num_pages else {},
            num_pages=plan.num_pages,
            page_size=plan.page_size,
            device=loaded.device,
            layout=backend.kv_layout,
            layer_devices=loaded.spread.layer_devices if loaded.spread else None,
            ranks=self,
        )
        return ModelRunner(
            loaded,
            backend,
            cache,
            StateCache(self._shapes.states if plan.num_states else [], plan.num_states),
            max_pages=plan.max_pages,
            image_cache_bytes=self._image_cache_bytes,
            ranks=self,
        )

    def check_health(self) -> None:
        """Raise if forwards cannot run any more; on any thread."""

    def close(self) -> None:
        """End other processes that run forwards. Idempotent."""
