"""Every tensor of the published InternVL sizes finds its place, on the meta device.

The configurations hold what decides names and shapes, from the ``config.json`` of the repositories.
Where a whole file was not at hand they are put together from what it names: the language model's
own configuration (Qwen2.5, InternLM3, Qwen3) and the tower's (InternViT-300M or -6B, V2.5). The
numbers of parameters are the ones that the hub shows, an independent check of every shape.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.loading.families.internvl import native_config
from engine.loading.families.internvl_weights import OriginalInternVL
from tests.engine.models.tiny_internvl import Tower, original_names

_TOWERS: dict[Tower, dict[str, Any]] = {
    "300M": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "qk_normalization": False,
        "qkv_bias": True,
    },
    "6B": {
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "norm_type": "rms_norm",
        "num_attention_heads": 25,
        "num_hidden_layers": 45,
        "qk_normalization": True,
        "qkv_bias": False,
    },
}
_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
}


def _size(
    language: str,
    tower: Tower,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocabulary: int,
    **more: Any,
) -> dict[str, Any]:
    llm = {
        "architectures": [_ARCHITECTURES[language]],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "llm_config": llm | more,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
        "vision_config": {"image_size": 448, "patch_size": 14, **_TOWERS[tower]},
    }


# Name: configuration, and billions of parameters as the hub shows them.
SIZES: dict[str, tuple[dict[str, Any], float]] = {
    "InternVL3-1B": (_size("qwen2", "300M", 896, 24, 14, 2, 4864, 151674), 0.938),
    "InternVL3-2B": (_size("qwen2", "300M", 1536, 28, 12, 2, 8960, 151674), 2.09),
    "InternVL3-8B": (_size("qwen2", "300M", 3584, 28, 28, 4, 18944, 151674), 7.94),
    # An InternLM3 in InternLM2's layout; the other naming is what internlm3's own code has.
    "InternVL3-9B": (
        _size("internlm2", "300M", 4096, 48, 32, 2, 10240, 128512, rope_theta=50000000, bias=False),
        9.14,
    ),
    "InternVL3-9B, as InternLM3": (
        _size(
            "internlm3", "300M", 4096, 48, 32, 2, 10240, 128512,
            bias=False, head_dim=128, qkv_bias=False, rope_theta=50000000,
        ),
        9.14,
    ),
    "InternVL3-14B": (_size("qwen2", "300M", 5120, 48, 40, 8, 13824, 151674), 15.1),
    "InternVL3-38B": (_size("qwen2", "6B", 5120, 64, 40, 8, 27648, 151674), 38.4),
    "InternVL3-78B": (_size("qwen2", "6B", 8192, 80, 64, 8, 29568, 151674), 78.4),
    "InternVL2_5-8B": (
        _size("internlm2", "300M", 4096, 32, 32, 8, 14336, 92553, bias=False),
        8.08,
    ),
    "InternVL3_5-8B": (
        _size("qwen3", "300M", 4096, 36, 32, 8, 12288, 151936, head_dim=128, rope_scaling=None),
        8.53,
    ),
}  # fmt: skip

_LANGUAGES = {architecture: language for language, architecture in _ARCHITECTURES.items()}


def _shape(name: str, config: dict[str, Any]) -> tuple[int, ...]:
    """A tensor's shape, from the definitions of the original modules."""
    vision, llm = config["vision_config"], config["llm_config"]
    width, mlp = vision["hidden_size"], vision["intermediate_size"]
    hidden, inner = llm["hidden_size"], llm["intermediate_size"]
    size = llm.get("head_dim") or hidden // llm["num_attention_heads"]
    queries, keys = llm["num_attention_heads"] * size, llm["num_key_value_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (1, 1, width),
        "position_embedding": (1, 32 * 32 + 1, width),
        "patch_embedding.weight": (width, 3, 14, 14),
        "patch_embedding.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (mlp, width),
        "mlp.fc1.bias": (mlp,),
        "mlp.fc2.weight": (width, mlp),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (hidden, 4 * width),
        "mlp1.3.weight": (hidden, hidden),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.q_norm.weight": (size,),
        "self_attn.k_norm.weight": (size,),
        "attention.wqkv.weight": (queries + 2 * keys, hidden),
        "attention.wo.weight": (hidden, queries),
        **{f"mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")},
        **{f"feed_forward.w{n}.weight": (inner, hidden) for n in (1, 3)},
        "mlp.down_proj.weight": (hidden, inner),
        "feed_forward.w2.weight": (hidden, inner),
        **{
            f"{table}.weight": (llm["vocab_size"], hidden)
            for table in ("embed_tokens", "tok_embeddings", "lm_head", "language_model.output")
        },
    }
    found = [shape for ending, shape in shapes.items() if name.endswith("." + ending)]
    found += [shape for whole, shape in shapes.items() if name == whole]
    if found:
        return found[0]
    return (width,) if name.startswith("vision_model") else (hidden,)  # norms, biases, scales


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_finds_its_place(name: str) -> None:
    config, billions = SIZES[name]
    llm, vision = config["llm_config"], config["vision_config"]
    names = original_names(
        _LANGUAGES[llm["architectures"][0]],
        llm["num_hidden_layers"],
        tower_layers=vision["num_hidden_layers"],
        tower="6B" if vision["qk_normalization"] else "300M",
    )
    tensors = {
        name: torch.empty(_shape(name, config), dtype=torch.bfloat16, device="meta")
        for name in names
    }
    loaded: Any = OriginalInternVL.from_pretrained(
        None,
        config=native_config(config, name),
        state_dict=tensors,
        device_map={"": "meta"},
        output_loading_info=True,
    )
    model, found = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not found[kind]
    assert not found["error_msgs"]
    total = sum(tensor.numel() for tensor in tensors.values())
    assert total == sum(parameter.numel() for parameter in model.parameters())
    digits = len(str(billions).partition(".")[2])
    assert round(total / 1e9, digits) == billions
    assert model.config.image_seq_length == 256


def test_the_index_of_a_published_checkpoint() -> None:
    """``total_size`` of the index of InternVL2_5-8B, in bytes; InternVL3-9B has 685 tensors."""
    sizes = {}
    for name in ("InternVL2_5-8B", "InternVL3-9B"):
        config, _ = SIZES[name]
        layers = config["llm_config"]["num_hidden_layers"]
        names = original_names("internlm2", layers, tower_layers=24, tower="300M")
        sizes[name] = names
    total = sum(
        2 * torch.Size(_shape(name, SIZES["InternVL2_5-8B"][0])).numel()
        for name in sizes["InternVL2_5-8B"]
    )
    assert total == 16150730752
    assert len(sizes["InternVL3-9B"]) == 685
