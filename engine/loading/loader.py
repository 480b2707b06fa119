"""Loads a model from the hub or from a directory: where its weights go, and in which form."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from engine.config import EngineConfig
from engine.loading.adapters.adapter import locate_adapters
from engine.loading.description import describe_model
from engine.loading.errors import load_errors
from engine.loading.families import internvl
from engine.loading.families.family import family_of
from engine.loading.families.internvl_weights import OriginalInternVL
from engine.loading.families.rope import fix_idle_scaling
from engine.loading.families.traits import (
    ImageAttention,
    image_attention,
    indicator_tokens,
)
from engine.loading.loaded_model import LoadedModel
from engine.loading.model_files import (
    context_length,
    gguf_file,
    is_vision,
    read_chat_template,
    read_config,
    read_processor,
    read_tokenizer,
    source_arguments,
    source_directory,
)
from engine.loading.quantized.checkpoint import Checkpoint
from engine.loading.quantized.gguf_header import read_gguf_header
from engine.loading.quantized.gguf_model import refuse_tensors_left_out
from engine.loading.quantized.modules import Reading, plan_reading, quantize_layers
from engine.loading.quantized.published import fold
from engine.loading.reading.claimed_size import refuse_more_than_stored
from engine.loading.reading.progress import loading_bars
from engine.loading.sharding.layer_split import LayerPlacement, connect, plan_spread, stage_devices
from engine.loading.sharding.tensor_plan import refuse_fused, refuse_packed, tensor_plan
from engine.loading.sharding.tensor_styles import keep_own_parts
from engine.loading.snapshot import Snapshot, locate, stored_tensors, with_weights
from engine.platform.malloc import large_blocks_given_back
from engine.platform.platforms import resolve_device
from engine.quantization.nf4 import keep_odd_layers
from engine.quantization.registry import quantization
from schema.errors import ModelInvalid

logger = logging.getLogger(__name__)


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
    device = resolve_device(config.device)
    start = time.monotonic()
    logger.info("loading %s on %s", config.name, device)
    source = locate(config)
    adapters = locate_adapters(config)
    with load_errors(config), loading_bars():
        # Refused before gigabytes are downloaded, if it is.
        local = source.config(config)
        hf_config = read_config(local)
        takes_images = is_vision(hf_config, config)
        processor = read_processor(local, hf_config) if takes_images else None
        tokenizer = processor.tokenizer if processor else read_tokenizer(local)
        chat_template = read_chat_template(config, processor, tokenizer)
        is_original = internvl.original_layout(hf_config) is not None
        auto_class: Any = AutoModelForImageTextToText if takes_images else AutoModelForCausalLM
        if is_original:
            auto_class = OriginalInternVL
        reading = plan_reading(local, hf_config)
        if config.tensor_parallel:
            refuse_packed(config, "GGUF" if source.gguf else reading.published_as)
        placement, spread = _placement(config, local, hf_config, device)
        source = with_weights(config, source)
        _refuse_wrong_files(local, source, hf_config, reading, describes=not is_original)
        if config.tensor_parallel:
            refuse_fused(config, source)
        config = local
        if join is not None:
            join(config, device)
        model, checkpoint = _read_weights(config, auto_class, reading, placement)
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
    family = family_of(hf_config.model_type) if processor else None
    attention = image_attention(model) if processor else ImageAttention.NONE
    whole = attention in (ImageAttention.IMAGE, ImageAttention.IMAGE_IN_WINDOWS)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        chat_template=chat_template,
        tool_template=read_chat_template(config, processor, tokenizer, "tool_use"),
        image_token=processor.image_token if processor else None,
        image_token_id=processor.feature_token_id if processor else None,
        context_length=context_length(config, hf_config),
        device=device,
        own_attention=model.get_decoder().config._attn_implementation,
        spread=spread,
        image_attention=attention,
        whole_image_tokens=processor.most_tokens if processor and whole else 0,
        tile_shape=processor.tile_shape if processor else None,
        typed_token_ids=processor.typed_token_ids if processor else frozenset(),
        indicator_token_ids=indicator_tokens(model) if processor else (),
        revision=source.commit,
        checkpoint=checkpoint,
        gguf=source.gguf,
        image_tag=family.image_tag if family else None,
        begins_every_prompt=family is not None and family.begins_every_prompt,
        begins_after_images=family is not None and family.begins_after_images,
        prompt_end=family.prompt_end if family else "",
        adapters=adapters,
    )


def _placement(
    config: EngineConfig, local: EngineConfig, hf_config: PreTrainedConfig, device: torch.device
) -> tuple[dict[str, Any], LayerPlacement | None]:
    """Where the weights go: arguments of ``from_pretrained``, and how layers are spread, if so.

    Args:
        config: of the engine.
        local: the same for the files that were found.
        hf_config: of the model.
        device: the first or only one.
    """
    if config.tensor_parallel:
        return {"distributed_config": tensor_plan(config, hf_config)}, None
    if config.layout is None:
        return {"device_map": {"": device}}, None
    spread, device_map = plan_spread(local, hf_config, stage_devices(config, device))
    return {"device_map": device_map}, spread


def _refuse_wrong_files(
    config: EngineConfig,
    source: Snapshot,
    hf_config: PreTrainedConfig,
    reading: Reading,
    *,
    describes: bool,
) -> None:
    """Refuse files of weights that lack parts, or are not those of the configuration.

    ``describes``: transformers can make the model's modules from ``hf_config``.
    """
    if source.gguf is not None:
        header = read_gguf_header(source.directory / source.gguf, config.name)
        shapes = [tensor.shape for tensor in header.tensors]
    else:
        stored = stored_tensors(source)
        shapes = [tensor.shape for tensor in stored.values()]
        fold(stored, reading.published, config.name)

    def described() -> Iterable[tuple[int, ...]]:
        try:
            tensors = describe_model(config, hf_config).tensors
        except Exception as error:  # noqa: BLE001 - of code of any model; loading tells what it is
            logger.debug("modules of %s cannot be made without weights: %r", config.name, error)
            return ()
        return [each.shape for each in tensors.values()]

    refuse_more_than_stored(
        hf_config.to_dict(),
        shapes,
        described if describes else None,
        num_bytes=sum((source.directory / file).stat().st_size for file in source.weights),
        packed=source.gguf is not None or reading.published_as is not None,
        model=config.name,
    )


def _read_weights(
    config: EngineConfig,
    auto_class: Any,
    reading: Reading,
    placement: dict[str, Any],
) -> tuple[Any, Checkpoint]:
    """The module, its weights where ``placement`` (arguments of ``from_pretrained``) says."""
    converts = reading.arguments or reading.published_as is not None
    with large_blocks_given_back() if converts else nullcontext():
        loaded: Any = auto_class.from_pretrained(
            source_directory(config),
            config=reading.hf_config,
            dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
            **reading.arguments,
            **placement,
            use_safetensors=True,
            output_loading_info=True,
            **source_arguments(config),
        )
        model, found = loaded
        if not isinstance(model.get_decoder(), PreTrainedModel):
            # transformers takes a layer for it that is only called so (ModernBERT's head).
            model.get_decoder = lambda: model.base_model
        keep_own_parts(model)
        fix_idle_scaling(model)
        _refuse_random_weights(config, found["missing_keys"])
        if auto_class is OriginalInternVL:
            _refuse_other_weights(config, found["unexpected_keys"])
        if (file := gguf_file(config)) is not None:
            refuse_tensors_left_out(read_gguf_header(file, config.name), model, config.name)
        if reading.afterwards is not None:
            quantize_layers(model, reading.afterwards)
        keep_odd_layers(model)
    return model, _checkpoint(config, reading, model)


def _checkpoint(config: EngineConfig, reading: Reading, model: Any) -> Checkpoint:
    loaded_as = str(model.dtype).removeprefix("torch.")
    if reading.kept:
        loaded_as = "as stored"
    elif reading.published_as is not None:
        loaded_as = f"dequantized to {loaded_as}"
    if not reading.kept and (quantized := quantization(config.quantize_bits)) is not None:
        loaded_as += f", quantized to {quantized.label}"
    form = "safetensors" if gguf_file(config) is None else "gguf"
    return Checkpoint(form, reading.published_as, loaded_as)


def _refuse_random_weights(config: EngineConfig, missing: Collection[str]) -> None:
    """transformers initializes missing tensors randomly; the answers would be noise."""
    if missing:
        raise ModelInvalid(
            f"model {config.name!r} is not a complete text generation model: its weights lack "
            f"{len(missing)} tensors, such as {min(missing)}"
        )


def _refuse_other_weights(config: EngineConfig, unexpected: Collection[str]) -> None:
    """Refuse an original InternVL with parts that transformers' InternVL would leave out."""
    if unexpected:
        raise ModelInvalid(
            f"model {config.name!r} is an InternVL with parts that this engine does not have: "
            f"{len(unexpected)} tensors, such as {min(unexpected)}"
        )
