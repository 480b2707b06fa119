"""Which weights of a model are quantized, and the settings of transformers for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GgufConfig, PreTrainedConfig

from engine.config import EngineConfig
from engine.loading.families.family import TOWERS, in_head, in_tower, is_within
from engine.loading.quantized.dequantizer import dequantizing
from engine.loading.quantized.gguf_header import GGUF, read_gguf_header
from engine.loading.quantized.published import Published, published_in
from engine.quantization.base import Quantization
from engine.quantization.registry import quantization
from schema.errors import ModelInvalid

# Parts of names of embeddings, which are not matrix products and so are never quantized. In a
# checkpoint's header only their names distinguish them from other tensors.
_EMBEDDINGS = ("embed", "wte", "wpe")


def full_precision_modules(quantized: Quantization) -> list[str]:
    """The modules that keep their dtype, by their names in a model as transformers makes it."""
    return [*quantized.full_precision, *(f"model.{tower}" for tower in TOWERS)]


def takes(quantized: Quantization, tensor: str, dims: int) -> bool:
    """Whether it quantizes a tensor of this name, a model's or a checkpoint's, and dimensions.

    The same rule as `full_precision_modules`, for tensors of models that are not loaded.
    """
    if dims < 2 or in_tower(tensor) or any(part in tensor for part in _EMBEDDINGS):
        return False
    if "lm_head" in quantized.full_precision and in_head(tensor):
        return False
    return not is_within(tensor, quantized.full_precision)


@dataclass(frozen=True)
class Reading:
    """How the weights of a checkpoint become those of the model.

    Attributes:
        arguments: of ``from_pretrained``.
        hf_config: of the model, with the quantization as transformers is to read it.
        published_as: the name of the checkpoint's quantization; None if it has none.
        published: the quantization of a checkpoint in safetensors.
        kept: whether it is computed with as it is stored.
        afterwards: how layers are quantized when their weights are plain ones in memory, because
            transformers cannot dequantize and quantize in one step.
    """

    arguments: Mapping[str, Any]
    hf_config: PreTrainedConfig
    published_as: str | None = None
    published: Published | None = None
    kept: bool = False
    afterwards: Quantization | None = None


def plan_reading(config: EngineConfig, hf_config: PreTrainedConfig) -> Reading:
    """How to read the weights.

    Args:
        config: of the engine; ``model`` is what `engine.loading.snapshot` has found.
        hf_config: the model's configuration.

    Raises:
        ModelInvalid: the checkpoint is quantized already, and would be computed with so.
        ModelCorrupt, ModelFormatUnsupported: see `engine.loading.quantized.published`.
    """
    quantized = quantization(config.quantize_bits)
    path = Path(config.model)
    if path.suffix == GGUF:
        header = read_gguf_header(path, config.name)
        # Packed, a CPU has no kernel for it.
        settings = GgufConfig(dequantize=True)
        arguments = {"gguf_file": path.name, "quantization_config": settings}
        return Reading(arguments, hf_config, header.quantization, afterwards=quantized)
    published = published_in(path, config.name)
    own: Any = hf_config.get_text_config().dtype or torch.bfloat16
    dtype: torch.dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
    if published is not None:
        return _plan_published(config, hf_config, published, dtype)
    if quantized is None:
        return Reading({}, hf_config)
    _silence_bitsandbytes()
    arguments = {
        "quantization_config": quantized.transformers_config(
            dtype, full_precision_modules(quantized)
        )
    }
    return Reading(arguments, hf_config)


def _plan_published(
    config: EngineConfig, hf_config: PreTrainedConfig, published: Published, dtype: torch.dtype
) -> Reading:
    quantized = quantization(config.quantize_bits)
    hf_config = deepcopy(hf_config)
    text = hf_config.get_text_config()
    if hasattr(text, "quantization_config"):
        del text.quantization_config
    if hf_config.dtype is None:  # transformers would take that of the first tensor, a packed one
        hf_config.dtype = dtype
    method = published.method
    if method is None:
        if quantized not in (None, published.kept):
            raise ModelInvalid(
                f"model {config.name!r} is quantized already, with {published.name}: leave "
                "quantize_bits out"
            )
        _silence_bitsandbytes()
        # As for weights that are quantized here: no outlier columns, which depend on the batch.
        own = {"llm_int8_threshold": 0.0, "bnb_4bit_compute_dtype": dtype}
        hf_config.quantization_config = {**published.settings, **own}
        return Reading({}, hf_config, published.name, published, kept=True)
    if method.name == "mxfp4":  # which transformers dequantizes
        settings = {**published.settings, "dequantize": True}
    else:
        settings = dequantizing(method, published.settings)
    hf_config.quantization_config = settings
    return Reading({}, hf_config, published.name, published, afterwards=quantized)


def _silence_bitsandbytes() -> None:
    # These two warn at import about an optional kernel package, and at every single call about
    # arithmetic in float16, which is what INT8 means here (docs/engine.md).
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)


@torch.no_grad()
def quantize_layers(model: Any, quantized: Quantization) -> None:
    """Quantize the layers of a model in memory, in place and one by one.

    The layers are those that transformers quantizes while it reads a plain checkpoint.
    """
    _silence_bitsandbytes()
    layers = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and takes(quantized, f"{name}.weight", module.weight.dim())
    ]
    for name in layers:
        layer = model.get_submodule(name)
        model.set_submodule(name, quantized.layer(layer.weight.detach(), layer.bias))
    model.is_quantized = True
