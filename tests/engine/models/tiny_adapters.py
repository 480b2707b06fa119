"""Tiny random LoRA adapters, made and saved by PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

TEXT: Any = AutoModelForCausalLM
VISION: Any = AutoModelForImageTextToText

# Each with something of its own: sizes, scales, modules.
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 4, "lora_alpha": 8},
    "scaled": {"r": 8, "lora_alpha": 2, "use_rslora": True},
    "attention": {"r": 4, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"down_proj": 2, r"layers\.0\.self_attn\.q_proj": 16},
        "alpha_pattern": {"self_attn.k_proj": 30, "layers.1.mlp.up_proj": 1.5},
    },
}


def save_adapter(
    base: Path,
    directory: Path,
    seed: int,
    dtype: torch.dtype | None = None,
    auto_class: Any = TEXT,
    **settings: Any,
) -> None:
    """Save an adapter of a model into ``directory``: far from zero, unlike a new one."""
    model = auto_class.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    plain: dict[str, Any] = {"target_modules": "all-linear", "init_lora_weights": False}
    adapted: Any = get_peft_model(model, LoraConfig(**(plain | settings)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    if dtype is not None:
        adapted.to(dtype)
    adapted.save_pretrained(directory)


def save_adapters(
    base: Path,
    root: Path,
    kinds: Mapping[str, Mapping[str, Any]] = ADAPTERS,
    auto_class: Any = TEXT,
) -> dict[str, str]:
    """Save adapters of a model below ``root``: their directories by name."""
    for seed, (name, settings) in enumerate(kinds.items()):
        save_adapter(base, root / name, seed, auto_class=auto_class, **settings)
    return {name: str(root / name) for name in kinds}
