"""Inference, free of Ray and HTTP: `Engine` serves one model, `run_task` runs one task."""

from engine.config import EngineConfig
from engine.engine import Engine
from engine.images import ImageInputs, ImagePreprocessor
from engine.run_task import run_task

__all__ = ["Engine", "EngineConfig", "ImageInputs", "ImagePreprocessor", "run_task"]
