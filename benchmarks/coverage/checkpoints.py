"""A tiny random checkpoint of any text architecture, made through transformers' own classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from demo.random_model import word_tokenizer

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
    "lru_width": 64,
    "conv_kernel": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
GENERAL: dict[str, Any] = {
    "is_decoder": True,
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

_HALF_STATE = ["linear_attention", "full_attention"] * 2
_HALF_CONVOLUTION = ["conv", "full_attention"] * 2
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "moe_num_experts": 8,
            "moe_top_k": 2,
        },
    },
    "dots3_note_text": {
        **{f"swa_{name}": size for name, size in _LATENT.items() if not name.startswith("index")},
        **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
        "swa_head_dim": 24,
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": _HALF_STATE},
    "lfm2": {"layer_types": _HALF_CONVOLUTION},
    "lfm2_moe": {"layer_types": _HALF_CONVOLUTION, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
    },
    "xlstm": {"hidden_size": 128},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "head_dim": None,
    },
    "zamba2": {"head_dim": None, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields of single architectures; None leaves a general one at its default."""


def save_tiny(
    architecture: str, directory: Path, more: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Save a random model of an architecture with a tokenizer.

    Args:
        architecture: its model type.
        directory: which is there.
        more: further fields of its configuration.

    Raises:
        ValueError: it is not tiny.
        Exception: whatever transformers says of its configuration.
    """
    tokenizer = word_tokenizer(VOCABULARY, {"eos_token": "<eos>"})
    ids = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = tiny_config(architecture, {"vocab_size": VOCABULARY, **ids, **more})
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
    if "qk_rope_head_dim" in names:  # of latent attention, where each head has keys of its own
        fields["num_key_value_heads"] = fields["num_attention_heads"]
        fields["head_dim"] = fields["qk_rope_head_dim"]
    fields |= {**own, **more}
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
