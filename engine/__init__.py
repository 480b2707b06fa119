"""Inference, free of Ray and HTTP: `Engine` serves one model, `run_task` runs one task."""

from engine.environment import prepare

prepare()  # before anything below imports torch

from engine.config import EngineConfig  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.images import ImageInputs, ImagePreprocessor  # noqa: E402
from engine.run_task import run_task  # noqa: E402

__all__ = ["Engine", "EngineConfig", "ImageInputs", "ImagePreprocessor", "run_task"]
