"""A loaded model, and what its prompts need: made by the loader, read by all stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from engine.loading.adapters.adapter import Adapter
from engine.loading.families.traits import ImageAttention
from engine.loading.quantized.checkpoint import PLAIN, Checkpoint
from engine.loading.sharding.layer_split import LayerPlacement


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what its prompts need.

    ``revision`` is the commit of a model of the hub; None for a directory. ``device`` is where
    tokens go in and logits come out.
    """

    model: Any  # a PreTrainedModel; its attributes come from the architecture, untyped
    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    image_token: str | None
    image_token_id: int | None
    context_length: int
    device: torch.device
    revision: str | None
    spread: LayerPlacement | None = None  # over several devices, of which ``device`` is the first
    image_attention: ImageAttention = ImageAttention.NONE
    whole_image_tokens: int = 0  # the most tokens of an image that see each other; 0 if none do
    tile_shape: tuple[int, ...] | None = None  # see `engine.loading.families.processors`
    typed_token_ids: frozenset[int] = frozenset()  # see `engine.loading.families.processors`
    indicator_token_ids: tuple[int, ...] = ()  # see `engine.loading.families.traits`
    tool_template: str | None = None  # for tasks with tools, if it differs
    image_tag: str | None = (
        None  # what texts say where an image belongs (`engine.vision.image_places`)
    )
    begins_every_prompt: bool = False
    begins_after_images: bool = False  # see `engine.loading.families.family`
    prompt_end: str = ""
    checkpoint: Checkpoint = PLAIN
    gguf: str | None = None  # name of the file, of a model that is one
    own_attention: str = ""  # which attention transformers chose for the language model
    adapters: Mapping[str, Adapter] = field(default_factory=dict)  # that tasks may name, by name

    @property
    def needs_whole_prompts(self) -> bool:
        """Whether a prompt with images cannot be cut into chunks."""
        return self.image_attention is ImageAttention.FURTHER

    @property
    def takes_images(self) -> bool:
        """Whether messages may hold image blocks."""
        return self.image_token is not None
