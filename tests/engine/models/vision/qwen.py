"""Tiny models whose rotary positions have three axes: Qwen, GLM, and those made after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from tests.engine.models.vision.shared import EXPERTS, TEXT, Builder, Save, tokenizer

_ROPE: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 3, 3],
}
_TOWER: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "patch_size": 4,
    "initializer_range": 0.3,
}
_SIZE = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
_HEAD: dict[str, Any] = {"head_dim": 16}
_PLACES: dict[str, Any] = {"num_position_embeddings": 64}
_DEEPSTACK: dict[str, Any] = _PLACES | {"deepstack_visual_indexes": [0, 1]}
_HYBRID: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": _ROPE | {"partial_rotary_factor": 1.0, "mrope_interleaved": True},
}


def _qwen(
    name: str, processor: str, text: dict[str, Any], tower: dict[str, Any], tail: str = ""
) -> Builder:
    """A model of transformers' class ``name``.

    Args:
        name: without what follows.
        processor: its class.
        text: of the language model, beside what all have.
        tower: likewise.
        tail: of the name of the configuration.
    """

    def build(directory: Path) -> None:
        names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        made = tokenizer(names, ("<|vision_start|>", "<|vision_end|>"))
        save = Save(directory, made, "<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>")
        config = getattr(transformers, f"{name}Config")(
            text_config=TEXT | save.ids | {"rope_parameters": _ROPE} | text,
            vision_config=_TOWER | tower,
            image_token_id=save.image_id,
            video_token_id=save.id_of("<|video_pad|>"),
            vision_start_token_id=save.id_of("<|vision_start|>"),
            vision_end_token_id=save.id_of("<|vision_end|>"),
        )
        save.model(f"{name}ForConditionalGeneration{tail}", config)
        image_processor = transformers.Qwen2VLImageProcessorPil(patch_size=4, size=_SIZE)
        save.processor(processor, image_processor)

    return build


def _glm(
    name: str,
    processor: str,
    images: str,
    text: dict[str, Any] | None = None,
) -> Builder:
    def build(directory: Path) -> None:
        names = {"image_token": "<|image|>", "video_token": "<|video|>"}
        others = [f"<|{edge}_of_{what}|>" for what in ("image", "video") for edge in _EDGES]
        save = Save(
            directory,
            tokenizer(names, others),
            "<|image|>",
            "<|begin_of_image|><|image|><|end_of_image|>",
        )
        ids = {
            f"{what}_{end}_token_id": save.id_of(f"<|{edge}_of_{what}|>")
            for what in ("image", "video")
            for edge, end in zip(_EDGES, ("start", "end"), strict=True)
        }
        fields = TEXT | save.ids | {"rope_parameters": _ROPE | {"partial_rotary_factor": 1.0}}
        vision = _TOWER | {"image_size": 32, "attention_bias": False}
        if name == "Glm46V":
            fields |= {"model_type": "glm4v_text"}
            vision |= {"model_type": "glm4v_vision"}
        config = getattr(transformers, f"{name}Config")(
            text_config=fields | (text or {}),
            vision_config=vision,
            image_token_id=save.image_id,
            video_token_id=save.id_of("<|video|>"),
            **ids,
        )
        save.model(f"{name}ForConditionalGeneration", config)
        image_processor = getattr(transformers, f"{images}ImageProcessorPil")(
            patch_size=4, size={"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 48 * 48}
        )
        save.processor(processor, image_processor)

    return build


_EDGES = ("begin", "end")
_GLM_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "head_dim": 16,
}


def paddleocr_vl(directory: Path) -> None:
    names = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    others = ("<|IMAGE_START|>", "<|IMAGE_END|>", "<|video|>")
    save = Save(
        directory,
        tokenizer(names, others),
        names["image_token"],
        f"<|IMAGE_START|>{names['image_token']}<|IMAGE_END|>",
    )
    config = transformers.PaddleOCRVLConfig(
        text_config=TEXT | save.ids | {"rope_parameters": _ROPE, "head_dim": 16, "pad_token_id": 0},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
        },
        image_token_id=save.image_id,
        video_token_id=save.id_of("<|video|>"),
        vision_start_token_id=save.id_of("<|IMAGE_START|>"),
        vision_end_token_id=save.id_of("<|IMAGE_END|>"),
    )
    save.model("PaddleOCRVLForConditionalGeneration", config)
    save.processor(
        "PaddleOCRVLProcessor",
        transformers.PaddleOCRVLImageProcessorPil(patch_size=4, size=_SIZE),
    )


def hunyuan_vl(directory: Path) -> None:
    names = {
        "image_token": "<image>",
        "image_start_token": "<im_start>",
        "image_end_token": "<im_end>",
    }
    save = Save(
        directory, tokenizer(names, ("<im_newline>",)), "<image>", "<im_start><image><im_end>"
    )
    config = transformers.HunYuanVLConfig(
        text_config=TEXT
        | save.ids
        | {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2, 2]}, "head_dim": 16},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 64,
            "max_image_size": 64,
            "min_image_size": 16,
        },
        image_token_id=save.image_id,
        im_start_id=save.id_of("<im_start>"),
        im_end_id=save.id_of("<im_end>"),
        im_newline_id=save.id_of("<im_newline>"),
    )
    save.model("HunYuanVLForConditionalGeneration", config)
    save.processor(
        "HunYuanVLProcessor",
        transformers.HunYuanVLImageProcessorPil(patch_size=4, size=_SIZE),
    )


def _windows() -> dict[str, Any]:
    return {"window_size": 16, "fullatt_block_indexes": [1]}


def exaone4_5(directory: Path) -> None:
    """Qwen's tower, and a text whose positions have one axis."""
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    save = Save(
        directory,
        tokenizer(names, ("<vision>", "</vision>")),
        "<|image_pad|>",
        "<vision><|image_pad|></vision>",
    )
    config = transformers.Exaone4_5_Config(
        text_config=save.text(
            "Exaone4",
            head_dim=16,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=_TOWER | _windows() | {"num_key_value_heads": 1},
        image_token_id=save.image_id,
        video_token_id=save.id_of("<|video_pad|>"),
    )
    save.model("Exaone4_5_ForConditionalGeneration", config)
    save.processor(
        "Exaone4_5_Processor", transformers.Qwen2VLImageProcessorPil(patch_size=4, size=_SIZE)
    )


def video_llama_3(directory: Path) -> None:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    save = Save(directory, tokenizer(names, ("<|im_start|>", "<|im_end|>")), "<|image_pad|>")
    config = transformers.VideoLlama3Config(
        text_config=save.text("Qwen2"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "initializer_range": 0.3,
        },
        image_token_id=save.image_id,
        video_token_id=save.id_of("<|video_pad|>"),
    )
    save.model("VideoLlama3ForConditionalGeneration", config)
    save.processor(
        "VideoLlama3Processor",
        transformers.VideoLlama3ImageProcessorPil(patch_size=4, merge_size=2, size=_SIZE),
    )


BUILDERS: dict[str, Builder] = {
    "exaone4_5": exaone4_5,
    "video_llama_3": video_llama_3,
    "qwen2_vl": _qwen(
        "Qwen2VL",
        "Qwen2VLProcessor",
        {},
        {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": _qwen("Qwen2_5_VL", "Qwen2_5_VLProcessor", {}, _windows()),
    "qwen3_vl": _qwen("Qwen3VL", "Qwen3VLProcessor", _HEAD, _DEEPSTACK),
    "qwen3_vl_moe": _qwen("Qwen3VLMoe", "Qwen3VLProcessor", _HEAD | EXPERTS, _DEEPSTACK),
    "qwen3_5": _qwen("Qwen3_5", "Qwen3VLProcessor", _HEAD | _HYBRID, _PLACES),
    "qwen3_5_moe": _qwen(
        "Qwen3_5Moe",
        "Qwen3VLProcessor",
        _HEAD | _HYBRID | EXPERTS | {"shared_expert_intermediate_size": 24},
        _PLACES,
    ),
    "glm4v": _glm("Glm4v", "Glm4vProcessor", "Glm4v"),
    "glm46v": _glm("Glm46V", "Glm46VProcessor", "Glm46V"),
    "glm4v_moe": _glm("Glm4vMoe", "Glm4vProcessor", "Glm4v", _GLM_EXPERTS),
    "glm_ocr": _glm("GlmOcr", "Glm46VProcessor", "Glm46V"),
    "paddleocr_vl": paddleocr_vl,
    "hunyuan_vl": hunyuan_vl,
}
