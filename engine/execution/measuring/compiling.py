"""Whether the layers of a model are compiled, and with a runner of the model, compiling them."""

from __future__ import annotations

from functools import partial

import torch

from engine.config import EngineConfig
from engine.execution.model_runner import ModelRunner, plain_attention
from engine.execution.modules import long_rope
from engine.execution.modules.compiled_layers.layers import CompiledLayers, compile_layers
from engine.execution.modules.compiled_layers.tracing import TRACED
from engine.execution.modules.prepack import packed_bytes
from engine.loading.loaded_model import LoadedModel
from engine.platform.measurements import cache_directory
from engine.requests.request import ScheduledTokens

_WORTH_IT = 100 * 10**6
"""Bytes of packed weights: layers of smaller models take longer to compile than they ever save."""


def wants_compiled(config: EngineConfig, loaded: LoadedModel, *, has_states: bool) -> bool:
    """Whether to compile the layers of a model whose weights are packed.

    What adapters add, states and the factors of long sequences depend on the tasks of a forward,
    which compiled code does not see.
    """
    if config.compile == "off" or loaded.adapters or has_states or loaded.spread:
        return False
    if long_rope.long_rope_limit(loaded.model) is not None:
        return False
    return config.compile == "on" or packed_bytes(loaded.model) >= _WORTH_IT


def compile_layers_of(runner: ModelRunner) -> CompiledLayers:
    """Compile the layers of a runner's model, in place; what cannot be stays as it is."""
    loaded = runner.loaded

    def run(num_rows: int) -> None:
        pages = list(range(runner.cache.pages_for(num_rows)))
        rows = [ScheduledTokens(0, num_rows, pages)]
        ids = torch.zeros(num_rows, dtype=torch.long, device=runner.device)
        runner.forward(ids, rows, num_rows=num_rows, keep=[0], num_keep=2)

    tracing = partial(plain_attention, loaded, TRACED)
    caches = cache_directory()
    return compile_layers(loaded.model, run, tracing, caches and caches / "compiled")
