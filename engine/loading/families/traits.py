"""How the vision families differ in their prompts, found out from the loaded model itself."""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Any

import torch

_ROTARY_AXES = 3  # of Qwen's positions, where the configuration does not say it
_PROBE = (0, 1, 1, 0, 1, 1, 0)  # types of tokens: two images of two tokens, with text around them
_TYPE_NAMES = ("token_type_ids", "mm_token_type_ids")


class ImageAttention(Enum):
    """Which later tokens of a prompt a token sees."""

    NONE = "none"
    IMAGE = "those of its image"
    IMAGE_IN_WINDOWS = "those of its image, in layers with a window only"
    FURTHER = "later tokens of a prompt that are not of the same image"


def image_attention(model: Any) -> ImageAttention:
    """What the masks show that the model makes for a prompt with two images.

    Gemma 3 has `IMAGE`, the larger Gemma 4 `IMAGE_IN_WINDOWS`. In PaliGemma all tokens of a prompt
    see each other, in Molmo 2 those of all images.
    """
    masks = _masks(model, _PROBE)
    seen = {kind: _later(mask) for kind, mask in masks.items()}
    own = {(1, 2), (4, 5)}
    if not any(seen.values()):
        return ImageAttention.NONE
    if all(later == own for later in seen.values()):
        return ImageAttention.IMAGE
    windowed = {kind: own if kind == "sliding_attention" else set() for kind in seen}
    return ImageAttention.IMAGE_IN_WINDOWS if seen == windowed else ImageAttention.FURTHER


def sees_whole_prompt(model: Any) -> bool:
    """Whether the tokens of a prompt see each other, images or not: PaliGemma."""
    return any(map(_later, _masks(model, (0, 0, 0)).values()))


def _masks(model: Any, types: tuple[int, ...]) -> dict[str, Any]:
    """The masks that a model makes for tokens of these types, by kind of layer."""
    make = getattr(type(model), "create_masks_for_generate", None)
    arguments = {} if make is None else inspect.signature(make).parameters
    name = next((name for name in _TYPE_NAMES if name in arguments), None)
    if make is None or name is None:
        return {}
    masks = make(
        config=model.config,
        inputs_embeds=torch.zeros(1, len(types), 1),
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
        is_first_iteration=True,
        **{name: torch.tensor([types])},
    )
    return dict(masks) if isinstance(masks, dict) else {"full_attention": masks}


def _later(mask: Any) -> set[tuple[int, int]]:
    """Pairs of a token and a later one that it sees; the mask [1, 1, tokens, tokens] or None."""
    if mask is None:
        return set()
    visible = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    return {(row, column) for row, column in visible.nonzero().tolist() if column > row}


def rope_index(model: Any) -> Any:
    """The function for rotary positions of a prompt with images; None where they are 0, 1, 2 ...

    It treats neighbouring image tokens as one image: two images need another token between them.
    """
    return getattr(getattr(model, "model", None), "get_rope_index", None)


def rotary_axes(model: Any) -> int:
    """How many rotary positions a token has."""
    if rope_index(model) is None:
        return 1
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return len(rope.get("mrope_section") or range(_ROTARY_AXES))


def image_encoder(model: Any) -> Any:
    """The function that makes features of an image."""
    own = getattr(model, "get_image_features", None)
    return model.model.get_image_features if own is None else own


def reads_token_ids(model: Any) -> bool:
    """Whether layers read the ids of tokens, beside their embeddings: Gemma 3n and 4."""
    return bool(getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0))


def indicator_tokens(model: Any) -> tuple[int, ...]:
    """Tokens around images that have features too, the same ones for every image: Ovis 2."""
    return tuple(getattr(model.config, "visual_indicator_token_ids", None) or ())
