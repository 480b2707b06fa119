"""InternVL from its original repositories (`model_type: internvl_chat`), without their code.

Configuration, tokenizer, chat template and image processor become those of transformers' own
InternVL; `internvl_weights` translates the names of the weights while they are loaded. The
repositories of transformers' layout (``...-hf``) need none of this.

Formats: ``configuration_internvl_chat.py``, ``modeling_internvl_chat.py`` and ``conversation.py``
of github.com/OpenGVLab/InternVL, which the repositories on the hub carry as remote code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import PILImageResampling
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from engine.loading.families.internvl_prompts import CONVERSATIONS
from engine.loading.families.sentencepiece import load_sentencepiece
from schema.errors import ModelInvalid

# By the first of `llm_config.architectures`. InternLM2 is Llama with fused attention weights.
_LANGUAGE_MODELS = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GptOssForCausalLM": "gpt_oss",
    "InternLM3ForCausalLM": "internlm3",
    "InternLM2ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
}
# Defaults of the original code.
_DEFAULTS: dict[str, Any] = {
    "downsample_ratio": 0.5,
    "dynamic_image_size": False,
    "max_dynamic_patch": 6,
    "min_dynamic_patch": 1,
    "pad2square": False,
    "ps_version": "v1",
    "select_layer": -1,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "use_thumbnail": False,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 3200,
    "image_size": 224,
    "intermediate_size": 12800,
    "layer_norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_channels": 3,
    "num_hidden_layers": 48,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
}
_VISION_NAMES = {"qk_normalization": "use_qk_norm", "qkv_bias": "attention_bias"}
_MAX_TILES = 64  # published ones have 12
_QK_NORM_EPS = 1e-6  # fixed in transformers

_IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
}


@dataclasses.dataclass(frozen=True)
class ProcessorParts:
    """The parts of a processor for an original repository."""

    image_processor: GotOcr2ImageProcessorPil
    tokenizer: PreTrainedTokenizerBase
    chat_template: str


def is_original(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is of the original layout."""
    return config.get("model_type") == "internvl_chat"


def native_config(original: dict[str, Any], name: str) -> InternVLConfig:
    """transformers' configuration of the same model; ``name`` is for error messages.

    ``image_token_id`` depends on the tokenizer: `adopt_tokens` sets it.

    Raises:
        ModelInvalid: a setting that transformers' InternVL does not have.
    """
    settings = _DEFAULTS | original
    _refuse_unknown(settings, name)
    _refuse_tiles(settings, name)
    vision = _vision_config(settings, name)
    text = _text_config(settings.get("llm_config") or {}, name)
    grid = vision["image_size"] // vision["patch_size"]
    native = InternVLConfig(
        vision_config=vision,
        text_config=text.to_dict(),
        image_seq_length=int(grid**2 * settings["downsample_ratio"] ** 2),
        downsample_ratio=settings["downsample_ratio"],
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=settings.get("dtype") or settings.get("torch_dtype"),
    )
    # Other settings of the processor; a plain dictionary, so that the config can be written.
    native.original_layout = {
        "size": vision["image_size"],
        "min_patches": settings["min_dynamic_patch"],
        "max_patches": settings["max_dynamic_patch"] if settings["dynamic_image_size"] else 1,
        "template": settings["template"],
        "system_message": _system_message(settings, text),
    }
    return native


def original_layout(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What `native_config` noted for the processor; None for every other configuration."""
    return getattr(config, "original_layout", None)


def _refuse_unknown(settings: dict[str, Any], name: str) -> None:
    wanted: dict[str, tuple[Any, ...]] = {
        "pad2square": (False,),
        "ps_version": ("v2",),
        "select_layer": (-1,),
        "template": tuple(CONVERSATIONS),
        "use_backbone_lora": (0,),
        "use_llm_lora": (0,),
    }
    if settings["dynamic_image_size"] and settings["max_dynamic_patch"] > 1:
        wanted["use_thumbnail"] = (True,)
    for key, values in wanted.items():
        if settings.get(key) not in values:
            raise _unsupported(name, key, settings.get(key), values)
    for part in (settings, settings.get("llm_config") or {}):
        if part.get("quantization_config"):
            raise ModelInvalid(
                f"model {name!r} is quantized already, in InternVL's original layout: use the "
                "repository that is not, and set quantize_bits"
            )


def _refuse_tiles(settings: dict[str, Any], name: str) -> None:
    """Limit the tiles: every image tries all grids of tiles one by one."""
    least, most = settings["min_dynamic_patch"], settings["max_dynamic_patch"]
    if type(least) is not int or type(most) is not int or not 1 <= least <= most <= _MAX_TILES:
        raise ModelInvalid(
            f"model {name!r} has min_dynamic_patch {least!r} and max_dynamic_patch {most!r} in its "
            f"config.json; they must be whole numbers from 1 to {_MAX_TILES}, the least first"
        )


def _unsupported(name: str, key: str, value: Any, values: tuple[Any, ...]) -> ModelInvalid:
    return ModelInvalid(
        f"model {name!r} has {key} {value!r} in its config.json; of InternVL's original layout "
        f"this engine runs {key} {' or '.join(map(repr, values))}"
    )


def _vision_config(settings: dict[str, Any], name: str) -> dict[str, Any]:
    vision = {
        key: (settings.get("vision_config") or {}).get(key, default)
        for key, default in _VISION_DEFAULTS.items()
    }
    tile = settings.get("force_image_size") or vision["image_size"]
    if tile != vision["image_size"]:  # the position embeddings would have to be resized
        raise _unsupported(name, "force_image_size", tile, (vision["image_size"],))
    if vision["qk_normalization"] and vision["layer_norm_eps"] != _QK_NORM_EPS:
        raise _unsupported(name, "layer_norm_eps", vision["layer_norm_eps"], (_QK_NORM_EPS,))
    del vision["dropout"]  # for training
    return {_VISION_NAMES.get(key, key): value for key, value in vision.items()}


def _text_config(original: dict[str, Any], name: str) -> PreTrainedConfig:
    architecture = next(iter(original.get("architectures") or []), None)
    model_type = _LANGUAGE_MODELS.get(str(architecture))
    if model_type is None:
        raise _unsupported(name, "llm_config.architectures", architecture, tuple(_LANGUAGE_MODELS))
    if architecture == "InternLM2ForCausalLM" and original.get("bias"):
        raise _unsupported(name, "llm_config.bias", True, (False,))
    config_class = CONFIG_MAPPING[model_type]
    # The originals list everything that configurations of their day had, sampling included.
    own = {field.name for field in dataclasses.fields(config_class)}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own |= {"rope_theta", "rope_scaling", "tie_word_embeddings", *config_class.attribute_map}
    own |= {"bos_token_id", "eos_token_id", "pad_token_id"}
    return config_class(**{key: value for key, value in original.items() if key in own})


def _system_message(settings: dict[str, Any], text: PreTrainedConfig) -> str:
    """The configuration's own; if it has none, the one that the repositories' templates write.

    Those of InternVL 2.5 and 3 put a sentence in front, those of 3.5 with Qwen3 put nothing.
    """
    own = settings.get("system_message")
    if isinstance(own, str):
        return own
    if text.model_type in ("qwen3", "qwen3_moe"):
        return ""
    return CONVERSATIONS[settings["template"]].system_message


def load_parts(model: str, config: PreTrainedConfig, **source: Any) -> ProcessorParts:
    """Tokenizer, template and image processor of an original repository.

    The image processor cuts tiles as ``dynamic_preprocess`` does; see
    ``tests/engine/loading/test_internvl_tiles.py``.

    Args:
        model: hub id or directory.
        config: what `native_config` made of it.
        source: revision and the like.

    Raises:
        ModelInvalid: the tokenizer lacks the tokens that stand around and for an image.
    """
    layout = dict(original_layout(config) or {})
    tokenizer = load_sentencepiece(model, **source) or AutoTokenizer.from_pretrained(
        model, config=config, **source
    )
    _name_image_tokens(tokenizer, model)
    begin = tokenizer.decode(tokenizer("")["input_ids"])  # such as InternLM's <s>
    template = CONVERSATIONS[layout.pop("template")].chat_template(
        begin=str(begin), system=layout.pop("system_message")
    )
    side = layout.pop("size")
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
        resample=PILImageResampling.BICUBIC,
        **layout,
    )
    return ProcessorParts(image_processor, tokenizer, template)


def _name_image_tokens(tokenizer: Any, model: str) -> None:
    """Give the tokens the names by which transformers' processor looks for them."""
    vocabulary = tokenizer.get_vocab()
    for name, token in _IMAGE_TOKENS.items():
        if token not in vocabulary:
            raise ModelInvalid(f"model {model!r} has a tokenizer without the token {token!r}")
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", vocabulary[token])
    # The processor wants one; the originals have none, and a new token would have no embedding.
    tokenizer.video_token = "<video>"  # noqa: S105 - no secret


def adopt_tokens(model: Any, tokenizer: Any) -> None:
    """Set a model's ids of the image token and of the end of a turn, which its tokenizer knows.

    The original ``chat`` always stops at the end of a turn; ``generation_config.json`` may not.
    """
    model.config.image_token_id = tokenizer.context_image_token_id
    layout = original_layout(model.config) or {}
    end = tokenizer.convert_tokens_to_ids(CONVERSATIONS[layout["template"]].end)
    if end is not None:
        model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = tokenizer.pad_token_id
