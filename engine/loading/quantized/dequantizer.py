"""Dequantizes published weights while transformers reads them, one weight at a time.

transformers lets a quantizer say which tensors of a checkpoint become a parameter and by which
operation. It runs the operation before those of the architecture (joining experts, splitting fused
layers), so nothing of an architecture is repeated here, and no second copy of the model is made.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from engine.loading.quantized.methods import METHODS, Method, Settings
from engine.loading.quantized.unpack import UNPACK

NAME = "dequantized_on_load"
"""``quant_method`` of the configurations that `dequantizing` makes."""


def dequantizing(method: Method, settings: Settings) -> dict[str, Any]:
    """The ``quantization_config`` of a model whose weights are dequantized.

    Args:
        method: in which they are published.
        settings: its own ones.
    """
    return {"quant_method": NAME, "method": method.name, "settings": dict(settings)}


class _Config(QuantizationConfigMixin):
    """What `dequantizing` makes, as transformers hands it to the quantizer."""

    dequantize = True  # so that the loaded model does not count as quantized

    def __init__(self, method: str, settings: dict[str, Any], **_: Any) -> None:
        self.quant_method: Any = NAME
        self.method = METHODS[method]
        self.settings = settings

    def to_dict(self) -> dict[str, Any]:
        return dequantizing(self.method, self.settings)


class _Quantizer(HfQuantizer):
    """Leaves the model as it is, and names the operation."""

    quantization_config: Any

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.serialized_names = {"weight": list(quantization_config.method.names)}

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": _Dequantize}

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _Dequantize(ConversionOps):
    """Of the tensors of one weight, or of a weight of each expert, makes the weights."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer  # tensors for it are read in the dtype of the file
        self._method: Method = hf_quantizer.quantization_config.method
        self._settings: Settings = hf_quantizer.quantization_config.settings

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str = "",
        model: Any = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Tensors by their names, or by their patterns with a list for all experts."""
        dtype = model.get_parameter_or_buffer(full_layer_name).dtype
        if set(input_dict) <= set(self._method.names):
            parts = {part: _only(tensors) for part, tensors in input_dict.items()}
            return {full_layer_name: self._weight(parts, dtype)}
        of_pattern: dict[str, dict[str, Any]] = defaultdict(dict)
        for pattern in list(input_dict):
            prefix, part = self._split(pattern)
            of_pattern[prefix][part] = input_dict.pop(pattern)
        return {
            f"{prefix}weight": self._weights(prefix, parts, dtype)
            for prefix, parts in of_pattern.items()
        }

    def _split(self, pattern: str) -> tuple[str, str]:
        for part in sorted(self._method.names, key=len, reverse=True):
            if pattern.endswith(f".{part}"):
                return pattern.removesuffix(part), part
        raise ValueError(f"{pattern} is no part of a weight in {self._method.name}")

    def _weights(
        self, prefix: str, parts: dict[str, Any], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The weights of all experts, each by its parts."""
        lists = {part: _listed(tensors) for part, tensors in parts.items()}
        kept = {part: each for part, each in lists.items() if part not in self._method.ignored}
        counts = {len(tensors) for tensors in kept.values()}
        if len(counts) != 1:
            raise ValueError(f"of {prefix}weight some experts are quantized and others are not")
        return [
            self._weight({part: kept[part][number] for part in kept}, dtype)
            for number in range(counts.pop())
        ]

    def _weight(self, parts: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        plain = parts.get("weight")
        if plain is not None and plain.dtype.itemsize > 1:
            return plain.to(dtype)
        return UNPACK[self._method.name](parts, self._settings).to(dtype)


def _only(tensors: Any) -> torch.Tensor:
    (tensor,) = _listed(tensors)
    return tensor


def _listed(tensors: Any) -> list[torch.Tensor]:
    return list(tensors) if isinstance(tensors, list) else [tensors]


register_quantization_config(NAME)(_Config)
register_quantizer(NAME)(_Quantizer)
