"""Which of a model's adapters cannot be used, as far as files on this machine show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.config import EngineConfig
from engine.loading.adapters.adapter import locate_adapter
from engine.loading.description import ModelDescription, describe_model
from engine.loading.errors import load_errors
from schema.errors import TaskError


def adapter_faults(config: EngineConfig) -> Iterator[tuple[str, str]]:
    """The name of each faulty adapter in a local directory, and what is wrong with it.

    Whether it fits is seen where the model is a local directory too.
    """
    described: ModelDescription | None = None
    for name, listed in config.adapters.items():
        if not Path(listed.source).is_dir():
            if Path(listed.source).is_absolute():
                yield name, f"there is no directory {listed.source}"
            continue
        try:
            adapter = locate_adapter(config, name)
            described = described or _described(config)
            if described is not None:
                adapter.refuse_misfit(described.linear_sizes)
        except TaskError as error:
            yield name, error.message


def _described(config: EngineConfig) -> ModelDescription | None:
    """None if the model is not here, or cannot be described: its own faults are told elsewhere."""
    if not Path(config.model).is_dir():
        return None
    try:
        with load_errors(config):
            return describe_model(config.replace(trust_remote_code=False))
    except TaskError:
        return None
