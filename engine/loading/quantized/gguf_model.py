"""A model from a GGUF file: its configuration and tokenizer, and whether all of it was loaded.

transformers reads all three. Its configuration leaves out what most files do not need, above all
how rotary positions are scaled, and it drops tensors that it has no place for. The first is
completed here, the second refused: both would change answers without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from engine.loading.quantized.gguf_header import (
    OTHER_NAMES,
    GgufHeader,
    GgufTensor,
    read_gguf_header,
)
from schema.errors import ModelFormatUnsupported, ModelInvalid

# What llama.cpp's keys are called in transformers' configurations.
_FURTHER_KEYS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# Tensors that say how rotary positions are scaled: for all positions, or for short and long texts.
_FREQUENCIES = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
# The constants of Llama 3's scaling, the same in all of its models; the factor is not.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_gguf_config(path: Path, model: str) -> PreTrainedConfig:
    """The model's configuration, as transformers' models want it.

    Args:
        path: of the file.
        model: the model's name, for messages.

    Raises:
        ModelFormatUnsupported: it scales rotary positions in a way that is not known here.
        ModelCorrupt, ModelIncomplete: see `read_gguf_header`.
    """
    header = read_gguf_header(path, model)
    found, _ = PreTrainedConfig.get_config_dict(path.parent, gguf_file=path.name)
    found = {key: value for key, value in found.items() if value is not None}
    defaults = AutoConfig.for_model(found["model_type"])
    mapping: Any = GGUF_CONFIG_MAPPING
    known = mapping.get(OTHER_NAMES.get(header.architecture, header.architecture), {})
    for key, name in _FURTHER_KEYS.items():
        value = header.of_model(key)
        # What transformers reads under another name means something else in this architecture.
        if value is not None and not known.get(key) and hasattr(defaults, name):
            found.setdefault(name, value)
    found |= _partial_rotation(header, known, found)
    if (end_of_turn := header.metadata.get("tokenizer.ggml.eot_token_id")) is not None:
        ends = found.get("eos_token_id")
        found["eos_token_id"] = sorted({end_of_turn, *(ends if isinstance(ends, list) else [ends])})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        found.setdefault(name, None)  # the defaults are tokens of some other model
    found |= _scaling(header, path, model, found)
    hf_config = AutoConfig.for_model(**found)
    hf_config.dtype = getattr(torch, header.dtype)
    assert isinstance(hf_config, PreTrainedConfig)
    return hf_config


def _partial_rotation(
    header: GgufHeader, known: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
    """How much of a head is rotated, where that is a part (Phi-4 mini, StableLM)."""
    rotated = header.of_model("rope.dimension_count")
    heads = found.get("num_attention_heads")
    if not rotated or not heads or known.get("rope.dimension_count"):
        return {}
    size = header.of_model("attention.key_length") or found.get("hidden_size", 0) // heads
    return {"partial_rotary_factor": rotated / size} if 0 < rotated < size else {}


def _scaling(header: GgufHeader, path: Path, model: str, found: dict[str, Any]) -> dict[str, Any]:
    """The fields of the configuration that scale rotary positions; none if nothing does."""
    if "rope_scaling" in found or header.architecture in GGUF_ARCHS:
        return {}
    tensors = {tensor.name: tensor for tensor in header.tensors}
    plain = [tensors[name] for name in (_LONG, _SHORT, _FREQUENCIES) if name in tensors]
    if any(each.type is not GGMLQuantizationType.F32 for each in plain):
        raise _unknown_scaling(model, "by factors that are not in float32")
    if (_LONG in tensors) != (_SHORT in tensors):
        raise _unknown_scaling(model, "by one set of long and short factors")
    if _LONG in tensors:
        original = header.of_model("rope.scaling.original_context_length")
        scaling = {
            "rope_type": "longrope",
            "long_factor": _values(path, tensors[_LONG]).tolist(),
            "short_factor": _values(path, tensors[_SHORT]).tolist(),
        }
        return {"rope_scaling": scaling, "original_max_position_embeddings": original}
    if _FREQUENCIES in tensors:
        factors = _values(path, tensors[_FREQUENCIES])
        if not np.all(factors == 1.0):
            return {"rope_scaling": _llama3(factors, model, found)}
    kind = header.of_model("rope.scaling.type") or "none"
    factor = header.of_model("rope.scaling.factor")
    original = header.of_model("rope.scaling.original_context_length")
    if kind == "none" or factor in (None, 1.0):
        return {}
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn" and header.of_model("rope.scaling.yarn_log_multiplier") is None:
        scaling = {"rope_type": "yarn", "factor": factor}
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        return {"rope_scaling": scaling}
    raise _unknown_scaling(model, f"in the way {kind!r}")


def _llama3(factors: np.ndarray[Any, Any], model: str, found: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling, of which the file has the result and not the parameters.

    Each frequency is divided by its factor: the fastest by 1, the slowest by the whole one.
    """
    factor = float(factors.max())
    slowest, fastest = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    exponents = np.arange(len(factors)) / len(factors)
    waves = 2 * math.pi * found.get("rope_theta", 10_000.0) ** exponents
    turns = _LLAMA3["original_max_position_embeddings"] / waves
    share = np.clip((turns - slowest) / (fastest - slowest), 0.0, 1.0)
    if not np.allclose(1 / ((1 - share) / factor + share), factors, rtol=1e-3):
        raise _unknown_scaling(model, f"by factors of its own, up to {factor:g}")
    return {**_LLAMA3, "rope_type": "llama3", "factor": round(factor, 4)}


def _values(path: Path, tensor: GgufTensor) -> np.ndarray[Any, Any]:
    """A small tensor of plain float32."""
    return np.fromfile(path, "<f4", math.prod(tensor.shape), offset=tensor.start)


def _unknown_scaling(model: str, how: str) -> ModelFormatUnsupported:
    return ModelFormatUnsupported(
        f"model {model!r} scales its rotary positions {how}, which is not read from GGUF files: "
        "take the repository with safetensors"
    )


def read_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the file describes, with its chat template."""
    # Not AutoTokenizer's way, which reads all of the file's metadata again and comes to the same.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def refuse_tensors_left_out(header: GgufHeader, loaded: Any, model: str) -> None:
    """Refuse a file with tensors that have no place in transformers' model of this architecture.

    Args:
        header: of the file.
        loaded: the model that was loaded from it.
        model: its name, for the message.
    """
    if header.architecture in GGUF_ARCHS:
        return  # transformers' newer way to load reports them itself
    make: Any = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    processor = make(config={})
    places = get_gguf_hf_weights_map(loaded, processor)
    left_out = [
        name
        for name in _own_weights(header.tensors)
        if name not in places and name.removesuffix(".weight") not in places  # experts have none
    ]
    if left_out:
        raise ModelInvalid(
            f"model {model!r} has {len(left_out)} tensors for which transformers' model of its "
            f"architecture has no place, such as {left_out[0]}: take the repository with "
            "safetensors"
        )


def _own_weights(tensors: Iterable[GgufTensor]) -> list[str]:
    """Tensors that are weights, and not a way to write down the configuration."""
    return [
        each.name for each in tensors if not each.name.startswith(("rope_freqs", "rope_factors"))
    ]
