"""Puts an engine together: the model, its runner, its batched lane and its card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.card import model_card
from engine.config import EngineConfig
from engine.determinism import make_deterministic
from engine.formats.detect import MessageFormats, detect
from engine.lanes import BatchedLane, build_batched_lane
from engine.loader import LoadedModel, load_model
from engine.prompt import PromptRenderer
from engine.runner import Runner


@dataclass(frozen=True)
class Assembly:
    """What the engine's thread works with; read-only for others."""

    loaded: LoadedModel
    runner: Runner
    lane: BatchedLane
    renderer: PromptRenderer
    formats: MessageFormats
    card: dict[str, Any]


def assemble(config: EngineConfig) -> Assembly:
    """Load a model and measure what it needs. Blocking; on the thread that will run it.

    Raises:
        TaskError: see `engine.loader.load_model`.
    """
    make_deterministic(config.threads)
    loaded = load_model(config)
    runner = Runner(loaded, config.image_cache_bytes)
    lane = build_batched_lane(runner, loaded, config)
    formats = detect(loaded.tool_template or loaded.chat_template, loaded.tokenizer)
    card = model_card(config, loaded, lane, formats)
    return Assembly(loaded, runner, lane, PromptRenderer(loaded), formats, card)
