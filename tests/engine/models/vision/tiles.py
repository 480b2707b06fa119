"""Tiny models whose images are rows of tiles, with text between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from tests.engine.models.vision.shared import SIDE, TEXT, TOWER, Builder, Save, tokenizer

_OTHERS = (
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<row_1_col_1>",
    "<row_1_col_2>",
)


def _tiles(name: str) -> Builder:
    """SmolVLM and Idefics3."""

    def build(directory: Path) -> None:
        save = Save(directory, tokenizer({"image_token": "<image>"}, _OTHERS), "<image>")
        config = getattr(transformers, f"{name}Config")(
            vision_config=TOWER,
            text_config=save.text("Llama"),
            image_token_id=save.image_id,
            scale_factor=2,
        )
        save.model(f"{name}ForConditionalGeneration", config)
        save.processor(
            f"{name}Processor",
            getattr(transformers, f"{name}ImageProcessorPil")(
                size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
            ),
            image_seq_len=4,
        )

    return build


def idefics2(directory: Path) -> None:
    names = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    save = Save(directory, tokenizer(names, ("<end_of_utterance>",)), "<image>")
    vision = TOWER | {"image_size": 64}
    config = transformers.Idefics2Config(
        vision_config=vision,
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 6,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
            "initializer_range": 0.3,
        },
        text_config=save.text("Mistral"),
        image_token_id=save.image_id,
    )
    save.model("Idefics2ForConditionalGeneration", config)
    save.processor(
        "Idefics2Processor",
        transformers.Idefics2ImageProcessorPil(
            size={"shortest_edge": 16, "longest_edge": 48}, do_image_splitting=False
        ),
        image_seq_len=6,
    )


def granite_docling(directory: Path) -> None:
    """Features for the first layers too."""
    save = Save(directory, tokenizer({"image_token": "<image>"}, _OTHERS), "<image>")
    vision: dict[str, Any] = TOWER | {
        "out_hidden_size": 64,
        "scale_factor": 2,
        "deepstack_visual_indexes": [0, 1],
        "use_fine_route": False,
    }
    text = {
        "pad_token_id": 0,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.25,
        "tie_word_embeddings": True,
    }
    config = transformers.GraniteDoclingConfig(
        vision_config=vision,
        text_config=TEXT | save.ids | text,
        image_token_id=save.image_id,
        pad_token_id=0,
    )
    save.model("GraniteDoclingForConditionalGeneration", config)
    save.processor(
        "GraniteDoclingProcessor",
        transformers.GraniteDoclingImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, max_patches=2
        ),
        image_seq_len=4,
    )


BUILDERS: dict[str, Builder] = {
    "smolvlm": _tiles("SmolVLM"),
    "idefics3": _tiles("Idefics3"),
    "idefics2": idefics2,
    "granite_docling": granite_docling,
}
