"""A loaded model, as a model cache keeps it."""

from __future__ import annotations

import gc
import weakref

import torch

from engine import Engine, EngineConfig


class LoadedModel:
    """An engine that is closed, and its memory freed, when nobody holds this any more.

    A gpt-task cache drops a model by forgetting it. An engine would not notice: it has a thread,
    which keeps it alive.
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
    gc.collect()  # an engine's parts know each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
