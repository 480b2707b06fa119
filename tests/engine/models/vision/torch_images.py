"""Tiny models of families whose image processors were written for torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from engine.loading.families.torch_images import image_processor_class
from tests.engine.models.vision.shared import SIDE, TEXT, TOWER, Builder, Save, tokenizer, tower


def mistral3(directory: Path) -> None:
    """Images of any shape whose sides are multiples of the patch, with tokens between rows."""
    names = {
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }
    save = Save(directory, tokenizer(names), "[IMG]")
    config = transformers.Mistral3Config(
        vision_config=tower("PixtralVision", head_dim=16, patch_size=4, image_size=64),
        text_config=save.text("Mistral", head_dim=16),
        spatial_merge_size=2,
        image_token_index=save.image_id,
    )
    save.model("Mistral3ForConditionalGeneration", config)
    save.processor(
        "PixtralProcessor",
        transformers.PixtralImageProcessorPil(
            patch_size={"height": 8, "width": 8}, size={"longest_edge": 48}
        ),
        patch_size=4,
        spatial_merge_size=2,
    )


def cohere2_vision(directory: Path) -> None:
    names = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    save = Save(directory, tokenizer(names), "<|IMG_PATCH|>")
    config = transformers.Cohere2VisionConfig(
        vision_config=tower("SiglipVision", vision_use_head=False),
        text_config=save.text(
            "Cohere2", sliding_window=24, layer_types=["sliding_attention", "full_attention"]
        ),
        image_token_id=save.image_id,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    save.model("Cohere2VisionForConditionalGeneration", config)
    images = image_processor_class("cohere2_vision")
    side = {"height": SIDE, "width": SIDE}
    save.processor("Cohere2VisionProcessor", images(size=side, max_patches=3, patch_size=2))


def lfm2_vl(directory: Path) -> None:
    """Short convolutions between layers of attention."""
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    others = [f"<|img_row_{row}_col_{col}|>" for row in (1, 2) for col in (1, 2)]
    save = Save(directory, tokenizer(names, others), "<image>")
    vision = {key: value for key, value in TOWER.items() if key != "image_size"}
    config = transformers.Lfm2VlConfig(
        vision_config=transformers.Siglip2VisionConfig(
            **vision, num_patches=64, vision_use_head=False
        ).to_dict(),
        text_config=save.text("Lfm2", layer_types=["conv", "full_attention"], block_ff_dim=96),
        image_token_id=save.image_id,
        projector_hidden_size=48,
        downsample_factor=2,
    )
    save.model("Lfm2VlForConditionalGeneration", config)
    images = image_processor_class("lfm2_vl")(
        tile_size=SIDE,
        encoder_patch_size=8,
        min_image_tokens=2,
        max_image_tokens=16,
        max_tiles=2,
        size={"height": SIDE, "width": SIDE},
    )
    save.processor("Lfm2VlProcessor", images)


def kimi_k25(directory: Path) -> None:
    """A tower for images of any shape, and a DeepSeek V3 as language model."""
    names = {"image_token": "<|media_pad|>", "video_token": "<|video|>"}
    edges = ("<|media_begin|>", "<|media_end|>")
    template = "<|media_begin|><|media_pad|><|media_end|>"
    save = Save(directory, tokenizer(names, edges), "<|media_pad|>", template)
    text: dict[str, Any] = TEXT | {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = transformers.Kimi_K25Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "pos_emb_height": 16,
            "pos_emb_width": 16,
        },
        text_config=text | save.ids,
        projection_hidden_size=32,
        image_token_id=save.image_id,
        video_token_id=save.id_of("<|video|>"),
        vision_start_token_id=save.id_of(edges[0]),
        vision_end_token_id=save.id_of(edges[1]),
    )
    save.model("Kimi_K25ForConditionalGeneration", config)
    images = image_processor_class("kimi_k25")
    save.processor(
        "Kimi_K25Processor",
        images(patch_size=4, max_patches=64, size={"max_height": 64, "max_width": 64}),
    )


def molmo2(directory: Path) -> None:
    """Its image tokens see those of all images, and its crops overlap."""
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    others = ("<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<im_end>", "<im_low>")
    frames = ("<frame_start>", "<frame_end>")
    save = Save(directory, tokenizer(names, (*others, *frames)), "<im_patch>", "<|image|>")
    text = TEXT | save.ids | {"head_dim": 16, "additional_vocab_size": 16}
    config = transformers.Molmo2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "image_size": [32, 32],
            "patch_size": 4,
            "initializer_range": 0.3,
        },
        adapter_config={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "text_hidden_size": 64,
            "vision_feature_layer": [1, 0],
            "initializer_range": 0.3,
        },
        text_config=text,
        image_patch_id=save.image_id,
        image_start_token_id=save.id_of("<im_start>"),
        low_res_image_start_token_id=save.id_of("<low_res_im_start>"),
        image_end_token_id=save.id_of("<im_end>"),
        frame_start_token_id=save.id_of("<frame_start>"),
        frame_end_token_id=save.id_of("<frame_end>"),
    )
    save.model("Molmo2ForConditionalGeneration", config)
    images = image_processor_class("molmo2")(
        size={"height": 32, "width": 32}, patch_size=4, max_crops=2, overlap_margins=[1, 1]
    )
    save.processor("Molmo2Processor", images)


BUILDERS: dict[str, Builder] = {
    "cohere2_vision": cohere2_vision,
    "kimi_k25": kimi_k25,
    "lfm2_vl": lfm2_vl,
    "mistral3": mistral3,
    "molmo2": molmo2,
}
