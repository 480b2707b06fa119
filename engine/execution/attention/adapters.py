"""Architectures that compute attention in code of their own, led to transformers' interface.

Each of their attention modules gets something in the place of that code: as long as transformers'
implementations are chosen it calls the code, else the function that is registered by the name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from engine.execution.attention.interface import UnsupportedAttentionError

_THEIR_OWN = ("eager", "sdpa")
_OWN = "_own_attention"

Attention = Callable[..., tuple[torch.Tensor, Any]]
"""A function of transformers' attention interface."""


def use_interface(model: Any) -> None:
    """Adapt the attention modules of a model, in place; nothing if none needs it."""
    decoder = model.get_decoder()
    for module in decoder.modules():
        adapt = _ADAPTERS.get(type(module).__name__)
        if adapt is not None and not hasattr(module, _OWN):
            adapt(module, decoder.config)
            # transformers looks into the code of the class, and would not choose another one.
            decoder._can_set_attn_implementation = lambda: True


def own_attention(module: Any) -> Attention | None:
    """What an adapted module computes by itself, as a function of the interface; else None."""
    own: Attention | None = getattr(module, _OWN, None)
    return own


# --- A method of the module ----------------------------------------------------------------------


def _adapt_method(module: Any, config: Any, scaling: float, window: int | None = None) -> None:
    """One whose ``_attn`` takes queries, keys and values, and a mask."""
    own = module._attn

    def as_interface(
        _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **__: Any
    ) -> tuple[torch.Tensor, Any]:
        output, weights = own(query, key, value, mask)
        return output.transpose(1, 2), weights

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None
    ) -> tuple[torch.Tensor, Any]:
        name = config._attn_implementation
        if name in _THEIR_OWN:
            return own(query, key, value, attention_mask)  # type: ignore[no-any-return]
        # Rotary positions leave queries and keys in float32; the cache of `generate` does not.
        states = (query.to(value.dtype), key.to(value.dtype), value)
        output, weights = AttentionInterface()[name](
            module, *states, attention_mask, scaling=scaling, sliding_window=window
        )
        return output.transpose(1, 2), weights

    module._attn = attend
    setattr(module, _OWN, as_interface)


def _adapt_scaled(module: Any, config: Any) -> None:
    _adapt_method(module, config, module.head_dim**-0.5)


def _adapt_gpt_neo(module: Any, config: Any) -> None:
    """Its scores are not scaled, and every second layer has a window."""
    module.layer_idx = module.layer_id
    window = config.window_size if module.attention_type == "local" else None
    _adapt_method(module, config, 1.0, window)


# --- Falcon --------------------------------------------------------------------------------------


def _adapt_falcon(module: Any, config: Any) -> None:
    module.forward = partial(_falcon, module, module.forward, config)
    setattr(module, _OWN, _plain)


def _plain(
    _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    causal = mask is None and query.shape[2] > 1
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return output.transpose(1, 2), None


def _falcon(
    module: Any,
    own: Any,
    config: Any,
    hidden_states: torch.Tensor,
    *args: Any,
    alibi: torch.Tensor | None = None,
    attention_mask: Any = None,
    position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:
    """`FalconAttention.forward`, whose attention stands in the midst of it."""
    name = config._attn_implementation
    if name in _THEIR_OWN:
        given = {"alibi": alibi, "attention_mask": attention_mask}
        return own(hidden_states, *args, **given, position_embeddings=position_embeddings, **kwargs)
    if alibi is not None:
        raise UnsupportedAttentionError("attention with ALiBi")
    rotate = type(module).forward.__globals__["apply_rotary_pos_emb"]
    states = module._split_heads(module.query_key_value(hidden_states))
    query, key, value = (each.transpose(1, 2) for each in states)
    query, key = rotate(query, key, *position_embeddings)
    output, weights = AttentionInterface()[name](module, query, key, value, attention_mask)
    return module.dense(output.reshape(*hidden_states.shape[:2], -1)), weights


_ADAPTERS: dict[str, Callable[[Any, Any], None]] = {
    "CodeGenAttention": _adapt_scaled,
    "FalconAttention": _adapt_falcon,
    "GPTJAttention": _adapt_scaled,
    "GPTNeoSelfAttention": _adapt_gpt_neo,
}
"""By the class of the module."""
