"""Rotary embeddings as this engine uses them: never beyond the end of the model's context."""

from __future__ import annotations

from typing import Any

_DYNAMIC = "dynamic"
_FIXED = "default"  # so that no forward looks for longer sequences


def fix_idle_scaling(model: Any) -> None:
    """Let rotary embeddings with dynamic scaling keep the frequencies that they begin with.

    The scaling begins after ``max_position_embeddings``, where every context of this engine ends.
    So no bit changes; but no row depends on the longest position in the batch then, and the model
    can be batched. All InternVL 2.5 and 3 models are configured in this way.

    Args:
        model: changed in place.
    """
    for module in model.get_decoder().modules():
        kinds = getattr(module, "rope_type", None)
        if kinds == _DYNAMIC:
            module.rope_type = _FIXED
        elif isinstance(kinds, dict):  # one for each type of layer
            module.rope_type = {
                layer: _FIXED if kind == _DYNAMIC else kind for layer, kind in kinds.items()
            }
