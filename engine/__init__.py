"""Inference, free of Ray and HTTP: `Engine` serves one model, `run_task` runs one task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.platform.environment import prepare

if TYPE_CHECKING:
    from engine.engine import Engine, run_task
    from engine.vision.preprocessor import ImageInputs, ImagePreprocessor

prepare()  # nothing above imports torch

__all__ = ["Engine", "EngineConfig", "ImageInputs", "ImagePreprocessor", "run_task"]

# Imported on first use: they need torch and transformers, which take seconds to import, and a
# program that only reads a configuration needs neither.
_MODULES = {
    "Engine": "engine.engine",
    "ImageInputs": "engine.vision.preprocessor",
    "ImagePreprocessor": "engine.vision.preprocessor",
    "run_task": "engine.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
