"""The vision-language families: a record for each, of facts that the engine knows beforehand.

What can be read from a loaded model is in `engine.loading.families.traits` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from transformers.models.auto import processing_auto

PROCESSORS: dict[str, str | None] = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
"""The names of processors' classes, by ``model_type``; some have none."""


@dataclass(frozen=True)
class Family:
    """Vision-language models of one architecture, or of several with the same record.

    Attributes:
        model_types: ``model_type`` in their ``config.json``. The answers of each are tested
            against transformers' own.
        towers: the modules below ``model.`` that make features of images: the vision tower and
            its projector. They are small and stay in full precision under quantization, and
            decoding does not read them.
        stored_towers: other names of these in checkpoints.
        stored_heads: other names of the language model head in checkpoints.
        image_tag: what authors of prompts write where an image belongs.
        fix_processor: called before the family's processor is made.
        processor: the class of their processor, where transformers does not say it.
        begins_every_prompt: whether their processor writes the begin token (or the end token, where
            there is none) before a prompt that does not begin with it.
        begins_after_images: whether the begin token stands after the last image of a prompt.
        prompt_end: what their processor writes after every prompt.
    """

    model_types: tuple[str, ...]
    towers: tuple[str, ...]
    stored_towers: tuple[str, ...] = ()
    stored_heads: tuple[str, ...] = ()
    image_tag: str | None = None
    fix_processor: Callable[[], None] | None = None
    processor: str | None = None
    begins_every_prompt: bool = False
    begins_after_images: bool = False
    prompt_end: str = ""

    @property
    def processors(self) -> set[str]:
        """The names of their processors' classes."""
        return set(map(self.processor_of, self.model_types))

    def processor_of(self, model_type: str) -> str:
        """The name of the class of a model's processor."""
        return PROCESSORS.get(model_type) or str(self.processor)


def _do_without_num2words() -> None:
    """SmolVLM's processor refuses to start without a package that only its videos use."""
    module: Any = import_module("transformers.models.smolvlm.processing_smolvlm")
    module.num2words = module.num2words or str


_LLAVA = ("vision_tower", "multi_modal_projector")
# The parts with which Janus makes images. They are loaded, and nothing runs them.
_JANUS_IMAGES = ("vqmodel", "generation_embeddings", "generation_aligner", "generation_head")

FAMILIES = (
    Family(("aya_vision", "cohere2_vision", "got_ocr2", "mistral3", "qianfan_ocr"), towers=_LLAVA),
    Family(("deepseek_ocr2",), towers=(*_LLAVA, "view_separator")),
    Family(("deepseek_vl",), towers=("vision_model", "aligner")),
    Family(
        ("glm4v", "glm46v", "glm4v_moe", "glm_ocr"), towers=("visual",), processor="Glm46VProcessor"
    ),
    Family(("exaone4_5",), towers=("visual",)),
    Family(("gemma3",), towers=_LLAVA),
    Family(("gemma4",), towers=("vision_tower", "embed_vision")),
    Family(("granite_docling",), towers=("vision_model",)),
    Family(("hunyuan_vl",), towers=("vision_tower",)),
    Family(("idefics3",), towers=("vision_model", "connector")),
    Family(
        ("internvl",),
        towers=_LLAVA,
        # of the original repositories, and of InternLM2 in them (`internvl_weights`)
        stored_towers=("vision_model", "mlp1"),
        stored_heads=("language_model.output",),
        image_tag="<image>",
    ),
    Family(("janus",), towers=("vision_model", "aligner", *_JANUS_IMAGES)),
    Family(("kimi_k25",), towers=("vision_tower", "mm_projector")),
    Family(("lfm2_vl",), towers=_LLAVA),
    Family(("lighton_ocr",), towers=("vision_encoder", "vision_projection")),
    Family(("llava", "llava_next", "llava_onevision", "vipllava"), towers=_LLAVA),
    Family(("molmo2",), towers=_LLAVA, begins_every_prompt=True),
    Family(("ovis2",), towers=("vision_tower", "visual_embeddings_table")),
    Family(("paligemma",), towers=_LLAVA, begins_after_images=True, prompt_end="\n"),
    Family(("paddleocr_vl",), towers=("visual", "projector")),
    Family(
        ("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
        towers=("visual",),
    ),
    Family(("video_llama_3",), towers=("vision_model", "projector")),
    Family(("smolvlm",), towers=("vision_model", "connector"), fix_processor=_do_without_num2words),
)

VISION_MODEL_TYPES = tuple(sorted(each for family in FAMILIES for each in family.model_types))
"""Vision-language architectures that the engine runs."""

TOWERS = tuple(dict.fromkeys(tower for family in FAMILIES for tower in family.towers))
"""The modules below ``model.`` that are towers in any family."""

_STORED_TOWERS = (*TOWERS, *(name for family in FAMILIES for name in family.stored_towers))
_STORED_HEADS = ("lm_head", *(name for family in FAMILIES for name in family.stored_heads))


def family_of(model_type: str) -> Family | None:
    """The family of a vision-language model; None for a text model."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_of_processor(name: str) -> Family | None:
    """The family whose processor has a class of this name."""
    return next((family for family in FAMILIES if name in family.processors), None)


def in_tower(tensor: str) -> bool:
    """Whether a tensor of this name, a model's or a checkpoint's, belongs to a vision tower."""
    return is_within(tensor, _STORED_TOWERS)


def in_head(tensor: str) -> bool:
    """Whether a tensor of this name, a model's or a checkpoint's, is the language model head's."""
    return is_within(tensor, _STORED_HEADS)


def is_within(tensor: str, modules: Iterable[str]) -> bool:
    """Whether a dotted name has one of these, dotted names too, as a part."""
    return any(f".{module}." in f".{tensor}." for module in modules)
