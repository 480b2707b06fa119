"""Tiny InternVL checkpoints in the original layout, written from a native model's weights.

The names are written out here once more, from the original modules' definitions
(``modeling_intern_vit.py``, ``modeling_internvl_chat.py``, ``modeling_internlm2.py``), so that a
mistake in the engine's translation shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import (
    GptOssConfig,
    InternLM3Config,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.engine.models.tiny_internvl_tokenizers import (
    ADDED,
    BYTES_END,
    QWEN,
    Language,
    first_added,
    save_internlm_tokenizer,
    save_qwen_tokenizer,
    vocabulary_size,
    write_json,
)

Tower = Literal["300M", "6B"]

LANGUAGES: tuple[Language, ...] = ("qwen2", "qwen3", "qwen3_moe", "internlm3", "internlm2")
DENSE: tuple[Language, ...] = ("qwen2", "qwen3", "internlm3", "internlm2")
"""Those without experts, whose quantized weights are layers of a library."""
TILE = 32
SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"  # noqa: RUF001
    "多模态大语言模型。"
)
_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
}
_LANGUAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "tie_word_embeddings": False,
    "head_dim": 16,
}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
GPT_OSS: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_scaling": None,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": TILE,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
}
_TOWERS: dict[Tower, dict[str, Any]] = {
    "300M": {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
    "6B": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
}


def native_model(language: Language, tower: Tower, *, seed: int = 0) -> Any:
    """A random model of transformers' own classes, with default rotary embeddings."""
    sizes = {key: value for key, value in _LANGUAGE.items() if key != "rope_scaling"}
    ids: dict[str, Any] = {"vocab_size": vocabulary_size(language), "initializer_range": 0.2}
    classes: dict[Language, type[PreTrainedConfig]] = {
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "qwen3_moe": Qwen3MoeConfig,
        "gpt_oss": GptOssConfig,
        "internlm3": InternLM3Config,
        "internlm2": LlamaConfig,
    }
    if language == "qwen3_moe":
        sizes |= EXPERTS
    if language == "gpt_oss":
        sizes |= GPT_OSS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
        del sizes["rope_theta"]
    text = classes[language](**sizes, **ids)
    vision = {k: v for k, v in _VISION.items() if k != "layer_norm_eps"} | {
        "norm_type": _TOWERS[tower]["norm_type"],
        "use_qk_norm": _TOWERS[tower]["qk_normalization"],
        "attention_bias": _TOWERS[tower]["qkv_bias"],
        "initializer_range": 0.3,
        "layer_scale_init_value": 1.0,
    }
    torch.manual_seed(seed)
    model: Any = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=InternVLVisionConfig(**vision).to_dict(),
            text_config=text.to_dict(),
            image_token_id=first_added(language) + ADDED.index("<IMG_CONTEXT>"),
            image_seq_length=4,
            downsample_ratio=0.5,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():  # norms, biases and scales that are not all ones and zeros
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        if language in ("internlm3", "internlm2"):  # answer in words: random bytes are not text
            model.lm_head.weight[:BYTES_END] = 0
            model.lm_head.weight[first_added(language) :] = 0
    return model.eval()


def original_config(language: Language, tower: Tower, **changes: Any) -> dict[str, Any]:
    """A ``config.json`` as the original repositories have it."""
    llm = {
        **_LANGUAGE,
        "architectures": [_ARCHITECTURES[language]],
        "auto_map": {"AutoModelForCausalLM": "modeling_own.Model"},
        "model_type": language,
        "vocab_size": vocabulary_size(language),
        "eos_token_id": 2,
        "temperature": 1.0,
        "top_k": 50,
        "torch_dtype": "float32",
        "use_cache": False,
    }
    if language == "qwen3_moe":
        llm |= EXPERTS | {"decoder_sparse_step": 1, "mlp_only_layers": []}
    if language == "gpt_oss":
        llm |= GPT_OSS | {"rope_scaling": {"rope_type": "default"}}
        changes = {"template": "internvl3_5_gpt_oss"} | changes
    if language in ("internlm2", "internlm3"):
        llm["bias"] = False
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "llm_config": llm,
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "system_message": None,
        "template": "internvl2_5",
        "torch_dtype": "float32",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            **_VISION,
            **_TOWERS[tower],
            "architectures": ["InternVisionModel"],
            "drop_path_rate": 0.1,
            "model_type": "intern_vit_6b",
            "use_flash_attn": True,
        },
    } | changes


_KINDS = ("", "_bias")


def original_names(
    language: str, layers: int, *, tower_layers: int, tower: Tower, num_experts: int = 4
) -> list[str]:
    """All tensors of an original checkpoint, in the order of its modules."""
    names = [
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.position_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.patch_embedding.bias",
    ]
    norms = ["norm1.weight", "norm2.weight"]
    if tower == "300M":
        norms += ["norm1.bias", "norm2.bias", "attn.qkv.bias"]
    else:
        norms += ["attn.q_norm.weight", "attn.k_norm.weight"]
    dense = [f"{m}.{p}" for m in ("attn.proj", "mlp.fc1", "mlp.fc2") for p in ("weight", "bias")]
    for n in range(tower_layers):
        prefix = f"vision_model.encoder.layers.{n}."
        names += [prefix + name for name in ("ls1", "ls2", "attn.qkv.weight", *norms, *dense)]
    names += [f"mlp1.{n}.{part}" for n in (0, 1, 3) for part in ("weight", "bias")]
    parts = [f"self_attn.{p}_proj.weight" for p in "qkvo"]
    parts += [f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
    parts += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    first, last = "model.embed_tokens", "lm_head"
    if language == "qwen2":
        parts += [f"self_attn.{p}_proj.bias" for p in "qkv"]
    if language in ("qwen3", "qwen3_moe"):
        parts += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    if language == "qwen3_moe":
        parts = [part for part in parts if not part.startswith("mlp.")] + ["mlp.gate.weight"]
        parts += [
            f"mlp.experts.{expert}.{projection}_proj.weight"
            for expert in range(num_experts)
            for projection in ("gate", "up", "down")
        ]
    if language == "gpt_oss":
        parts = [part for part in parts if not part.startswith("mlp.")] + ["self_attn.sinks"]
        parts += [f"self_attn.{p}_proj.bias" for p in "qkvo"]
        parts += ["mlp.router.weight", "mlp.router.bias"]
        parts += [f"mlp.experts.{p}_proj{kind}" for p in ("gate_up", "down") for kind in _KINDS]
    if language == "internlm2":
        parts = ["attention.wqkv.weight", "attention.wo.weight"]
        parts += [f"feed_forward.w{n}.weight" for n in (1, 2, 3)]
        parts += ["attention_norm.weight", "ffn_norm.weight"]
        first, last = "model.tok_embeddings", "output"
    names += [f"language_model.model.layers.{n}.{part}" for n in range(layers) for part in parts]
    return names + [f"language_model.{name}.weight" for name in (first, "model.norm", last)]


def original_weights(model: Any, language: Language) -> dict[str, torch.Tensor]:
    """A native model's weights under the original names."""
    native = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
    tower = "6B" if model.config.vision_config.use_qk_norm else "300M"
    names = original_names(language, 2, tower_layers=2, tower=tower)  # type: ignore[arg-type]
    weights = {name: _original_weight(name, native, model.config) for name in names}
    assert sum(w.numel() for w in weights.values()) == sum(w.numel() for w in native.values())
    return weights


def _original_weight(name: str, native: Mapping[str, torch.Tensor], config: Any) -> torch.Tensor:
    part, _, rest = name.partition(".")
    if part == "mlp1":
        number, _, kind = rest.partition(".")
        module = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}[number]
        return native[f"multi_modal_projector.{module}.{kind}"]
    if rest.startswith("embeddings"):
        own = {
            "class_embedding": "cls_token",
            "position_embedding": "position_embeddings",
            "patch_embedding.weight": "patch_embeddings.projection.weight",
            "patch_embedding.bias": "patch_embeddings.projection.bias",
        }[rest.partition(".")[2]]
        return native[f"vision_tower.embeddings.{own}"]
    if part == "vision_model":
        _, _, number, block = rest.split(".", 3)
        prefix = f"vision_tower.encoder.layer.{number}."
        if block.startswith("attn.qkv"):
            kind = block.rpartition(".")[2]
            return torch.cat([native[f"{prefix}attention.{p}_proj.{kind}"] for p in "qkv"])
        for old, new in (
            ("attn.proj", "attention.projection_layer"),
            ("attn.", "attention."),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("ls1", "lambda_1"),
            ("ls2", "lambda_2"),
        ):
            if block.startswith(old):
                block = block.replace(old, new, 1)
                break
        return native[prefix + block]
    return _original_language_weight(rest, native, config.text_config)


def _original_language_weight(
    name: str, native: Mapping[str, torch.Tensor], config: Any
) -> torch.Tensor:
    direct = {
        "lm_head.weight": "lm_head.weight",
        "output.weight": "lm_head.weight",
        "model.tok_embeddings.weight": "language_model.embed_tokens.weight",
    }
    if name in direct:
        return native[direct[name]]
    name = name.replace("model.", "language_model.", 1)
    if name in native:
        return native[name]
    if ".experts." in name:
        layer, _, rest = name.partition(".experts.")
        expert, projection, _ = rest.split(".")
        if projection == "down_proj":
            return native[f"{layer}.experts.down_proj"][int(expert)]
        halves = native[f"{layer}.experts.gate_up_proj"][int(expert)].chunk(2)
        return halves[projection == "up_proj"]
    prefix, block = name.split(".attention", 1) if ".attention" in name else (name, "")
    if block == ".wqkv.weight":
        q, k, v = (native[f"{prefix}.self_attn.{p}_proj.weight"] for p in "qkv")
        heads = config.num_attention_heads // config.num_key_value_heads
        size = config.head_dim
        groups = []
        for g in range(config.num_key_value_heads):
            groups += [q[g * heads * size : (g + 1) * heads * size]]
            groups += [k[g * size : (g + 1) * size], v[g * size : (g + 1) * size]]
        return torch.cat(groups)
    for old, new in (
        (".attention.wo.", ".self_attn.o_proj."),
        (".attention_norm.", ".input_layernorm."),
        (".ffn_norm.", ".post_attention_layernorm."),
        (".feed_forward.w1.", ".mlp.gate_proj."),
        (".feed_forward.w2.", ".mlp.down_proj."),
        (".feed_forward.w3.", ".mlp.up_proj."),
    ):
        name = name.replace(old, new)
    return native[name]


def save_original(directory: Path, language: Language, tower: Tower) -> Any:
    """Write a checkpoint of the original layout, in two shards; returns the native model."""
    directory.mkdir(parents=True, exist_ok=True)
    model = native_model(language, tower)
    weights = {k: v.contiguous().clone() for k, v in original_weights(model, language).items()}
    names = list(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for shard, own in shards.items():
        save_file({name: weights[name] for name in own}, directory / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: s for s, own in shards.items() for n in own}}
    write_json(directory / "model.safetensors.index.json", index)
    write_json(directory / "config.json", original_config(language, tower))
    write_json(
        directory / "generation_config.json", {"eos_token_id": 1, "_from_model_config": True}
    )
    for module in ("configuration_internvl_chat", "modeling_internvl_chat", "tokenization_own"):
        (directory / f"{module}.py").write_text("raise RuntimeError('remote code ran')\n")
    if language in QWEN:
        save_qwen_tokenizer(directory)
    else:
        save_internlm_tokenizer(directory)
    return model
