"""What `run_task` expects of a cache; anything with these methods is one."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class ModelCache(Protocol[T]):
    """Keeps loaded models by a key, which is opaque.

    A cache drops a model by dropping its reference: no call is needed to free its memory.
    """

    def load(self, key: str, model_loader: Callable[[], T]) -> T:
        """The model that is kept under ``key``, or else what ``model_loader`` returns."""
        ...

    def clear(self) -> None:
        """Forget all models."""
        ...
