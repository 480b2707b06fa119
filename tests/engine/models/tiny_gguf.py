"""GGUF files of tiny models, written with llama.cpp's own package as its converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES, TokenType
from gguf.quants import dequantize, quantize

Q8 = GGMLQuantizationType.Q8_0


def save_gguf(
    model: Any,
    tokenizer: Any,
    path: Path,
    *,
    kind: GGMLQuantizationType = Q8,
    template: str | None = None,
    frequencies: np.ndarray[Any, Any] | None = None,
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a Llama, Qwen 2, Qwen 3 (MoE) or Phi-3; and give the model the weights of the file.

    Args:
        model: of transformers; its matrices are replaced by what is left of them in the file.
        tokenizer: a byte-level one.
        path: of the file.
        kind: of the matrices.
        template: the chat template.
        frequencies: the tensor by which Llama 3's rotary frequencies are divided.
        extra: more tensors.
        metadata: more strings and integers.
    """
    config = model.config
    architecture = config.model_type.replace("_", "")
    writer = GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    rotated = config.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(head_dim * rotated))
    writer.add_vocab_size(config.vocab_size)
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    _add_tokenizer(writer, tokenizer, template)
    for key, value in (metadata or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    number = next(n for n, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            module, _, suffix = name.rpartition(".")
            if module.endswith(".experts"):
                _add_experts(writer, name, tensor, kind)
                continue
            values = tensor.numpy()
            heads = {
                "q_proj": config.num_attention_heads,
                "k_proj": config.num_key_value_heads,
            }.get(module.rpartition(".")[2])
            turned = heads if architecture == "llama" else None
            if values.ndim == 2:
                stored = quantize(_turned(values, turned), kind)
                tensor.copy_(torch.from_numpy(_turned_back(dequantize(stored, kind), turned)))
                writer.add_tensor(f"{names.get_name(module)}.{suffix}", stored, raw_dtype=kind)
            else:
                writer.add_tensor(f"{names.get_name(module)}.{suffix}", values)
    if frequencies is not None:
        writer.add_tensor("rope_freqs.weight", frequencies.astype(np.float32))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_experts(
    writer: GGUFWriter, name: str, tensor: torch.Tensor, kind: GGMLQuantizationType
) -> None:
    """[experts, out, in] of a layer: gate and up are tensors of their own in the file."""
    layer = name.split(".")[2]
    parts = {"down": tensor}
    if name.endswith("gate_up_proj"):
        parts = dict(zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True))
    for part, weight in parts.items():
        stored = quantize(weight.numpy(), kind)
        weight.copy_(torch.from_numpy(dequantize(stored, kind)))
        writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", stored, raw_dtype=kind)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, template: str | None) -> None:
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    )
    writer.add_token_scores([0.0] * len(tokens))  # no merges: each byte is a token
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if template is not None:
        writer.add_chat_template(template)


def _turned(values: np.ndarray[Any, Any], heads: int | None) -> np.ndarray[Any, Any]:
    """Llama's queries and keys, whose rotary halves llama.cpp interleaves."""
    if heads is None:
        return values
    halves = values.reshape(heads, 2, -1, values.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _turned_back(values: np.ndarray[Any, Any], heads: int | None) -> np.ndarray[Any, Any]:
    if heads is None:
        return values
    pairs = values.reshape(heads, -1, 2, values.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))
