"""A loaded model, as a model cache keeps it."""

from __future__ import annotations

import gc
import weakref

from engine import Engine, EngineConfig
from engine.platform.platforms import best_platform


class LoadedModel:
    """An engine that is closed, and its memory freed, when this object is garbage.

    A gpt-task cache drops a model by dropping its reference. That alone does not close an engine,
    because its thread keeps it alive.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Load the model. Raises `TaskError` as `Engine` does."""
        self._held = [Engine(config)]
        self.close = weakref.finalize(self, _close, self._held)

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._held[0]


def _close(held: list[Engine]) -> None:
    held.pop().close()
    gc.collect()  # an engine's parts refer to each other
    best_platform().empty_cache()
