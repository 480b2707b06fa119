"""Tiny models of Gemma, whose images see themselves as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.engine.models.vision.shared import SIDE, TEXT, Builder, Save, tokenizer, tower

GEMMA_TOKENS = 16  # of an image; more than the 8 of the smallest chunk in the tests

_WINDOWS: dict[str, Any] = {
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
    "pad_token_id": 0,
}
_NAMES = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft_token>"}


def gemma3(directory: Path) -> None:
    """Layers that look back 24 tokens and layers that see everything."""
    save = Save(directory, tokenizer(_NAMES, adds_bos=True), "<image_soft_token>", "<boi>")
    config = transformers.Gemma3Config(
        vision_config=tower("SiglipVision", vision_use_head=False),
        text_config=save.text(
            "Gemma3Text",
            head_dim=16,
            query_pre_attn_scalar=16,
            tie_word_embeddings=False,
            **_WINDOWS,
        ),
        mm_tokens_per_image=GEMMA_TOKENS,
        boi_token_index=save.id_of("<boi>"),
        eoi_token_index=save.id_of("<eoi>"),
        image_token_index=save.image_id,
        tie_word_embeddings=False,
    )
    model: Any = transformers.Gemma3ForConditionalGeneration(config)
    projector = model.model.multi_modal_projector  # starts as zeros, which would hide the images
    torch.nn.init.normal_(projector.mm_input_projection_weight, std=0.2)
    save.made(model)
    save.processor(
        "Gemma3Processor",
        transformers.Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        image_seq_length=GEMMA_TOKENS,
    )


def _gemma4(**text: Any) -> Builder:
    """Layers that read token ids, layers that take others' keys and values, two kinds of heads."""

    def build(directory: Path) -> None:
        names = _NAMES | {"image_token": "<|image|>", "audio_token": "<|audio|>"}
        names |= {"boa_token": "<boa>", "eoa_token": "<eoa>"}
        save = Save(directory, tokenizer(names, ("<|video|>",), adds_bos=True), "<|image|>")
        fields = TEXT | save.ids | _WINDOWS | {"num_hidden_layers": 4, "head_dim": 16}
        fields |= {
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": save.ids["vocab_size"],
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
        }
        config = transformers.Gemma4Config(
            text_config=fields | text,
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "patch_size": 4,
                "pooling_kernel_size": 3,
                "position_embedding_size": 1024,
            },
            audio_config=None,
            boi_token_id=save.id_of("<boi>"),
            eoi_token_id=save.id_of("<eoi>"),
            image_token_id=save.image_id,
            video_token_id=save.id_of("<|video|>"),
            boa_token_id=save.id_of("<boa>"),
            eoa_token_index=save.id_of("<eoa>"),
            audio_token_id=save.id_of("<|audio|>"),
        )
        save.model("Gemma4ForConditionalGeneration", config)
        save.processor(
            "Gemma4Processor",
            transformers.Gemma4ImageProcessorPil(
                patch_size=4, max_soft_tokens=70, pooling_kernel_size=3
            ),
            image_seq_length=70,
        )

    return build


BUILDERS: dict[str, Builder] = {
    "gemma3_vision": gemma3,
    "gemma4": _gemma4(),
    "gemma4_experts": _gemma4(
        use_bidirectional_attention="vision",
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=24,
    ),
}
