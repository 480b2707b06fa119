"""Loading a model, its tokenizer and its processor from the hub or from a directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    InternVLProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from engine import internvl
from engine.config import EngineConfig
from engine.device_check import check_device, device_facts, device_problem
from engine.host_memory import large_blocks_given_back
from engine.internvl_weights import OriginalInternVL
from engine.load_errors import load_errors
from engine.processors import (
    VISION_MODEL_TYPES,
    PictureProcessor,
    image_only_processor,
    load_picture_processor,
)
from engine.progress import loading_bars
from engine.rope import drop_idle_scaling
from engine.source import locate, with_weights
from engine.spread import Spread, connect, plan_spread, stage_devices
from engine.tensor_parallel.plan import refuse_fused, tensor_plan
from engine.tensor_parallel.styles import keep_own_parts
from engine.vision import whole_image_tokens
from schema.errors import ModelInvalid, TaskError

logger = logging.getLogger(__name__)

_TRIAL_SIZE = (64, 48)  # of the picture that every processor is tried with

# Left in full precision under quantization: the head decides near ties (and may be tied to the
# embedding, which bitsandbytes cannot quantize), the vision tower and its projector are small.
_UNQUANTIZED_MODULES = (
    "lm_head",
    "model.vision_tower",
    "model.vision_model",
    "model.visual",
    "model.multi_modal_projector",
    "model.connector",
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what its prompts need.

    ``revision`` is the commit of a model of the hub; None for a directory. ``device`` is where
    tokens go in and logits come out.
    """

    model: Any  # a PreTrainedModel; its attributes come from the architecture, untyped
    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    image_token: str | None
    image_token_id: int | None
    context_length: int
    device: torch.device
    revision: str | None
    spread: Spread | None = None  # over several devices, of which ``device`` is the first
    whole_image_tokens: int = 0  # see `engine.vision.whole_image_tokens`
    tool_template: str | None = None  # for tasks with tools, where that is another one
    image_tag: str | None = None  # what texts say where a picture belongs (engine.image_tags)

    @property
    def takes_images(self) -> bool:
        """Whether messages may hold image blocks."""
        return self.image_token is not None


def resolve_device(config: EngineConfig) -> torch.device:
    """The device that ``config.device`` means on this machine; torch can compute on it.

    Raises:
        ModelInvalid: CUDA is asked for and there is none.
        TaskExecutionError: see `engine.device_check`.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        why = device_problem(device_facts(torch.device("cuda")))
        raise ModelInvalid(f"device is 'cuda', but {why}; or use 'auto' or 'cpu'")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    check_device(device)
    return device


def load_model(
    config: EngineConfig, join: Callable[[EngineConfig, torch.device], None] | None = None
) -> LoadedModel:
    """Load weights, tokenizer and templates. Blocking; downloads when the hub has to be asked.

    Args:
        config: which model, and how.
        join: for a model that is split tensor by tensor: called when all files are here, with
            the configuration that loads them, to form the process group of all ranks.

    Raises:
        ModelInvalid: no such model, or one that this engine cannot run; its subclasses say which.
        ModelNotDownloaded: offline, and not in the cache or only in part.
        ModelDownloadError: the hub could not be reached.
        OutOfMemory: the weights do not fit into the device's memory.
        TaskExecutionError: this build of torch cannot compute on the device.
    """
    device = resolve_device(config)
    start = time.monotonic()
    logger.info("loading %s on %s", config.name, device)
    source = locate(config)
    with load_errors(config), loading_bars():
        # Refused before gigabytes are downloaded, if it is.
        local = source.config(config)
        hf_config = _load_config(local)
        is_vision = _is_vision(hf_config, config)
        processor = _load_processor(local, hf_config) if is_vision else None
        tokenizer = processor.tokenizer if processor else _load_tokenizer(local)
        chat_template = _chat_template(config, processor, tokenizer)
        is_original = internvl.original_layout(hf_config) is not None
        auto_class: Any = AutoModelForImageTextToText if is_vision else AutoModelForCausalLM
        if is_original:
            auto_class = OriginalInternVL
        spread: Spread | None = None
        placement: dict[str, Any] = {"device_map": {"": device}}
        if config.tensor_parallel:
            placement = {"distributed_config": tensor_plan(config, auto_class, hf_config)}
        elif config.layout is not None:
            spread, device_map = plan_spread(local, hf_config, stage_devices(config, device))
            placement = {"device_map": device_map}
        source = with_weights(config, source)
        if config.tensor_parallel:
            refuse_fused(config, source)
        config = local
        if join is not None:
            join(config, device)
        model = _read_weights(config, hf_config, auto_class, placement)
        if is_original:
            internvl.adopt_tokens(model, tokenizer)
        if spread is not None:
            connect(model, spread, config)
    logger.info(
        "loaded %s in %.1f s, %.2f GiB of weights",
        config.name,
        time.monotonic() - start,
        model.get_memory_footprint() / 2**30,
    )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        chat_template=chat_template,
        tool_template=_chat_template(config, processor, tokenizer, "tool_use"),
        image_token=processor.image_token if processor else None,
        image_token_id=processor.feature_token_id if processor else None,
        context_length=_context_length(config, hf_config),
        device=device,
        spread=spread,
        whole_image_tokens=whole_image_tokens(model) if processor else 0,
        revision=source.commit,
        image_tag="<image>" if hf_config.model_type == "internvl" else None,
    )


def _read_weights(
    config: EngineConfig, hf_config: PreTrainedConfig, auto_class: Any, placement: dict[str, Any]
) -> Any:
    """The module, its weights where ``placement`` (arguments of ``from_pretrained``) says."""
    quantization = _quantization(config, hf_config)
    with large_blocks_given_back() if quantization else nullcontext():
        loaded: Any = auto_class.from_pretrained(
            config.model,
            config=hf_config,
            dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
            quantization_config=quantization,
            **placement,
            use_safetensors=True,
            output_loading_info=True,
            **_source(config),
        )
    model, found = loaded
    keep_own_parts(model)
    _refuse_random_weights(config, found["missing_keys"])
    if auto_class is OriginalInternVL:
        _refuse_other_weights(config, found["unexpected_keys"])
    return model


def load_processor(config: EngineConfig) -> PictureProcessor | None:
    """The processor of a vision-language model, None for a text model. Raises as `load_model`."""
    config = locate(config).config(config)
    with load_errors(config):
        hf_config = _load_config(config)
        return _load_processor(config, hf_config) if _is_vision(hf_config, config) else None


def _refuse_random_weights(config: EngineConfig, missing: Collection[str]) -> None:
    """transformers makes up what a checkpoint lacks; the answers would be noise."""
    if missing:
        raise ModelInvalid(
            f"model {config.name!r} is no complete text generation model: its weights lack "
            f"{len(missing)} tensors, such as {min(missing)}"
        )


def _refuse_other_weights(config: EngineConfig, unexpected: Collection[str]) -> None:
    """An original InternVL with more parts than transformers' would run without them."""
    if unexpected:
        raise ModelInvalid(
            f"model {config.name!r} is an InternVL with parts that this engine does not have: "
            f"{len(unexpected)} tensors, such as {min(unexpected)}"
        )


def _chat_template(
    config: EngineConfig,
    processor: PictureProcessor | None,
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
            f"model {config.name!r} has a chat_template that is no text but a "
            f"{type(template).__name__}"
        )
    return template


def _source(config: EngineConfig) -> dict[str, Any]:
    """How files are loaded from the directory that `engine.source` has found."""
    return {
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": config.local_files_only,
    }


def _load_config(config: EngineConfig) -> PreTrainedConfig:
    found, _ = PreTrainedConfig.get_config_dict(config.model, **_source(config))
    if internvl.is_original(found):
        hf_config: Any = internvl.native_config(found, config.name)
    else:
        hf_config = AutoConfig.from_pretrained(config.model, **_source(config))
    assert isinstance(hf_config, PreTrainedConfig)
    drop_idle_scaling(hf_config.get_text_config())
    return hf_config


def _load_tokenizer(config: EngineConfig) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(config.model, **_source(config))
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        # What transformers makes of a repository without tokenizer files.
        raise ModelInvalid(f"model {config.name!r} has no tokenizer: its files are missing")
    return tokenizer


def _load_processor(config: EngineConfig, hf_config: PreTrainedConfig) -> PictureProcessor:
    try:
        processor = _made_processor(config, hf_config)
        for among_others in {False, processor.treats_several_otherwise}:
            processor(Image.new("RGB", _TRIAL_SIZE), among_others=among_others)
    except (TaskError, OSError):
        raise
    except Exception as error:  # whatever a faulty preprocessor_config.json leads to
        raise ModelInvalid(
            f"model {config.name!r} has an image processor that does not work "
            f"({type(error).__name__}: {error}): see its preprocessor_config.json"
        ) from error
    return processor


def _made_processor(config: EngineConfig, hf_config: PreTrainedConfig) -> PictureProcessor:
    if internvl.original_layout(hf_config) is None:
        return load_picture_processor(config, hf_config, _load_tokenizer(config), _source(config))
    parts = internvl.load_parts(config.model, hf_config, **_source(config))
    processor = image_only_processor(InternVLProcessor)(
        parts.image_processor,
        parts.tokenizer,
        image_seq_length=hf_config.image_seq_length,
        chat_template=parts.chat_template,
    )
    return PictureProcessor(processor, processor.image_token_id)


def _is_vision(hf_config: PreTrainedConfig, config: EngineConfig) -> bool:
    if type(hf_config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return False
    if hf_config.model_type not in VISION_MODEL_TYPES:
        raise ModelInvalid(
            f"model {config.name!r} is a vision-language model of type {hf_config.model_type!r}; "
            f"supported are {', '.join(VISION_MODEL_TYPES)} and all text models"
        )
    return True


def _quantization(config: EngineConfig, hf_config: PreTrainedConfig) -> BitsAndBytesConfig | None:
    if config.quantize_bits is None:
        return None
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ModelInvalid(f"model {config.name!r} is quantized already: leave quantize_bits out")
    # These two warn at import about an optional kernel package, and at every single call about
    # arithmetic in float16, which is what INT8 means here (docs/architecture.md).
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if config.quantize_bits == 4:
        own = hf_config.get_text_config().dtype or torch.bfloat16
        dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(_UNQUANTIZED_MODULES),
        )
    # Threshold 0 turns the outlier columns off: LLM.int8 picks them over the whole batch, so that
    # one task would change another's bits.
    return BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=0.0,
        llm_int8_skip_modules=list(_UNQUANTIZED_MODULES),
    )


def _context_length(config: EngineConfig, hf_config: PreTrainedConfig) -> int:
    own = getattr(hf_config.get_text_config(), "max_position_embeddings", None)
    if own is not None and (not isinstance(own, int) or own < 1):
        raise ModelInvalid(f"model {config.name!r} has max_position_embeddings {own!r}")
    if config.context_length is None:
        if own is None:
            raise ModelInvalid(
                f"model {config.name!r} does not say its context length: set context_length"
            )
        return int(own)
    if own is not None and config.context_length > own:
        raise ModelInvalid(
            f"context_length is {config.context_length}, but model {config.name!r} was made for "
            f"{own} tokens"
        )
    return config.context_length
