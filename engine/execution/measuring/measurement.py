"""The measurement of a model, or what is kept of an earlier one.

A runner with an attention backend that works, batch sizes that agree, and compiled layers if both
are so with them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError

from engine.config import EngineConfig
from engine.execution.attention.interface import UnsupportedAttentionError
from engine.execution.batch_sizes import BatchInvarianceError, BatchSizes
from engine.execution.executor import Executor, RunnerPlan
from engine.execution.measuring.batch_invariance import (
    WantedSizes,
    any_batch_sizes,
    bits_digest,
    find_batch_sizes,
)
from engine.execution.measuring.compiling import compile_layers_of, wants_compiled
from engine.execution.measuring.forward_check import forward_problem
from engine.execution.measuring.tile_counts import find_tile_counts, tiles_digest
from engine.execution.model_runner import ModelRunner, Shapes
from engine.execution.modules.compiled_layers.layers import CompiledLayers
from engine.loading.loaded_model import LoadedModel
from engine.platform.measurements import KeptMeasurement
from engine.platform.platforms import platform_of
from engine.vision.tiles import TileCounts

logger = logging.getLogger(__name__)


class Measurement(NamedTuple):
    """What was measured, now or before; ``tiles`` of a model whose images become tiles."""

    runner: ModelRunner
    batch_sizes: BatchSizes
    compiled: CompiledLayers
    tiles: TileCounts | None


@dataclass(frozen=True)
class _Measured:
    """What is kept of a measurement; a later start checks that it gets the same bits."""

    attention: str
    prepacked: bool
    compiled: dict[str, Any] | None
    batch_sizes: BatchSizes
    bits: str
    tiles: TileCounts | None = None
    tile_bits: str | None = None


_MEASURED = TypeAdapter(_Measured)


def measurement(
    executor: Executor,
    shapes: Shapes,
    plan: RunnerPlan,
    config: EngineConfig,
    kept: KeptMeasurement,
    *,
    prepacked: bool,
) -> Measurement:
    """Measure a model, or take what was measured before.

    Args:
        executor: of the model.
        shapes: what the model keeps of sequences.
        plan: of a runner, whose attention backend is still open.
        config: of the engine.
        kept: what was measured before; it gets what is measured now.
        prepacked: whether the model's weights are packed.

    Raises:
        UnsupportedAttentionError: no backend computes the model's attention.
        BatchInvarianceError: there are no batch sizes.
    """
    has_states = bool(shapes.states)
    compiles = prepacked and wants_compiled(config, executor.loaded, has_states=has_states)
    found = _recalled(executor, plan, kept, prepacked=prepacked, compiles=compiles)
    if found is None:
        found = _measured(executor, plan, config, compiles=compiles)
        if config.deterministic:
            _keep(kept, found, prepacked=prepacked)
    return found


def _recalled(
    executor: Executor, plan: RunnerPlan, kept: KeptMeasurement, *, prepacked: bool, compiles: bool
) -> Measurement | None:
    """What was measured before, if a sample of it is still so; None if it has to be measured."""
    if (found := kept.recall()) is None:
        return None
    try:
        measured = _MEASURED.validate_python(found)
    except ValidationError as error:
        logger.warning("a kept measurement is not used: %s", error)
        return None
    if measured.prepacked != prepacked:
        return None
    runner = executor.build(replace(plan, attention=measured.attention))
    compiled = compile_layers_of(runner) if compiles else CompiledLayers()
    if measured.compiled != compiled.card():
        compiled.undo()
        return None
    sizes = measured.batch_sizes
    vocab_size = _vocab_size(executor.loaded)
    if bits_digest(runner, sizes, vocab_size=vocab_size, several=True) != measured.bits:
        logger.warning("the model gives other bits than when it was measured: it is measured again")
        compiled.undo()
        return None
    if measured.tiles and tiles_digest(runner.vision, measured.tiles) != measured.tile_bits:
        logger.warning("images get other bits than when they were measured: all is measured again")
        compiled.undo()
        return None
    logger.info("batch sizes that agree bit for bit: as measured before, %s", sizes.decode)
    return Measurement(runner, sizes, compiled, measured.tiles)


def _keep(kept: KeptMeasurement, found: Measurement, *, prepacked: bool) -> None:
    runner, sizes, compiled, tiles = found
    vocab_size = _vocab_size(runner.loaded)
    bits = bits_digest(runner, sizes, vocab_size=vocab_size, several=False)
    tile_bits = None if tiles is None else tiles_digest(runner.vision, tiles)
    if bits is not None and (tiles is None or tile_bits is not None):
        measured = _Measured(
            runner.backend.name, prepacked, compiled.card(), sizes, bits, tiles, tile_bits
        )
        kept.keep(_MEASURED.dump_python(measured, mode="json"))


def _measured(
    executor: Executor, plan: RunnerPlan, config: EngineConfig, *, compiles: bool
) -> Measurement:
    """See `measurement`; layers are not compiled where they, or forwards with them, differ."""
    runner = _working_runner(executor, plan)
    compiled = CompiledLayers()
    if compiles:
        compiled = compile_layers_of(runner)
        problem = compiled and forward_problem(runner, vocab_size=_vocab_size(runner.loaded))
        if problem:
            logger.warning("layers are not compiled: %s", problem)
            compiled.undo()
    shape = executor.loaded.tile_shape
    tiles = None if shape is None else find_tile_counts(runner.vision, shape, runner.device)
    try:
        return Measurement(runner, _batch_sizes(runner, config), compiled, tiles)
    except BatchInvarianceError as error:
        if not compiled:
            raise
        logger.warning("layers are not compiled: %s", error)
        compiled.undo()
    return Measurement(runner, _batch_sizes(runner, config), compiled, tiles)


def _batch_sizes(runner: ModelRunner, config: EngineConfig) -> BatchSizes:
    loaded = runner.loaded
    sizes = platform_of(loaded.device).sizes(config.prefill_chunk, config.page_size)
    # An image that is prefilled in one piece may be longer than a chunk.
    chunk = max(sizes.prefill_chunk, loaded.whole_image_tokens)
    wanted = WantedSizes(config.max_sequences, chunk, max(sizes.forward_rows, 2 * chunk))
    if not config.deterministic:
        return any_batch_sizes(runner, wanted)
    return find_batch_sizes(runner, wanted, vocab_size=_vocab_size(loaded))


def _working_runner(executor: Executor, plan: RunnerPlan) -> ModelRunner:
    """A runner with the first backend that takes this model and computes what its own forward does.

    Raises:
        UnsupportedAttentionError: no backend does; it says why the last one does not.
    """
    problem: str | None = None
    for name in platform_of(executor.loaded.device).attention_backends:
        chosen = replace(plan, attention=name)
        problem = executor.attention_problem(chosen)
        if problem is None:
            tried = _try_runner(executor, chosen)
            if isinstance(tried, ModelRunner):
                return tried
            problem = tried
        logger.info("attention is not computed by the backend %r: %s", name, problem)
    raise UnsupportedAttentionError(problem)


def _try_runner(executor: Executor, plan: RunnerPlan) -> ModelRunner | str:
    """A runner that works; or why it does not, with its cache freed for the next one."""
    try:
        runner = executor.build(plan)
        problem = forward_problem(runner, vocab_size=_vocab_size(executor.loaded))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:  # the kernel refuses something that is not known here
        return str(error)
    return problem or runner


def _vocab_size(loaded: LoadedModel) -> int:
    size: int = loaded.model.config.get_text_config().vocab_size
    return size
