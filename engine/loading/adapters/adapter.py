"""A LoRA adapter in PEFT's format: found, checked without its weights, and read when it is used.

An adapter adds to linear layers of the language model: ``y + (x @ A.T @ B.T) * scale``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import parse_local_safetensors_file_metadata
from safetensors.torch import load

from engine.config import EngineConfig
from engine.loading.adapters.lora_config import AdapterUnsupportedError, LoraConfig
from engine.loading.snapshot import locate_files, read_json
from schema.errors import ModelCorrupt, ModelInvalid

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_MATRICES = (".lora_A.weight", ".lora_B.weight")
_FLOATS = ("F64", "F32", "F16", "BF16")
_FLOAT32_BYTES = 4
# What the tensors of other kinds of adapters are called, and what that means.
_OTHERS = {
    "lora_magnitude_vector": "it is a DoRA, which is not supported",
    "lora_embedding_": "it adapts an embedding, which is not supported",
    "modules_to_save": "it replaces whole modules (modules_to_save), which is not supported",
    "base_layer": "it brings weights of the model itself, as adapters of its head do, which is not "
    "supported",
    "bias": "it has biases, which are not supported",
}

RANK_MULTIPLE = 4
"""In memory, ranks are filled up with zeros to a multiple of this, for their kernel on CPUs."""

LinearSizes = Mapping[str, tuple[int, int]]
"""Features in and out of the linear layers of a language model, by their names in the model."""


class LoraLayer(NamedTuple):
    """What an adapter has for one linear layer."""

    rank: int
    in_features: int
    out_features: int
    scale: float


def filled_rank(rank: int) -> int:
    """The rank that a matrix has in memory."""
    return rank + -rank % RANK_MULTIPLE


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that the operator lists, and that fits its model once `refuse_misfit` has passed.

    Attributes:
        name: without the model's.
        label: the model's and its own, for messages: what tasks call it.
        source: as the operator wrote it.
        revision: the commit of a hub repository; None for a directory.
        directory: holds its files.
        layers: by the names of the linear layers in the model.
    """

    name: str
    label: str
    source: str
    revision: str | None
    directory: Path
    layers: Mapping[str, LoraLayer]

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, in float32."""
        sizes = (
            filled_rank(each.rank) * (each.in_features + each.out_features)
            for each in self.layers.values()
        )
        return _FLOAT32_BYTES * sum(sizes)

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(layer.rank for layer in self.layers.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its two files. Its answers depend on them and on the model."""
        return _digest(*self._contents())

    def _contents(self) -> tuple[bytes, bytes]:
        return (self.directory / CONFIG).read_bytes(), (self.directory / WEIGHTS).read_bytes()

    def read(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """A [rank, in] and B [out, rank] of each layer, float32 on the host.

        Raises:
            ModelCorrupt: the files are not those of which the digest was made.
        """
        try:
            config, weights = self._contents()
        except OSError as error:
            raise ModelCorrupt(
                f"adapter {self.label!r} cannot be read: {error.strerror}"
            ) from error
        if _digest(config, weights) != self.digest:
            raise ModelCorrupt(
                f"the files of adapter {self.label!r} have changed since the server started; start "
                "it again to serve the new ones"
            )
        tensors = load(weights)
        return {
            module: (
                tensors[f"{_PREFIX}{module}{_MATRICES[0]}"].to(torch.float32),
                tensors[f"{_PREFIX}{module}{_MATRICES[1]}"].to(torch.float32),
            )
            for module in self.layers
        }

    def refuse_misfit(self, linears: LinearSizes) -> None:
        """Refuse an adapter of another model.

        Raises:
            ModelInvalid: it adapts a layer that the model does not have, or has in another size.
        """
        for module, layer in self.layers.items():
            size = linears.get(module)
            if size is None:
                raise ModelInvalid(
                    f"adapter {self.label!r} does not fit its model: it adapts {module}, which is "
                    "no linear layer of the language model"
                )
            if size != (layer.in_features, layer.out_features):
                own = f"{layer.in_features} to {layer.out_features}"
                raise ModelInvalid(
                    f"adapter {self.label!r} does not fit its model: it was made for a {module} of "
                    f"{own} features, and that of the model has {size[0]} to {size[1]}"
                )


def _digest(*contents: bytes) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def locate_adapters(config: EngineConfig) -> dict[str, Adapter]:
    """The adapters of a model, by name. Blocking; downloads those of the hub.

    Raises:
        TaskError: one is missing, damaged, or not one that is computed here.
    """
    return {name: locate_adapter(config, name) for name in config.adapters}


def locate_adapter(config: EngineConfig, name: str) -> Adapter:
    """One of them. Raises as `locate_adapters` does."""
    listed = config.adapters[name]
    own = config.replace(
        model=listed.source,
        revision=listed.revision,
        model_id=f"{config.name}:{name}",
        from_hub=False,
        adapters={},
    )
    found = locate_files(own, CONFIG, WEIGHTS)
    try:
        lora = LoraConfig.parse(read_json(own, found.directory / CONFIG))
        layers = _layers(lora, found.directory / WEIGHTS, config.max_adapter_rank)
    except AdapterUnsupportedError as error:
        raise ModelInvalid(f"adapter {own.name!r} cannot be used: {error}") from error
    adapter = Adapter(name, own.name, listed.source, found.commit, found.directory, layers)
    if adapter.num_bytes > config.adapter_bytes:
        raise ModelInvalid(
            f"adapter {own.name!r} takes {adapter.num_bytes} bytes in float32, and adapter_bytes "
            f"is {config.adapter_bytes}: raise it"
        )
    return adapter


def adapter_room(config: EngineConfig, adapters: Mapping[str, Adapter]) -> int:
    """Bytes that the adapters of a model may take at once."""
    return min(config.adapter_bytes, sum(adapter.num_bytes for adapter in adapters.values()))


def estimated_room(config: EngineConfig) -> int:
    """The same before anything is downloaded: of directories from their headers."""
    if all(Path(listed.source).is_dir() for listed in config.adapters.values()):
        return adapter_room(config, locate_adapters(config))
    return config.adapter_bytes


def _layers(lora: LoraConfig, weights: Path, max_rank: int) -> dict[str, LoraLayer]:
    tensors: Mapping[str, Any] = parse_local_safetensors_file_metadata(weights).tensors
    for part, reason in _OTHERS.items():
        for key in tensors:
            if part in key:
                raise AdapterUnsupportedError(f"{reason} (tensor {key!r:.200})")
    modules: dict[str, None] = {}
    for key, tensor in tensors.items():
        _refuse_unknown(key, tensor)
        modules[key.removeprefix(_PREFIX)[: -len(_MATRICES[0])]] = None
    if not modules:
        raise AdapterUnsupportedError(f"{WEIGHTS} holds no tensors")
    return {module: _layer(lora, module, tensors, max_rank) for module in modules}


def _refuse_unknown(key: str, tensor: Any) -> None:
    if not key.startswith(_PREFIX) or not key.endswith(_MATRICES):
        raise AdapterUnsupportedError(
            f"its tensor {key!r:.200} is not part of a LoRA as PEFT saves it"
        )
    if tensor.dtype not in _FLOATS:
        raise AdapterUnsupportedError(
            f"its tensor {key!r:.200} is {tensor.dtype} and not of floats"
        )


def _layer(lora: LoraConfig, module: str, tensors: Mapping[str, Any], max_rank: int) -> LoraLayer:
    shapes = []
    for matrix in _MATRICES:
        tensor = tensors.get(f"{_PREFIX}{module}{matrix}")
        if tensor is None or len(tensor.shape) != 2:
            raise AdapterUnsupportedError(f"it has no matrix {module}{matrix}")
        shapes.append(tensor.shape)
    (rank, in_features), (out_features, rank_b) = shapes
    if not rank == rank_b == lora.rank_of(module):
        raise AdapterUnsupportedError(
            f"the matrices of {module} have the ranks {rank} and {rank_b}, and {CONFIG} says "
            f"{lora.rank_of(module)}"
        )
    if rank > max_rank:
        raise AdapterUnsupportedError(
            f"its rank is {rank} in {module}, and max_adapter_rank is {max_rank}: raise it"
        )
    return LoraLayer(rank, in_features, out_features, lora.scale_of(module))
