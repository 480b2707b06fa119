"""Puts an engine together: the model, its executor, how it is batched, and its card."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig
from engine.core.model_info import model_card, weights_digest
from engine.execution.batch_sizes import BatchInvarianceError
from engine.execution.batching import ContinuousBatching, set_up_batching
from engine.execution.executor import Executor
from engine.execution.modules.adapter_cache import AdapterCache
from engine.execution.modules.lora import linear_places, loras
from engine.loading.loaded_model import LoadedModel
from engine.loading.loader import load_model
from engine.loading.sharding.tensor_plan import refuse_without_batching
from engine.parallel.coordinator import Coordinator
from engine.parallel.launcher import Launcher
from engine.parallel.split_executor import SplitExecutor
from engine.platform.determinism import make_deterministic
from engine.platform.measurements import KeptMeasurement, cache_directory, machine
from engine.platform.platforms import platform_of
from engine.requests.prompt import PromptRenderer
from engine.sampling.sampler import prepare_sampling
from engine.text.detect import MessageFormats
from schema.errors import ModelInvalid, TaskError


@dataclass(frozen=True)
class Assembly:
    """The parts that the engine's thread works with; read-only for other threads."""

    loaded: LoadedModel
    executor: Executor
    batching: ContinuousBatching
    renderer: PromptRenderer
    formats: MessageFormats
    card: dict[str, Any]
    adapters: AdapterCache


def assemble(config: EngineConfig, launcher: Launcher) -> Assembly:
    """Load a model and measure what it needs. Blocking; on the thread that will run it.

    Args:
        config: of the engine.
        launcher: starts processes for the other devices of a model that is split tensor by tensor.

    Raises:
        TaskError: see `engine.loading.loader.load_model`.
    """
    make_deterministic(config.threads)
    if config.tensor_parallel:
        return _assemble_ranks(config, Coordinator(launcher))
    loaded = load_model(config)
    return _assembled(config, Executor(loaded, config.image_cache_bytes))


def _assemble_ranks(config: EngineConfig, coordinator: Coordinator) -> Assembly:
    """Load and measure on all ranks; none keeps running when that fails on one."""
    try:
        loaded = load_model(config, coordinator.start)
        executor = SplitExecutor(loaded, config.image_cache_bytes, coordinator)
        assembly = _assembled(config, executor)
        refuse_without_batching(config, assembly.batching.problem)
    except BaseException as error:
        # An error of this rank itself is reported as it is.
        own = isinstance(error, TaskError) and error.__cause__ is None
        cause = None if own or not isinstance(error, Exception) else coordinator.load_error()
        coordinator.close()
        if cause is not None:
            raise cause from error
        raise
    return assembly


def _assembled(config: EngineConfig, executor: Executor) -> Assembly:
    loaded = executor.loaded
    # The files are hashed while the model is measured: neither waits for the other.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as beside:
        weights = beside.submit(weights_digest, config, loaded)
        for adapter in loaded.adapters.values():
            beside.submit(lambda each: each.digest, adapter)
        batching = set_up_batching(executor, config, _kept(config, loaded, weights))
        prepare_sampling(loaded.device)
    adapters = _adapters(config, loaded, batching)
    renderer = PromptRenderer(loaded)
    card = model_card(config, loaded, batching, renderer, weights.result())
    return Assembly(loaded, executor, batching, renderer, renderer.formats, card, adapters)


def _kept(config: EngineConfig, loaded: LoadedModel, weights: Future[str]) -> KeptMeasurement:
    """What was measured of this model with this configuration on this machine.

    Nothing is kept where not all that it depends on is known here: code of the model's repository,
    other ranks.
    """
    knows_all = not config.trust_remote_code and not config.tensor_parallel
    directory = cache_directory() if config.keep_measurements and knows_all else None
    platform = platform_of(loaded.device)
    spread = loaded.spread
    devices = [stage.device for stage in spread.stages] if spread else [loaded.device]
    depends_on = {
        "machine": machine(),
        "devices": [platform.device_name(each) for each in devices],
        "arithmetic": platform.arithmetic(devices),
        "config": config.model_dump(mode="json"),
        "dtype": str(loaded.model.dtype),
        "checkpoint": loaded.checkpoint.card(),
        "context_length": loaded.context_length,
    }
    return KeptMeasurement(depends_on, weights.result, directory)


def _adapters(
    config: EngineConfig, loaded: LoadedModel, batching: ContinuousBatching
) -> AdapterCache:
    """The adapters that tasks may name, none of which is loaded yet."""
    own = loras(loaded.model)
    if loaded.adapters:
        places = linear_places(loaded.model, lambda: batching.runner.plain_logits([0]))
        try:
            own.set_up(places, list(loaded.adapters.values()))
        except BatchInvarianceError as error:
            raise ModelInvalid(f"adapters of model {config.name!r}: {error}") from error
    return AdapterCache(loaded.adapters, own, config.adapter_bytes)
