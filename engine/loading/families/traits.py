"""How the vision families differ in their prompts, found out from the loaded model itself."""

from __future__ import annotations

import inspect
from typing import Any


def whole_image_tokens(model: Any) -> int:
    """The most tokens of a prompt that attend to each other as one image; 0 if none do."""
    make_masks = getattr(type(model), "create_masks_for_generate", None)
    if make_masks is None or "token_type_ids" not in inspect.signature(make_masks).parameters:
        return 0
    return int(model.config.mm_tokens_per_image)


def rope_index(model: Any) -> Any:
    """The function for rotary positions of a prompt with images; None where they are 0, 1, 2 ...

    It treats neighbouring image tokens as one image: two images need another token between them.
    """
    return getattr(getattr(model, "model", None), "get_rope_index", None)
