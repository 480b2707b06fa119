"""Tiny models of a tower, a projector and a language model: LLaVA and its kin."""

from __future__ import annotations

from pathlib import Path

import transformers

from tests.engine.models.vision.shared import SIDE, TEXT, Builder, Save, tokenizer, tower

_CLIP = {"shortest_edge": SIDE}
_CROP = {"height": SIDE, "width": SIDE}
_SQUARE = {"height": SIDE, "width": SIDE}
_PINPOINTS = [[SIDE * y, SIDE * x] for y in (1, 2) for x in (1, 2)]


def llava(directory: Path) -> None:
    """Its tokenizer adds a begin token that its template does not write, as LLaVA 1.5's does."""
    save = Save(directory, tokenizer({"image_token": "<image>"}, adds_bos=True), "<image>")
    config = transformers.LlavaConfig(
        vision_config=tower("CLIPVision"),
        text_config=save.text("Llama"),
        image_token_index=save.image_id,
        image_seq_length=16,
    )
    save.model("LlavaForConditionalGeneration", config)
    _llava_processor(save)


def vipllava(directory: Path) -> None:
    """Features of several layers of the tower."""
    save = Save(directory, tokenizer({"image_token": "<image>"}), "<image>")
    config = transformers.VipLlavaConfig(
        vision_config=tower("CLIPVision"),
        text_config=save.text("Llama"),
        image_token_index=save.image_id,
        image_seq_length=16,
        vision_feature_layer=[-2, -1],
    )
    save.model("VipLlavaForConditionalGeneration", config)
    _llava_processor(save)


def _llava_processor(save: Save) -> None:
    save.processor(
        "LlavaProcessor",
        transformers.CLIPImageProcessorPil(size=_CLIP, crop_size=_CROP),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_next(directory: Path) -> None:
    """Tiles of one image in the order of its rows, each row with a token at its end."""
    save = Save(directory, tokenizer({"image_token": "<image>"}), "<image>")
    config = transformers.LlavaNextConfig(
        vision_config=tower("CLIPVision"),
        text_config=save.text("Mistral"),
        image_token_index=save.image_id,
        image_grid_pinpoints=_PINPOINTS,
        image_seq_length=16,
    )
    save.model("LlavaNextForConditionalGeneration", config)
    save.processor(
        "LlavaNextProcessor",
        transformers.LlavaNextImageProcessorPil(
            size=_CLIP, crop_size=_CROP, image_grid_pinpoints=_PINPOINTS
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_onevision(directory: Path) -> None:
    names = {"image_token": "<image>", "video_token": "<video>"}
    save = Save(directory, tokenizer(names), "<image>")
    config = transformers.LlavaOnevisionConfig(
        vision_config=tower("SiglipVision", vision_use_head=False),
        text_config=save.text("Qwen2"),
        image_token_index=save.image_id,
        video_token_index=save.id_of("<video>"),
        image_grid_pinpoints=_PINPOINTS,
    )
    save.model("LlavaOnevisionForConditionalGeneration", config)
    save.processor(
        "LlavaOnevisionProcessor",
        transformers.LlavaOnevisionImageProcessorPil(size=_SQUARE, image_grid_pinpoints=_PINPOINTS),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def aya_vision(directory: Path) -> None:
    """Tiles, with a text before each of them that is not special tokens alone."""
    others = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<image>")
    save = Save(directory, tokenizer({}, others), "<|IMG_PATCH|>", "<image>")
    config = transformers.AyaVisionConfig(
        vision_config=tower("SiglipVision", vision_use_head=False),
        text_config=save.text(
            "Cohere2", sliding_window=24, layer_types=["sliding_attention", "full_attention"]
        ),
        image_token_index=save.image_id,
        downsample_factor=2,
    )
    save.model("AyaVisionForConditionalGeneration", config)
    save.processor(
        "AyaVisionProcessor",
        transformers.GotOcr2ImageProcessorPil(size=_SQUARE, max_patches=3, min_patches=1),
        patch_size=8,
        img_size=SIDE,
        downsample_factor=2,
    )


def paligemma(directory: Path) -> None:
    """The tokens of a prompt attend to each other, and its processor writes the prompt's frame."""
    save = Save(directory, tokenizer({"image_token": "<image>"}), "<image>")
    config = transformers.PaliGemmaConfig(
        vision_config=tower("SiglipVision", vision_use_head=False),
        text_config=save.text("Gemma", head_dim=16) | {"vocab_size": len(save.tokenizer) + 1152},
        image_token_index=save.image_id,
        projection_dim=64,
        hidden_size=64,
    )
    save.model("PaliGemmaForConditionalGeneration", config)
    save.processor(
        "PaliGemmaProcessor",
        transformers.SiglipImageProcessorPil(size=_SQUARE, image_seq_length=16),
    )


def lighton_ocr(directory: Path) -> None:
    """Images of any shape, as long as their sides are multiples of the patch."""
    names = {
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }
    save = Save(directory, tokenizer(names), "[IMG]")
    config = transformers.LightOnOcrConfig(
        vision_config=tower("PixtralVision", head_dim=16, patch_size=4, image_size=64),
        text_config=save.text("Qwen3", head_dim=16),
        spatial_merge_size=2,
        image_token_id=save.image_id,
    )
    save.model("LightOnOcrForConditionalGeneration", config)
    save.processor(
        "LightOnOcrProcessor",
        transformers.PixtralImageProcessorPil(
            patch_size={"height": 8, "width": 8}, size={"longest_edge": 48}
        ),
        patch_size=4,
        spatial_merge_size=2,
    )


def got_ocr2(directory: Path) -> None:
    others = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>")
    save = Save(directory, tokenizer({}, others), "<imgpad>", "<img><imgpad></img>")
    sam = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 1024,
        "patch_size": 16,  # its processor writes 256 tokens for an image of this size
        "window_size": 14,
        "global_attn_indexes": [1],
        "mlp_dim": 48,
        "initializer_range": 0.2,
    }
    config = transformers.GotOcr2Config(
        vision_config=sam,
        text_config=save.text("Qwen2", max_position_embeddings=1024),
        image_token_index=save.image_id,
        image_seq_length=256,
    )
    save.model("GotOcr2ForConditionalGeneration", config)
    save.processor(
        "GotOcr2Processor",
        transformers.GotOcr2ImageProcessorPil(size={"height": 1024, "width": 1024}),
    )


def qianfan_ocr(directory: Path) -> None:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    save = Save(directory, tokenizer(names, ("<image>",)), "<IMG_CONTEXT>", "<image>")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [SIDE, SIDE],
        "patch_size": [8, 8],
        "layer_scale_init_value": 1.0,
        "initializer_range": 0.3,
    }
    config = transformers.QianfanOCRConfig(
        vision_config=vision,
        text_config=save.text("Qwen3", head_dim=16),
        image_token_id=save.image_id,
        image_seq_length=4,
    )
    save.model("QianfanOCRForConditionalGeneration", config)
    save.processor(
        "QianfanOCRProcessor",
        transformers.GotOcr2ImageProcessorPil(size=_SQUARE, max_patches=3, min_patches=1),
        image_seq_length=4,
    )


def ovis2(directory: Path) -> None:
    """Image tokens are distributions over visual words; tokens around them have embeddings too."""
    indicators = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    save = Save(
        directory, tokenizer({}, ("<IMG_ATOM>", *indicators, "<image>")), "<IMG_ATOM>", "<image>"
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "vocab_size": 40,
        "hidden_stride": 2,
        "initializer_range": 0.3,
    }
    config = transformers.Ovis2Config(
        vision_config=vision,
        text_config=save.text("Qwen2"),
        image_token_id=save.image_id,
        visual_indicator_token_ids=[save.id_of(token) for token in indicators],
        vocab_size=len(save.tokenizer),
        hidden_size=64,
    )
    save.model("Ovis2ForConditionalGeneration", config)
    save.processor(
        "Ovis2Processor",
        transformers.Ovis2ImageProcessorPil(size=_SQUARE, max_patches=3, crop_to_patches=True),
        image_seq_length=4,
    )


def deepseek_ocr2(directory: Path) -> None:
    """A language model with experts; its tower asks for images by queries."""
    save = Save(directory, tokenizer({"image_token": "<image>"}), "<image>")
    sam = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 192,
        "patch_size": 4,  # 12 times 12 features, for which the tower has queries
        "window_size": 8,
        "global_attn_indexes": [1],
        "mlp_dim": 48,
        "downsample_channels": [24, 32],
        "initializer_range": 0.2,
    }
    encoder = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 8,
        "initializer_range": 0.3,
    }
    experts = {
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "mlp_layer_types": ["dense", "sparse"],
        "max_position_embeddings": 2048,
        "num_key_value_heads": 4,
    }
    config = transformers.DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder},
        text_config=TEXT | save.ids | experts,
        image_token_id=save.image_id,
    )
    save.model("DeepseekOcr2ForConditionalGeneration", config)
    save.processor(
        "DeepseekOcr2Processor",
        transformers.DeepseekOcr2ImageProcessorPil(
            size={"height": 192, "width": 192}, tile_size=192
        ),
        patch_size=4,
    )


def deepseek_vl(directory: Path) -> None:
    save = Save(directory, tokenizer({"image_token": "<image_placeholder>"}), "<image_placeholder>")
    config = transformers.DeepseekVLConfig(
        vision_config=tower("SiglipVision", vision_use_head=False),
        text_config=save.text("Llama"),
        image_token_id=save.image_id,
    )
    save.model("DeepseekVLForConditionalGeneration", config)
    save.processor(
        "DeepseekVLProcessor",
        transformers.DeepseekVLImageProcessorPil(size=_SQUARE, min_size=8),
        num_image_tokens=16,
    )


def janus(directory: Path) -> None:
    """A model that also makes images, which is left alone here."""
    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    save = Save(directory, tokenizer(names), "<image>")
    config = transformers.JanusConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "mlp_ratio": 2,
            "projection_dim": 64,
            "num_image_tokens": 16,
            "initializer_range": 0.3,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
        },
        text_config=save.text("Llama"),
        image_token_id=save.image_id,
    )
    save.model("JanusForConditionalGeneration", config)
    save.processor(
        "JanusProcessor",
        transformers.JanusImageProcessorPil(size=_SQUARE, min_size=8),
        num_image_tokens=16,
    )


BUILDERS: dict[str, Builder] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "vipllava": vipllava,
    "aya_vision": aya_vision,
    "paligemma": paligemma,
    "lighton_ocr": lighton_ocr,
    "got_ocr2": got_ocr2,
    "qianfan_ocr": qianfan_ocr,
    "ovis2": ovis2,
    "deepseek_ocr2": deepseek_ocr2,
    "deepseek_vl": deepseek_vl,
    "janus": janus,
}
