"""A tiny random checkpoint of any text architecture, made through transformers' own classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from benchmarks.harness.models import word_tokenizer

VOCABULARY = 320
_MOST_PARAMETERS = 30_000_000
_NOISE = 0.1

_EXPERTS: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 8),
    **dict.fromkeys(("moe_num_experts", "num_experts_per_layer"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "n_group", "topk_group"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 32),
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
}
_LATENT: dict[str, Any] = {  # multi-head latent attention, and its index of tokens
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 16,
}
_STATE: dict[str, Any] = {  # Mamba 1 and 2, gated delta nets, linear recurrent units
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_expand", "expand"), 2),
    **dict.fromkeys(("time_step_rank", "dt_rank"), 8),
    **dict.fromkeys(("lru_width", "attention_hidden_size"), 64),
    "conv_kernel": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
GENERAL: dict[str, Any] = {
    **_EXPERTS,
    **_LATENT,
    **_STATE,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), 8),
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    # Far from uniform logits: answers must not agree because every token is equally likely.
    "initializer_range": 0.2,
}
"""Fields by their names in all configurations; each takes those that it has."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "moe_num_experts": 8,
            "moe_top_k": 2,
        },
    },
}
"""Fields of single architectures; None leaves a general one at its default."""


def save_tiny(architecture: str, directory: Path) -> None:
    """Save a random model of an architecture with a tokenizer.

    Raises:
        ValueError: it is not tiny.
        Exception: whatever transformers says of its configuration.
    """
    tokenizer = word_tokenizer(VOCABULARY, {"eos_token": "<eos>"})
    ids = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = tiny_config(architecture, {"vocab_size": VOCABULARY, **ids})
    torch.manual_seed(0)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"it has {size} parameters")
    model: Any = AutoModelForCausalLM.from_config(config)
    _enliven(model)
    model.generation_config.update(**ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def tiny_config(architecture: str, more: Mapping[str, Any]) -> Any:
    """The configuration of a tiny model; ``more`` are further fields."""
    kind: Any = CONFIG_MAPPING[architecture]
    own = EXCEPTIONS.get(architecture, {})
    names = {*vars(kind()), *inspect.signature(kind.__init__).parameters}
    names |= {*kind.attribute_map, *getattr(kind, "__dataclass_fields__", ())}
    fields = {name: value for name, value in GENERAL.items() if name in names}
    if "qk_rope_head_dim" in names:  # latent attention: sizes of its own, each head has its keys
        fields |= {"head_dim": None, "num_key_value_heads": fields["num_attention_heads"]}
    fields |= {**more, **own}
    return kind(**{name: value for name, value in fields.items() if value is not None})


@torch.no_grad()
def _enliven(model: Any) -> None:
    """Add noise to what begins equal everywhere, so that it matters: norms, biases, sinks."""
    for tensor in model.state_dict().values():
        if not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        if not tensor.isfinite().all():
            tensor.normal_(std=_NOISE)
        elif (tensor == tensor.flatten()[0]).all():
            tensor += _NOISE * torch.randn(tensor.shape)
