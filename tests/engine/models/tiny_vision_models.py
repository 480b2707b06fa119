"""Tiny random vision-language checkpoints, at least one a family, saved as hub repositories are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch

from tests.engine.models.vision import gemma, llava, qwen, tiles, torch_images
from tests.engine.models.vision.shared import Builder

ThoroughKind = Literal[
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_onevision",
    "smolvlm",
    "idefics3",
    "gemma3_vision",
]
"""Kinds that differ in what the engine does for them."""

FurtherKind = Literal[
    "aya_vision",
    "cohere2_vision",
    "deepseek_ocr2",
    "deepseek_vl",
    "exaone4_5",
    "gemma4",
    "gemma4_experts",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "got_ocr2",
    "granite_docling",
    "hunyuan_vl",
    "janus",
    "kimi_k25",
    "lfm2_vl",
    "lighton_ocr",
    "llava_next",
    "mistral3",
    "molmo2",
    "ovis2",
    "paddleocr_vl",
    "paligemma",
    "qianfan_ocr",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl_moe",
    "video_llama_3",
    "vipllava",
]
"""Kinds whose families were added by a record; what they share is tested with the others."""

VisionKind = ThoroughKind | FurtherKind
VISION_KINDS: tuple[ThoroughKind, ...] = get_args(ThoroughKind)
FURTHER_KINDS: tuple[FurtherKind, ...] = get_args(FurtherKind)

_BUILDERS: dict[str, Builder] = {
    **gemma.BUILDERS,
    **llava.BUILDERS,
    **qwen.BUILDERS,
    **tiles.BUILDERS,
    **torch_images.BUILDERS,
}


def model_type(kind: VisionKind) -> str:
    """The architecture of a kind."""
    return {"gemma3_vision": "gemma3", "gemma4_experts": "gemma4"}.get(kind, kind)


def save_tiny_vision_model(kind: VisionKind, directory: Path, *, seed: int = 0) -> None:
    """Save a random model of one family with its tokenizer and processor into ``directory``."""
    torch.manual_seed(seed)
    _BUILDERS[kind](directory)
