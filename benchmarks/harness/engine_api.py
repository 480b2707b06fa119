"""All that the benchmarks take from the inside of the engine: what changes there, changes here."""

from engine import Engine, EngineConfig, ImagePreprocessor
from engine.execution.model_runner import Runner
from engine.execution.prepack import PackedLinear, prepack
from engine.loading.estimate import weight_bytes
from engine.loading.families.processors import image_only_processor
from engine.loading.loader import load_model
from engine.platform.determinism import make_deterministic
from engine.run_task import PATHS

__all__ = [
    "PATHS",
    "Engine",
    "EngineConfig",
    "ImagePreprocessor",
    "PackedLinear",
    "Runner",
    "image_only_processor",
    "load_model",
    "make_deterministic",
    "prepack",
    "weight_bytes",
]
