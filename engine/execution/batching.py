"""Sets up continuous batching for a model: its attention, its KV cache and its batch sizes.

A model that cannot be batched runs through `generate` instead, and its card says why.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

import torch

from engine.config import EngineConfig
from engine.execution.attention.adapters import use_interface
from engine.execution.attention.interface import UnsupportedAttentionError
from engine.execution.batch_sizes import BatchInvarianceError, BatchSizes
from engine.execution.executor import Executor, RunnerPlan
from engine.execution.kv_cache import KVCache
from engine.execution.measuring.batch_invariance import tokens_needed
from engine.execution.measuring.forward_check import CHECKED_TOKENS
from engine.execution.measuring.measurement import measurement
from engine.execution.model_runner import ModelRunner, Shapes
from engine.execution.modules import long_rope
from engine.execution.modules.compiled_layers.layers import CompiledLayers
from engine.execution.modules.experts import has_other_mixtures, use_exact_experts
from engine.execution.modules.prepack import prepack
from engine.execution.modules.recurrence.layers import use_states
from engine.execution.modules.recurrence.states import StateCache
from engine.loading.adapters.adapter import adapter_room
from engine.loading.loaded_model import LoadedModel
from engine.platform.interface import Sizes
from engine.platform.measurements import KeptMeasurement
from engine.platform.platforms import platform_of
from engine.quantization.registry import quantization
from engine.vision.tiles import TileCounts
from schema.errors import ModelInvalid

logger = logging.getLogger(__name__)

_NO_KERNEL = "per sequence"  # of a runner whose model is not batched: it computes no attention


@dataclass(frozen=True)
class ContinuousBatching:
    """The setup that the loop uses; an empty cache and the ``problem`` if it cannot batch.

    ``tiles``: how many tiles of images are encoded together, of a model whose images become tiles.
    """

    runner: ModelRunner
    batch_sizes: BatchSizes | None
    prefill_chunk: int
    prepacked: bool
    compiled: CompiledLayers = field(default_factory=CompiledLayers)
    tiles: TileCounts | None = None
    problem: str | None = None

    @property
    def cache(self) -> KVCache:
        """Where keys and values are kept."""
        return self.runner.cache

    @property
    def states(self) -> StateCache:
        """Where recurrent layers keep theirs."""
        return self.runner.states

    @property
    def long_after(self) -> int | None:
        """After how many tokens a sequence has other rotary factors; None if there are none."""
        return long_rope.long_rope_limit(self.runner.loaded.model)

    @property
    def attention(self) -> str | None:
        """The name of the attention backend; None where no forward is batched."""
        return None if self.problem is not None else self.runner.backend.name


def set_up_batching(
    executor: Executor, config: EngineConfig, kept: KeptMeasurement
) -> ContinuousBatching:
    """Measure a model: its KV shapes, an attention backend that works, batch sizes that agree.

    Args:
        executor: of the model.
        config: of the engine.
        kept: what was measured before; it gets what is measured now.

    Raises:
        ModelInvalid: not even the model's own forward runs.
        OutOfMemoryError, AcceleratorError: of torch; they are not faults of the model.
    """
    loaded = executor.loaded
    sizes = platform_of(loaded.device).sizes(config.prefill_chunk, config.page_size)
    prepacked = False
    try:
        if not config.tensor_parallel:  # whose further ranks are not changed like this
            long_rope.use_row_lengths(loaded.model)
            use_interface(loaded.model)
        use_states(loaded.model)
        _refuse_mixing_rows(loaded)
        shapes = executor.measure()
        _refuse_unknown_layers(shapes, split=config.tensor_parallel)
        # Packed weights would lose the code that joins the parts of split layers.
        packs = platform_of(loaded.device).packs_weights(loaded.model.dtype)
        can = platform_of(loaded.device).may_prepack and not config.tensor_parallel
        quantized = quantization(config.quantize_bits)
        use_exact_experts(loaded.model, quantized, packs=can and packs)
        prepacked = can and prepack(loaded.model, trial=executor.measure, plain=packs)
        plan = _plan(executor, shapes, config, sizes)
        found = measurement(executor, shapes, plan, config, kept, prepacked=prepacked)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (UnsupportedAttentionError, BatchInvarianceError) as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - with any error the packed forward does not work
        problem = f"a forward of packed rows fails with {type(error).__name__}: {error}"
    else:
        return ContinuousBatching(
            found.runner,
            found.batch_sizes,
            sizes.prefill_chunk,
            prepacked,
            found.compiled,
            found.tiles,
        )
    runner = executor.build(RunnerPlan(_NO_KERNEL, sizes.page_size, 0, 0, 0))
    _refuse_without_forward(runner, config)
    logger.warning("%s runs through generate, a task at a time: %s", config.name, problem)
    return ContinuousBatching(runner, None, sizes.prefill_chunk, prepacked, problem=problem)


def _refuse_without_forward(runner: ModelRunner, config: EngineConfig) -> None:
    """Refuse what cannot even run the model's own forward: every task of it would fail."""
    try:
        runner.plain_logits([0, 0, 0])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        bits = config.quantize_bits
        how = f"dtype {config.dtype}" + (f" and quantize_bits {bits}" if bits else "")
        raise ModelInvalid(f"model {config.name!r} does not run with {how}: {error}") from error


def _refuse_mixing_rows(loaded: LoadedModel) -> None:
    """Refuse models that mix rows only sometimes, which a measurement may miss."""
    if not long_rope.chooses_by_rows(loaded.model):
        raise UnsupportedAttentionError(
            "its rotary embedding (longrope) depends on the longest position in the batch"
        )
    if any(name.endswith(".indexer") for name, _ in loaded.model.named_modules()):
        raise UnsupportedAttentionError("its attention sees the tokens that an index chooses")
    if loaded.needs_whole_prompts:
        raise UnsupportedAttentionError(f"its tokens see {loaded.image_attention.value}")
    if has_other_mixtures(loaded.model):
        raise UnsupportedAttentionError("its experts compute with all rows that chose them at once")


def _refuse_unknown_layers(shapes: Shapes, *, split: bool) -> None:
    """Refuse models whose layers keep nothing that is known, and states that would be split."""
    if not shapes.keys_and_values and not shapes.states:
        raise UnsupportedAttentionError("no layer of the model calls the attention interface")
    if shapes.states and split:
        raise UnsupportedAttentionError("the states of its recurrent layers are not split")


def _plan(executor: Executor, shapes: Shapes, config: EngineConfig, sizes: Sizes) -> RunnerPlan:
    """The sizes of a runner; its attention backend is still open."""
    loaded = executor.loaded
    where = loaded.spread.layer_devices if loaded.spread else {}
    per_token = Counter[torch.device]()
    for index, shape in shapes.keys_and_values.items():
        per_token[where.get(index, loaded.device)] += shape.bytes_per_token
    num_states = config.num_states if shapes.states else 0
    of_states = Counter[torch.device]()
    for state in shapes.states:
        of_states[state.device] += num_states * state.num_bytes
    tokens = config.kv_cache_tokens
    if tokens is None:
        tokens = config.max_sequences * loaded.context_length
        if per_token:
            tokens = min(tokens, _tokens_with_room(executor, per_token, of_states, config))
    page_size = sizes.page_size
    num_pages = -(-max(tokens, tokens_needed(page_size), CHECKED_TOKENS) // page_size)
    logger.info(
        "KV cache: %d tokens, %.0f MiB",
        num_pages * page_size,
        num_pages * page_size * per_token.total() / 2**20,
    )
    return RunnerPlan(
        attention=_NO_KERNEL,
        page_size=page_size,
        num_pages=num_pages,
        max_pages=min(-(-loaded.context_length // page_size), num_pages),
        max_rows=sizes.forward_rows,
        num_states=num_states,
    )


def _tokens_with_room(
    executor: Executor,
    per_token: Counter[torch.device],
    of_states: Counter[torch.device],
    config: EngineConfig,
) -> int:
    """Tokens that the tightest device has room for, of the bytes that each takes there.

    ``of_states`` are the bytes that the states of recurrent layers take.
    """
    loaded = executor.loaded
    limit = config.max_kv_cache_bytes or platform_of(loaded.device).default_kv_bytes
    rooms = [] if limit is None else [limit // per_token.total()]
    for device, of_token in per_token.items():
        room = executor.kv_room(device)
        if room is None:
            continue
        if device == loaded.device and loaded.takes_images:
            room -= config.image_cache_bytes
        # Which device will hold how much of the adapters is not known before they are loaded.
        room -= of_states[device] + adapter_room(config, loaded.adapters)
        rooms.append(room // of_token)
    return min(rooms)
