"""Sets up the batched lane of a model: its KV cache and its row counts, or the reason it has
none.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from engine.config import EngineConfig
from engine.execution.attention.paged import UnsupportedAttentionError
from engine.execution.attention.varlen import varlen_problem
from engine.execution.batch_invariance import (
    any_batch_sizes,
    batched_lane_problem,
    find_batch_sizes,
    pages_needed,
    plain_attention,
)
from engine.execution.batch_sizes import BatchSizes
from engine.execution.kv_cache import KVCache, KVShape
from engine.execution.model_runner import Runner
from engine.execution.prepack import prepack
from engine.loading.loaded_model import LoadedModel
from engine.platform.interface import Sizes
from engine.platform.platforms import platform_of
from schema.errors import ModelInvalid

logger = logging.getLogger(__name__)

# Rotary embeddings that scale with the longest position in the batch, a stranger's maybe.
_BATCH_ROPE_TYPES = ("dynamic", "longrope")


AttentionKind = Literal["paged kernel", "per sequence"]


@dataclass(frozen=True)
class BatchedLane:
    """What the batch loop runs with; or, with an empty cache, the ``problem`` why there is none."""

    cache: KVCache
    batch_sizes: BatchSizes | None
    prefill_chunk: int
    prepacked: bool
    attention: AttentionKind | None
    problem: str | None = None


def build_batched_lane(runner: Runner, loaded: LoadedModel, config: EngineConfig) -> BatchedLane:
    """Size the cache, check the packed forward against the model's own, probe the row counts."""
    platform = platform_of(loaded.device)
    sizes = platform.sizes(config.prefill_chunk, config.page_size)
    empty = KVCache({}, num_pages=0, page_size=sizes.page_size, device=loaded.device)
    lane = BatchedLane(empty, None, sizes.prefill_chunk, prepacked=False, attention=None)
    try:
        _refuse_mixing_rows(loaded)
        shapes = runner.kv_shapes()
        if not shapes:
            raise UnsupportedAttentionError("no layer of the model calls the attention interface")
        # Packed weights would lose the parts' own way of being put together again.
        can = not config.tensor_parallel and platform.packs_weights(loaded.model.dtype)
        prepacked = can and prepack(loaded.model, trial=runner.kv_shapes)
        lane = replace(lane, prepacked=prepacked)
        cache = _sized_cache(runner, shapes, loaded, config)
        attention = _working_attention(runner, cache, shapes, loaded, sizes)
        batch_sizes = _row_counts(runner, loaded, config, sizes)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the packed forward does not work
        _refuse_without_forward(runner, config)
        logger.warning("%s runs in the exclusive lane only: %s", config.name, error)
        return replace(lane, problem=str(error))
    return replace(lane, cache=cache, batch_sizes=batch_sizes, attention=attention)


def _refuse_without_forward(runner: Runner, config: EngineConfig) -> None:
    """Refuse what cannot even run the model's own forward: every task of it would fail."""
    try:
        with plain_attention(runner):
            runner.plain_logits([0, 0, 0])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        bits = config.quantize_bits
        how = f"dtype {config.dtype}" + (f" and quantize_bits {bits}" if bits else "")
        raise ModelInvalid(f"model {config.name!r} does not run with {how}: {error}") from error


def _row_counts(
    runner: Runner, loaded: LoadedModel, config: EngineConfig, sizes: Sizes
) -> BatchSizes:
    # An image that is prefilled whole may be longer than a chunk.
    prefill_rows = max(sizes.prefill_chunk, loaded.whole_image_tokens)
    if not config.deterministic:
        return any_batch_sizes(
            runner, max_sequences=config.max_sequences, prefill_chunk=prefill_rows
        )
    return find_batch_sizes(
        runner,
        vocab_size=_vocab_size(loaded),
        max_sequences=config.max_sequences,
        prefill_chunk=prefill_rows,
    )


def _working_attention(
    runner: Runner,
    cache: KVCache,
    shapes: dict[int, KVShape],
    loaded: LoadedModel,
    sizes: Sizes,
) -> AttentionKind:
    """Use the paged kernel where it takes this model and computes what the model's own does.

    Raises:
        UnsupportedAttentionError: attention sequence by sequence does not either.
    """
    problem = varlen_problem(shapes.values(), sizes.page_size, loaded.device)
    if loaded.whole_image_tokens:
        problem = problem or "the tokens of an image see each other"
    if problem is None:
        max_pages = min(cache.pages_for(loaded.context_length), cache.num_pages)
        runner.use_paged_kernel(cache, max_pages=max_pages, max_rows=2 * sizes.prefill_chunk)
        try:
            problem = batched_lane_problem(runner, vocab_size=_vocab_size(loaded))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:  # the kernel refuses something that is not known here
            problem = str(error)
    if problem is None:
        return "paged kernel"
    logger.info("attention runs sequence by sequence, not in the paged kernel: %s", problem)
    runner.use_cache(cache)
    if problem := batched_lane_problem(runner, vocab_size=_vocab_size(loaded)):
        raise UnsupportedAttentionError(problem)
    return "per sequence"


def _vocab_size(loaded: LoadedModel) -> int:
    size: int = loaded.model.config.get_text_config().vocab_size
    return size


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


def _sized_cache(
    runner: Runner, shapes: dict[int, KVShape], loaded: LoadedModel, config: EngineConfig
) -> KVCache:
    where = loaded.spread.layer_devices if loaded.spread else {}
    per_token = Counter[torch.device]()
    for index, shape in shapes.items():
        per_token[where.get(index, loaded.device)] += shape.bytes_per_token
    tokens = config.kv_cache_tokens
    if tokens is None:
        room = _tokens_with_room(runner, per_token, loaded, config)
        tokens = min(room, config.max_sequences * loaded.context_length)
    page_size = platform_of(loaded.device).sizes(config.prefill_chunk, config.page_size).page_size
    cache = KVCache({}, num_pages=0, page_size=page_size, device=loaded.device)
    num_pages = max(cache.pages_for(tokens), pages_needed(cache))
    logger.info(
        "KV cache: %d tokens, %.0f MiB",
        num_pages * page_size,
        num_pages * page_size * per_token.total() / 2**20,
    )
    return runner.make_cache(shapes, num_pages=num_pages, page_size=page_size)


def _tokens_with_room(
    runner: Runner, per_token: Counter[torch.device], loaded: LoadedModel, config: EngineConfig
) -> int:
    """Tokens that the tightest device has room for, of the bytes that each takes there."""
    limit = config.max_kv_cache_bytes or platform_of(loaded.device).default_kv_bytes
    rooms = [] if limit is None else [limit // per_token.total()]
    for device, of_token in per_token.items():
        budget = runner.kv_room(device)
        if budget is None:
            continue
        if device == loaded.device and loaded.takes_images:
            budget -= config.image_cache_bytes
        rooms.append(budget // of_token)
    return min(rooms)
