"""Which weights of a model are quantized, and the settings of transformers for it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedConfig

from engine.config import EngineConfig
from engine.loading.families.family import TOWERS, in_head, in_tower, is_within
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


def quantization_config(config: EngineConfig, hf_config: PreTrainedConfig) -> Any:
    """How transformers quantizes the weights as it reads them; None if it does not.

    Raises:
        ModelInvalid: the checkpoint is quantized already.
    """
    quantized = quantization(config.quantize_bits)
    if quantized is None:
        return None
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ModelInvalid(f"model {config.name!r} is quantized already: leave quantize_bits out")
    # These two warn at import about an optional kernel package, and at every single call about
    # arithmetic in float16, which is what INT8 means here (docs/engine.md).
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    own = hf_config.get_text_config().dtype or torch.bfloat16
    dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
    return quantized.transformers_config(dtype, full_precision_modules(quantized))
