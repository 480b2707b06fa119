"""Where models stay loaded between tasks: ``run_task(..., model_cache=MemoryModelCache())``."""

from gpt_task.cache.abc import ModelCache
from gpt_task.cache.memory_impl import MemoryModelCache

__all__ = ["MemoryModelCache", "ModelCache"]
