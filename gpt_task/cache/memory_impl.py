"""The cache that comes with gpt-task: the last few models, in memory."""

import threading
from collections.abc import Callable
from typing import Any


class MemoryModelCache:
    """Keeps up to ``max_size`` models; the oldest one is dropped first. Thread safe."""

    def __init__(self, max_size: int = 1) -> None:
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1, got {max_size}")
        self.max_size = max_size
        self._models: dict[str, Any] = {}
        self._lock = threading.Lock()

    def load(self, key: str, model_loader: Callable[[], Any]) -> Any:
        """The model that is kept under ``key``, or else what ``model_loader`` returns.

        Room is made before the new model is loaded, so that the two are never in memory together.
        """
        with self._lock:
            if key not in self._models:
                while len(self._models) >= self.max_size:
                    del self._models[next(iter(self._models))]
                self._models[key] = model_loader()
            return self._models[key]

    def clear(self) -> None:
        """Forget all models."""
        with self._lock:
            self._models.clear()
