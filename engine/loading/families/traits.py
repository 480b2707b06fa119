"""How the vision families differ in their prompts, found out from the loaded model itself."""

from __future__ import annotations

import inspect
from typing import Any


def whole_image_tokens(model: Any) -> int:
    """The most tokens of a prompt that see each other, as parts of one image; 0 if none do."""
    make_masks = getattr(type(model), "create_masks_for_generate", None)
    if make_masks is None or "token_type_ids" not in inspect.signature(make_masks).parameters:
        return 0
    return int(model.config.mm_tokens_per_image)


def rope_index(model: Any) -> Any:
    """What computes the rotary positions of a prompt with images; None where they are 0, 1, 2 ...

    It takes neighbouring image tokens for one image: between two there has to be another token.
    """
    return getattr(getattr(model, "model", None), "get_rope_index", None)
