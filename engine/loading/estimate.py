"""How much memory a model will take; a loaded one is counted by `engine.core.model_info`.

It counts what grows with the model: its weights and its KV cache. Python, libraries and activations
come on top and are about the same for every model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import HfApi, get_local_safetensors_metadata
from huggingface_hub.utils._safetensors import SafetensorsRepoMetadata

from engine.config import EngineConfig
from engine.loading.adapters.adapter import estimated_room
from engine.loading.description import describe_model
from engine.loading.errors import load_errors
from engine.loading.families.context import DEFAULT_CONTEXT, own_context_length
from engine.loading.families.family import in_head, in_tower
from engine.loading.model_files import read_config
from engine.loading.quantized.modules import takes
from engine.loading.quantized.published import Stored, fold, published_in
from engine.loading.snapshot import Snapshot, locate, read_json, weight_files, with_weights
from engine.platform.platforms import may_prepack
from engine.quantization.registry import quantization

_DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_SAFETENSORS_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_SAFETENSORS_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16"}
# A decoder layer, by the names of its tensors.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# The embedding of tokens, as most architectures call it.
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "tok_embeddings.weight")

# Layers of a hybrid that keep no keys and values, by transformers' names.
_WITHOUT_ATTENTION = {"linear_attention", "mamba", "conv", "recurrent", "moe", "mlp"}
_CONVOLUTIONS = ("conv1d.weight", "conv.weight")
# What the configurations call the two sides of the state of a head.
_HEAD_MATRICES = (
    ("linear_key_head_dim", "linear_value_head_dim"),
    ("linear_head_dim", "linear_head_dim"),
    ("mamba_d_head", "mamba_d_state"),
    ("mamba_headdim", "mamba_d_state"),
    ("mamba_head_dim", "ssm_state_size"),
    ("head_dim", "state_size"),
)

Tensors = dict[str, Stored]


def estimate_bytes(config: EngineConfig) -> int:
    """What an engine will take, before anything but small files is downloaded. Blocking.

    Raises:
        TaskError: as `engine.loading.snapshot` does.
    """
    estimate = estimate_memory(config)
    return estimate.weights + estimate.kv_cache + estimate.states + estimate.adapters


@dataclass(frozen=True)
class MemoryEstimate:
    """What a model that is not loaded will take, in bytes.

    An estimate: which tensors are quantized is read from their names.

    Attributes:
        weights: of the whole model.
        decode_weights: the part that decoding a token reads: without the vision tower and its
            projector, and without an embedding of tokens that is not the head as well.
        kv_per_token: of the KV cache.
        context_length: of the configuration or the model, in tokens.
        kv_cache: the size that the configuration allows, or less if the model can use less.
        layers: of the weights, those of each decoder layer.
        head: of the weights, the language model head's if it is a tensor of its own.
        kv_heads: key/value heads of a layer; 0 where the configuration does not say.
        states: of all states that recurrent layers have room for.
        adapters: what adapters may take, in float32, at once.
    """

    weights: int
    decode_weights: int
    kv_per_token: int
    context_length: int
    kv_cache: int
    layers: tuple[int, ...] = ()
    head: int = 0
    kv_heads: int = 0
    states: int = 0
    adapters: int = 0


def estimate_memory(config: EngineConfig, *, from_config: bool = False) -> MemoryEstimate:
    """What a model will take, from the headers of its files. Blocking.

    Args:
        config: which model, and how it is to be loaded.
        from_config: count the parameters of the architecture that ``config.json`` describes, for a
            model whose weights are not here.

    Raises:
        TaskError: as `engine.loading.snapshot` does.
    """
    source = locate(config)
    with load_errors(config):
        local = source.config(config)
        if source.gguf is not None:  # it is a description of the model too
            description, from_config = read_config(local).to_dict(), True
        else:
            description = read_json(config, source.directory / "config.json")
        text = description.get("text_config") or description.get("llm_config") or description
        dtype = config.dtype if config.dtype != "auto" else _own_dtype(description, text)
        published = None
        if source.gguf is None:
            published = published_in(source.directory, config.name)
        kept = published.kept if published is not None else None
        tensors = _described(local) if from_config else _stored(config, source)
        if from_config:
            sizes = _sizes(tensors, dtype, config.quantize_bits if kept is None else kept.bits)
        elif kept is not None:
            sizes = {name: _as_stored(*each, dtype) for name, each in tensors.items()}
        else:
            tensors = fold(tensors, published, config.name)
            sizes = _sizes(tensors, dtype, config.quantize_bits)
        item = _DTYPE_BYTES.get(dtype or "", 4)
        state = _state_bytes(text, tensors, item)
        kv_per_token = _kv_bytes_per_token(text, item, _attention_layers(source, config, text))
        context = config.context_length or own_context_length(text) or DEFAULT_CONTEXT
        return MemoryEstimate(
            weights=int(
                sum(sizes.values()) + (_tied_head(sizes) if may_prepack(config.device) else 0)
            ),
            decode_weights=int(sum(sizes.values()) - _not_decoded(sizes)),
            kv_per_token=kv_per_token,
            context_length=context,
            kv_cache=_kv_bytes(config, context, kv_per_token),
            layers=_layer_bytes(sizes),
            head=int(sum(size for name, size in sizes.items() if in_head(name))),
            kv_heads=_kv_heads(text),
            states=config.num_states * state,
            adapters=estimated_room(config),
        )


def _sizes(tensors: Tensors, dtype: str | None, bits: int | None) -> dict[str, float]:
    return {
        name: math.prod(shape) * _bytes_of(name, len(shape), stored, dtype, bits)
        for name, (shape, stored) in tensors.items()
    }


def _as_stored(shape: tuple[int, ...], stored: str, dtype: str | None) -> float:
    """Bytes of a tensor that is quantized in the file; plain matrices take the model's dtype."""
    own = _SAFETENSORS_BYTES.get(stored, 1)
    is_plain = stored in ("F16", "BF16", "F32") and len(shape) > 1
    return math.prod(shape) * (_DTYPE_BYTES.get(dtype or "", own) if is_plain else own)


def _layer_bytes(sizes: dict[str, float]) -> tuple[int, ...]:
    layers: Counter[int] = Counter()
    for name, size in sizes.items():
        if (match := _LAYER.search(name)) and not in_tower(name):
            layers[int(match[1])] += int(size)
    return tuple(size for _, size in sorted(layers.items()))


def _not_decoded(sizes: dict[str, float]) -> float:
    """Bytes that decoding a token does not read, but for a row of the embedding."""
    has_head = any(map(in_head, sizes))
    return sum(
        size
        for name, size in sizes.items()
        if in_tower(name) or (has_head and name.endswith(_EMBEDDINGS))
    )


def _tied_head(sizes: dict[str, float]) -> float:
    """Bytes of a head that is tied to the embedding: a CPU packs a copy and keeps the embedding."""
    if any(map(in_head, sizes)):
        return 0
    return max((size for name, size in sizes.items() if name.endswith(_EMBEDDINGS)), default=0)


def _stored(config: EngineConfig, source: Snapshot) -> Tensors:
    return {
        name: Stored(tuple(tensor.shape), tensor.dtype)
        for file in _headers(config, source).files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _described(config: EngineConfig) -> Tensors:
    """The tensors that the model would have, shared ones once, by making it without memory."""
    # An estimate never runs code of a repository, even if the engine that loads it may.
    described = describe_model(config.replace(trust_remote_code=False))
    return {
        name: Stored(tensor.shape, _SAFETENSORS_NAMES.get(tensor.dtype, "F32"))
        for name, tensor in described.tensors.items()
    }


def _headers(config: EngineConfig, source: Snapshot) -> SafetensorsRepoMetadata:
    """The headers of all files of weights; from the hub where the files are not here yet."""
    names = weight_files(config, source)
    if all((source.directory / name).is_file() for name in names) or config.local_files_only:
        with_weights(config, source)  # raises if something is wrong with them
        return get_local_safetensors_metadata(source.directory)
    return HfApi().get_safetensors_metadata(config.repository, revision=source.commit)


def _bytes_of(name: str, dims: int, stored: str, dtype: str | None, bits: int | None) -> float:
    quantized = quantization(bits)
    if quantized is not None and takes(quantized, name, dims):
        return quantized.bytes_per_weight
    return _DTYPE_BYTES.get(dtype or "", _SAFETENSORS_BYTES.get(stored, 1))


def tensor_bytes(name: str, shape: Sequence[int], dtype: str, bits: int | None) -> float:
    """What a tensor of a model that is not loaded yet will take, by its name and shape."""
    return math.prod(shape) * _bytes_of(name, len(shape), "F32", dtype, bits)


def _own_dtype(*descriptions: dict[str, Any]) -> str | None:
    for description in descriptions:
        for key in ("dtype", "torch_dtype"):
            if isinstance(description.get(key), str):
                return str(description[key])
    return None


def _heads(text: dict[str, Any]) -> int:
    return int(text.get("num_attention_heads") or text.get("n_head") or 0)


def _kv_heads(text: dict[str, Any]) -> int:
    return int(text.get("num_key_value_heads") or _heads(text))


def _attention_layers(source: Snapshot, config: EngineConfig, text: dict[str, Any]) -> int:
    """How many layers keep keys and values."""
    # transformers' configuration says what each layer is, where the file names a period only.
    described = read_config(source.config(config).replace(trust_remote_code=False))
    types = getattr(described.get_text_config(), "layer_types", None)
    if types is None:
        return int(text.get("num_hidden_layers") or text.get("n_layer") or 0)
    return sum(each not in _WITHOUT_ATTENTION for each in types)


def _state_bytes(text: dict[str, Any], tensors: Tensors, item: int) -> int:
    """Bytes of the states of one sequence, by the weights of recurrent layers.

    A convolution keeps its last inputs. ``A_log`` has an element for each head of a delta net or a
    Mamba 2, whose state is a matrix, or for each element of the state of a Mamba 1.
    """
    of_head = next((text[a] * text[b] for a, b in _HEAD_MATRICES if text.get(a) and text.get(b)), 1)
    total = 0
    for name, (shape, _) in tensors.items():
        if in_tower(name):
            continue
        if name.endswith(_CONVOLUTIONS) and len(shape) == 3 and shape[1] == 1:
            total += shape[0] * (shape[2] - 1) * item
        elif name.endswith("A_log"):
            heads = max(shape) == math.prod(shape)
            total += math.prod(shape) * (of_head if heads else 1) * 4
    return int(total)


def _kv_bytes_per_token(text: dict[str, Any], item: int, num_layers: int) -> int:
    heads = _heads(text) or 1
    hidden = text.get("hidden_size") or text.get("n_embd") or 0
    return int(
        2 * num_layers * (_kv_heads(text) or 1) * (text.get("head_dim") or hidden // heads) * item
    )


def _kv_bytes(config: EngineConfig, context: int, per_token: int) -> int:
    """The KV cache: what the operator allows, or less where the model can use less."""
    if config.kv_cache_tokens is not None:
        return config.kv_cache_tokens * per_token
    allowed = config.max_kv_cache_bytes or 0
    return min(allowed, config.max_sequences * context * per_token or allowed)
