"""The files of a model beside weights: configuration, tokenizer, templates, processor.

All functions raise `ModelInvalid` for files that are missing or contradict each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    AutoConfig,
    AutoTokenizer,
    InternVLProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from engine.config import EngineConfig
from engine.loading.errors import load_errors
from engine.loading.families import internvl
from engine.loading.families.context import (
    CONTEXT_NAMES,
    DEFAULT_CONTEXT,
    own_context_length,
)
from engine.loading.families.family import VISION_MODEL_TYPES, family_of
from engine.loading.families.processors import (
    TRIAL_SIZE,
    ImageProcessor,
    image_only_processor,
    load_image_processor,
)
from engine.loading.quantized.gguf_header import GGUF
from engine.loading.quantized.gguf_model import read_gguf_config, read_gguf_tokenizer
from engine.loading.reading.claimed_size import refuse_absurd_counts
from engine.loading.snapshot import locate
from schema.errors import ModelInvalid, TaskError


def load_processor(config: EngineConfig) -> ImageProcessor | None:
    """The processor of a vision-language model, None for a text model. Raises as `load_model`."""
    config = locate(config).config(config)
    with load_errors(config):
        hf_config = read_config(config)
        return read_processor(config, hf_config) if is_vision(hf_config, config) else None


def source_arguments(config: EngineConfig) -> dict[str, Any]:
    """How files are loaded from the directory or file that `engine.loading.snapshot` has found."""
    return {
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": config.local_files_only,
    }


def source_directory(config: EngineConfig) -> Path:
    """The directory of what `engine.loading.snapshot` has found."""
    path = Path(config.model)
    return path if gguf_file(config) is None else path.parent


def gguf_file(config: EngineConfig) -> Path | None:
    """The GGUF file that `engine.loading.snapshot` has found; None for a directory."""
    return path if (path := Path(config.model)).suffix == GGUF else None


def read_config(config: EngineConfig) -> PreTrainedConfig:
    """The model's configuration; an original InternVL's as that of transformers' own."""
    if (file := gguf_file(config)) is not None:
        return read_gguf_config(file, config.name)
    found, _ = PreTrainedConfig.get_config_dict(config.model, **source_arguments(config))
    refuse_absurd_counts(found, config.name)
    if internvl.is_original(found):
        hf_config: Any = internvl.native_config(found, config.name)
    else:
        hf_config = AutoConfig.from_pretrained(config.model, **source_arguments(config))
    assert isinstance(hf_config, PreTrainedConfig)
    return hf_config


def read_tokenizer(config: EngineConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a text model, or of an image processor that has none yet."""
    if (file := gguf_file(config)) is not None:
        return read_gguf_tokenizer(file)
    tokenizer = AutoTokenizer.from_pretrained(config.model, **source_arguments(config))
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        # What transformers makes of a repository without tokenizer files.
        raise ModelInvalid(f"model {config.name!r} has no tokenizer: its files are missing")
    return tokenizer


def read_processor(config: EngineConfig, hf_config: PreTrainedConfig) -> ImageProcessor:
    """The image processor of a vision-language model, tried with an image."""
    try:
        processor = _made_processor(config, hf_config)
        for among_others in {False, processor.depends_on_image_count}:
            processor(Image.new("RGB", TRIAL_SIZE), among_others=among_others)
    except (TaskError, OSError):
        raise
    except Exception as error:  # faulty configurations raise many types
        raise ModelInvalid(
            f"model {config.name!r} has an image processor that does not work "
            f"({type(error).__name__}: {error}): see its preprocessor_config.json"
        ) from error
    return processor


def _made_processor(config: EngineConfig, hf_config: PreTrainedConfig) -> ImageProcessor:
    if internvl.original_layout(hf_config) is None:
        return load_image_processor(
            config, hf_config, read_tokenizer(config), source_arguments(config)
        )
    parts = internvl.load_parts(config.model, hf_config, **source_arguments(config))
    processor = image_only_processor(InternVLProcessor)(
        parts.image_processor,
        parts.tokenizer,
        image_seq_length=hf_config.image_seq_length,
        chat_template=parts.chat_template,
    )
    return ImageProcessor(processor, processor.image_token_id)


def is_vision(hf_config: PreTrainedConfig, config: EngineConfig) -> bool:
    """Whether the model takes images; raises for one whose kind is not supported."""
    if type(hf_config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return False
    if family_of(hf_config.model_type) is None:
        raise ModelInvalid(
            f"model {config.name!r} is a vision-language model of type {hf_config.model_type!r}; "
            f"supported are {', '.join(VISION_MODEL_TYPES)} and all text models"
        )
    return True


def read_chat_template(
    config: EngineConfig,
    processor: ImageProcessor | None,
    tokenizer: PreTrainedTokenizerBase,
    name: str = "default",
) -> str | None:
    """The template of the repository; of several named ones, this or the default."""
    template = (processor and processor.chat_template) or tokenizer.chat_template
    if isinstance(template, dict):
        template = (
            template.get(name) or template.get("default") or next(iter(template.values()), None)
        )
    if template is not None and not isinstance(template, str):
        raise ModelInvalid(
            f"model {config.name!r} has a chat_template that is not text but a "
            f"{type(template).__name__}"
        )
    return template


def context_length(config: EngineConfig, hf_config: PreTrainedConfig) -> int:
    """Tokens that a prompt and its answer may have: the setting's, at most the model's own."""
    text = hf_config.get_text_config()
    own = own_context_length({name: getattr(text, name, None) for name in CONTEXT_NAMES})
    if own is not None and (not isinstance(own, int) or own < 1):
        raise ModelInvalid(f"model {config.name!r} has a context length of {own!r}")
    if config.context_length is None:
        return DEFAULT_CONTEXT if own is None else own
    if own is not None and config.context_length > own:
        raise ModelInvalid(
            f"context_length is {config.context_length}, but model {config.name!r} was made for "
            f"{own} tokens"
        )
    return config.context_length
