"""For how many tokens a model was made, and what is taken where it does not say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
"""The fields in which configurations of language models say it."""

DEFAULT_CONTEXT = 4096
"""Tokens, for a model that says nothing, unless the operator sets ``context_length``."""


def own_context_length(fields: Mapping[str, Any]) -> Any:
    """What a language model's configuration says, of any type; None if nothing.

    Models whose positions have no end (ALiBi, a recurrent state) often say nothing, or -1 (XLNet).
    """
    said = (fields.get(name) for name in CONTEXT_NAMES)
    return next((length for length in said if length not in (None, -1)), None)
