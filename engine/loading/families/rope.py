"""Rotary embeddings as this engine uses them: never beyond the end of the model's context."""

from __future__ import annotations

from typing import Any


def drop_idle_scaling(text_config: Any) -> None:
    """Replace dynamic scaling, which the engine never reaches, by none.

    It begins after ``max_position_embeddings``, where every context of this engine ends; up to
    there it multiplies by 1, so that no bit changes. Without it no row depends on the longest
    position in the batch, and the model can be batched. All InternVL 2.5 and 3 models are
    configured in this way.
    """
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "dynamic":
        return
    factor, length = rope["factor"], text_config.max_position_embeddings
    if factor * length / length - (factor - 1) != 1:  # rounding; transformers computes it like this
        return
    kept = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    text_config.rope_parameters = {**kept, "rope_type": "default"}
