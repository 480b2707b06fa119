"""Sets up the batched lane of a model: its KV cache and its row counts, or the reason it has
none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from engine.attention import UnsupportedAttentionError
from engine.config import EngineConfig
from engine.kv_cache import KVCache, KVShape
from engine.loader import LoadedModel
from engine.probe import ProbeFailedError, batched_lane_problem, find_row_counts, pages_needed
from engine.runner import RowCounts, Runner

logger = logging.getLogger(__name__)

_CPU_KV_BYTES = 1 << 30
_CUDA_FREE_SHARE = 0.85  # of what the weights leave; the rest is for activations and the towers


@dataclass(frozen=True)
class BatchedLane:
    """What the batch loop runs with. ``problem`` says why there is none, and the cache is then
    empty.
    """

    cache: KVCache
    row_counts: RowCounts | None
    problem: str | None = None


def build_batched_lane(runner: Runner, loaded: LoadedModel, config: EngineConfig) -> BatchedLane:
    """Size the cache, check the packed forward against the model's own, and probe the row
    counts.
    """
    empty = KVCache({}, num_pages=0, page_size=config.page_size, device=loaded.device)
    vocab_size = loaded.model.config.get_text_config().vocab_size
    try:
        shapes = runner.kv_shapes()
        if not shapes:
            raise UnsupportedAttentionError("no layer of the model calls the attention interface")
        cache = _sized_cache(shapes, loaded, config)
        runner.use_cache(cache)
        if problem := batched_lane_problem(runner, vocab_size=vocab_size):
            return BatchedLane(empty, None, problem)
        row_counts = find_row_counts(
            runner,
            vocab_size=vocab_size,
            max_sequences=config.max_sequences,
            prefill_chunk=config.prefill_chunk,
        )
    except (UnsupportedAttentionError, ProbeFailedError, TypeError) as error:
        # TypeError: the module's forward does not take the arguments of a packed batch.
        logger.warning("%s runs in the exclusive lane only: %s", config.name, error)
        return BatchedLane(empty, None, str(error))
    return BatchedLane(cache, row_counts)


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
