"""Makes the model that all servers of one run serve: the demo model, or one with random weights.

Those are the decoders of `demo.random_model`, and InternVLs, which see images.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.harness.models import ServedModel
from benchmarks.harness.processes import in_own_process
from benchmarks.harness.server import REPOSITORY
from demo.random_model import (
    GEOMETRIES,
    Geometry,
    decoder_config,
    save_model,
    save_once,
    word_tokenizer,
)

DEMO = "demo"
IMAGE_TOKEN = "<IMG_CONTEXT>"

_DOWNSAMPLE = 0.5  # of the patches' grid, along each side
_MAX_TILES = 12
_SPECIAL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE_TOKEN,
    "video_token": "<video>",
}


@dataclass(frozen=True)
class VisionGeometry:
    """The shape of an InternVL: a decoder, and the vision tower as its configuration names it."""

    decoder: Geometry
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int

    @property
    def image_tokens(self) -> int:
        """Tokens that a tile takes in the prompt."""
        return int((self.image_size // self.patch_size * _DOWNSAMPLE) ** 2)


def _internvl3(decoder: Geometry) -> VisionGeometry:
    """With the tower of InternViT-300M-448px."""
    return VisionGeometry(decoder, 1024, 24, 16, 4096, 448, 14)


# The vocabulary of InternVL3's decoders, whose head is a table of its own also where Qwen2.5's is
# not (0.94 billion parameters in the model of 1B).
_VOCABULARY: dict[str, Any] = {"vocab_size": 151674, "tie_word_embeddings": False}

VISION_GEOMETRIES = {
    # Weights of the usual size would make it say two words in turns, whatever it has seen.
    "internvl3-1b": _internvl3(
        replace(GEOMETRIES["qwen2.5-0.5b"], **_VOCABULARY, initializer_range=0.04)
    ),
    "internvl3-8b": _internvl3(
        Geometry("qwen2", 3584, 28, 28, 4, 18944, rope_theta=1e6, **_VOCABULARY)
    ),
    "tiny-vlm": VisionGeometry(GEOMETRIES["tiny"], 64, 2, 2, 128, 56, 14),
}


def save_vision_model(name: str, dtype: str, directory: str) -> None:
    """As `demo.random_model.save_model`, with what prepares images.

    The layout is that of the repositories whose names end in ``-hf``.
    """
    geometry = VISION_GEOMETRIES[name]

    def make() -> tuple[Any, ...]:
        tokenizer = word_tokenizer(geometry.decoder.vocab_size, _SPECIAL_TOKENS)
        config = _config(geometry, tokenizer.get_vocab()[IMAGE_TOKEN])
        model = InternVLForConditionalGeneration._from_config(config, dtype=getattr(torch, dtype))
        return model, tokenizer, _image_processor(geometry)

    path = Path(directory)
    save_once(path, {"geometry": asdict(geometry), "dtype": dtype}, make)
    # Written by hand: a processor of its class cannot be made without torchvision.
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": geometry.image_tokens}
    (path / "processor_config.json").write_text(json.dumps(settings))


def _config(geometry: VisionGeometry, image_token_id: int) -> InternVLConfig:
    tower: dict[str, Any] = asdict(geometry)
    del tower["decoder"]
    decoder = geometry.decoder
    vision = InternVLVisionConfig(
        **tower,
        attention_bias=True,
        use_qk_norm=False,
        norm_type="layer_norm",
        layer_scale_init_value=0.1,
        initializer_range=decoder.initializer_range,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=decoder_config(decoder),
        image_token_id=image_token_id,
        image_seq_length=geometry.image_tokens,
        downsample_ratio=_DOWNSAMPLE,
        tie_word_embeddings=decoder.tie_word_embeddings,
    )


def _image_processor(geometry: VisionGeometry) -> GotOcr2ImageProcessorPil:
    """Cuts an image into the tiles that fit its shape best; a square of one tile stays one."""
    side = geometry.image_size
    return GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        crop_to_patches=True,
        min_patches=1,
        max_patches=_MAX_TILES,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


# --- What is served ------------------------------------------------------------------------------

# Servers of chat completions want a template. This one leaves a text as it is, so that each letter
# of a random model's prompt stays one token, here as in the other benchmarks. An image becomes its
# placeholder, whether its block came as chat completions name it or as transformers does.
_PLAIN_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for block in message.content -%}
            {%- if block.type == 'text' -%}
                {{- block.text -}}
            {%- elif block.type in ['image', 'image_url'] -%}
                {{- 'IMAGE_TOKEN\\n' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
""".replace("IMAGE_TOKEN", IMAGE_TOKEN)


def real_model(source: str, dtype: str | None, *, images: bool) -> ServedModel:
    """A trained checkpoint: a directory, or the id of a repository."""
    return ServedModel(source, dtype or "bfloat16", images=images, padded=True, told=True)


def geometry_names() -> list[str]:
    """What ``--geometry`` may be."""
    return [*GEOMETRIES, *VISION_GEOMETRIES, DEMO]


def make_model(geometry: str, dtype: str | None, directory: Path) -> ServedModel:
    """The demo model, or one with random weights that is saved in a directory.

    Args:
        geometry: one of `geometry_names`.
        dtype: None for float32 with the demo model, and bfloat16 with others.
        directory: where the model is saved; one that an earlier run has left there is used again.
    """
    if geometry == DEMO:
        # A copy, because a server may write beside the weights.
        source = directory / DEMO
        shutil.copytree(REPOSITORY / "demo" / "model", source, dirs_exist_ok=True)
        return ServedModel(str(source), dtype or "float32", images=True, padded=False, told=True)
    dtype = dtype or "bfloat16"
    source = directory / f"{geometry}-{dtype}"
    in_own_process(save_random, geometry, dtype, str(source))
    sees = geometry in VISION_GEOMETRIES
    return ServedModel(str(source), dtype, images=sees, padded=True, told=False)


def save_random(geometry: str, dtype: str, directory: str) -> None:
    """Save a model with random weights and a chat template, unless an earlier call has."""
    save = save_vision_model if geometry in VISION_GEOMETRIES else save_model
    save(geometry, dtype, directory)
    (Path(directory) / "chat_template.jinja").write_text(_PLAIN_TEMPLATE, encoding="utf-8")
