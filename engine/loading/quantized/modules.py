"""Which weights of a model are quantized, and the settings of transformers for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GgufConfig, PreTrainedConfig

from engine.config import EngineConfig
from engine.loading.families.family import TOWERS, in_head, in_tower, is_within
from engine.loading.quantized.gguf_header import read_gguf_header
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
        published_as: the quantization of the checkpoint; None if it has none.
        afterwards: how layers are quantized when their weights are plain ones in memory, because
            transformers cannot dequantize and quantize in one step.
    """

    arguments: Mapping[str, Any]
    published_as: str | None = None
    afterwards: Quantization | None = None


def plan_reading(config: EngineConfig, hf_config: PreTrainedConfig) -> Reading:
    """How to read the weights.

    Args:
        config: of the engine; ``model`` is what `engine.loading.snapshot` has found.
        hf_config: the model's configuration.

    Raises:
        ModelInvalid: the checkpoint is quantized already.
    """
    quantized = quantization(config.quantize_bits)
    if quantized is not None:
        _silence_bitsandbytes()
    path = Path(config.model)
    if path.suffix == ".gguf":
        header = read_gguf_header(path, config.name)
        arguments = {
            "gguf_file": path.name,
            "quantization_config": GgufConfig(
                dequantize=True
            ),  # packed, a CPU has no kernel for it
        }
        return Reading(arguments, header.quantization, quantized)
    if quantized is None:
        return Reading({})
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ModelInvalid(f"model {config.name!r} is quantized already: leave quantize_bits out")
    own = hf_config.get_text_config().dtype or torch.bfloat16
    dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
    settings = quantized.transformers_config(dtype, full_precision_modules(quantized))
    return Reading({"quantization_config": settings})


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
    layers = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and takes(quantized, f"{name}.weight", module.weight.dim())
    ]
    for name in layers:
        layer = model.get_submodule(name)
        model.set_submodule(name, quantized.layer(layer.weight.detach(), layer.bias))
    model.is_quantized = True
