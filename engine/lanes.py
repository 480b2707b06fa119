"""Sets up the batched lane of a model: its KV cache and its row counts, or the reason it has
none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from engine.attention import UnsupportedAttentionError
from engine.config import EngineConfig
from engine.kv_cache import KVCache, KVShape
from engine.loader import LoadedModel
from engine.prepack import can_prepack, prepack
from engine.probe import (
    any_row_counts,
    batched_lane_problem,
    find_row_counts,
    pages_needed,
)
from engine.runner import RowCounts, Runner

logger = logging.getLogger(__name__)

# Rotary embeddings that scale with the longest position in the batch, a stranger's maybe.
_BATCH_ROPE_TYPES = ("dynamic", "longrope")

_CPU_KV_BYTES = 1 << 30
_CUDA_FREE_SHARE = 0.85  # of what the weights leave; the rest is for activations and the towers


@dataclass(frozen=True)
class BatchedLane:
    """What the batch loop runs with; or, with an empty cache, the ``problem`` why there is none."""

    cache: KVCache
    row_counts: RowCounts | None
    prepacked: bool
    problem: str | None = None


def build_batched_lane(runner: Runner, loaded: LoadedModel, config: EngineConfig) -> BatchedLane:
    """Size the cache, check the packed forward against the model's own, probe the row counts."""
    empty = KVCache({}, num_pages=0, page_size=config.page_size, device=loaded.device)
    prepacked = False
    vocab_size = loaded.model.config.get_text_config().vocab_size
    try:
        _refuse_mixing_rows(loaded)
        shapes = runner.kv_shapes()
        if not shapes:
            raise UnsupportedAttentionError("no layer of the model calls the attention interface")
        prepacked = can_prepack(loaded.model) and prepack(loaded.model, trial=runner.kv_shapes)
        cache = _sized_cache(shapes, loaded, config)
        runner.use_cache(cache)
        if problem := batched_lane_problem(runner, vocab_size=vocab_size):
            return BatchedLane(empty, None, prepacked, problem)
        if not config.deterministic:
            row_counts = any_row_counts(config.max_sequences, config.prefill_chunk)
            return BatchedLane(cache, row_counts, prepacked)
        row_counts = find_row_counts(
            runner,
            vocab_size=vocab_size,
            max_sequences=config.max_sequences,
            prefill_chunk=config.prefill_chunk,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the packed forward does not work
        logger.warning("%s runs in the exclusive lane only: %s", config.name, error)
        return BatchedLane(empty, None, prepacked, str(error))
    return BatchedLane(cache, row_counts, prepacked)


def _refuse_mixing_rows(loaded: LoadedModel) -> None:
    """Refuse what mixes rows only sometimes, so that a probe may miss it."""
    rope: Any = getattr(loaded.model.config.get_text_config(), "rope_parameters", None) or {}
    # Either the parameters themselves or those of each type of layer.
    for parameters in (rope, *rope.values()):
        kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
        if kind in _BATCH_ROPE_TYPES:
            raise UnsupportedAttentionError(
                f"its rotary embedding ({kind}) depends on the longest position in the batch"
            )
    if any(name.endswith("experts") for name, _ in loaded.model.named_modules()):
        raise UnsupportedAttentionError("its experts compute with all rows that chose them at once")


def _sized_cache(shapes: dict[int, KVShape], loaded: LoadedModel, config: EngineConfig) -> KVCache:
    per_token = sum(shape.bytes_per_token for shape in shapes.values())
    tokens = config.kv_cache_tokens
    if tokens is None:
        if loaded.device.type == "cuda":
            budget = int(torch.cuda.mem_get_info(loaded.device)[0] * _CUDA_FREE_SHARE)
        else:
            budget = _CPU_KV_BYTES
        tokens = min(budget // per_token, config.max_sequences * loaded.context_length)
    cache = KVCache({}, num_pages=0, page_size=config.page_size, device=loaded.device)
    num_pages = max(cache.pages_for(tokens), pages_needed(cache))
    logger.info(
        "KV cache: %d tokens, %.0f MiB",
        num_pages * config.page_size,
        num_pages * config.page_size * per_token / 2**20,
    )
    return KVCache(shapes, num_pages=num_pages, page_size=config.page_size, device=loaded.device)
