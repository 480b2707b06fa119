"""A model that is described and not loaded: its tensors, its layers, what can be split of it.

transformers builds the modules that ``config.json`` describes on torch's meta device, where they
take no memory. This is done once for each model, here, for all uses of the description.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.pytorch_utils import Conv1D

from engine.config import EngineConfig
from engine.loading.model_files import read_config
from schema.errors import ModelInvalid


class TensorInfo(NamedTuple):
    """A tensor's shape and the dtype that its module gives it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class LinearInfo(NamedTuple):
    """A linear layer of the decoder: its name there, and its sizes."""

    name: str
    in_features: int
    out_features: int


class DecoderLayers(NamedTuple):
    """The list of decoder layers: its name in the model, and how many there are."""

    prefix: str
    num_layers: int


class ModelDescription:
    """What `describe_model` found. Each fact is computed when it is first asked for."""

    def __init__(self, model: Any, name: str) -> None:
        """Keep a model on the meta device.

        Args:
            model: as transformers makes it.
            name: the model's, for messages.
        """
        self._model = model
        self._name = name

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of a checkpoint, by their names in the model; tied ones once."""
        names: dict[int, str] = {}
        return {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._model.state_dict(keep_vars=True).items()
            if names.setdefault(id(tensor), name) == name
        }

    @cached_property
    def layers(self) -> DecoderLayers:
        """The decoder layers.

        Raises:
            ModelInvalid: there is no list of them.
        """
        prefix, layers = decoder_layers(self._model, self._name)
        return DecoderLayers(prefix, len(layers))

    @cached_property
    def beside_layers(self) -> tuple[str, ...]:
        """Modules, parameters and buffers that together are all of the model but its layers."""
        prefix = self.layers.prefix
        above = {"", *_parents(prefix)}
        paths: list[str] = []
        for name, module in self._model.named_modules():
            if name in above:
                own = (*module._parameters, *module._buffers)
                children = (child for child, _ in module.named_children())
                paths += (f"{name}.{part}".lstrip(".") for part in (*own, *children))
        return tuple(path for path in paths if path != prefix and path not in above)

    @cached_property
    def decoder(self) -> str:
        """The name of the language model's decoder in the model."""
        decoder = self._model.get_decoder()
        modules = self._model.named_modules()
        return str(next(name for name, module in modules if module is decoder))

    @cached_property
    def tensor_parallel_plan(self) -> Mapping[str, str]:
        """transformers' own plan: a style for each kind of module; empty where it has none."""
        return dict(self._model.tp_plan or {})

    @cached_property
    def decoder_linears(self) -> tuple[LinearInfo, ...]:
        """The linear layers of the decoder."""
        return tuple(
            LinearInfo(name, module.in_features, module.out_features)
            for name, module in self._model.get_decoder().named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        )

    @cached_property
    def linear_sizes(self) -> Mapping[str, tuple[int, int]]:
        """Features in and out of the decoder's linear layers, by their names in the model."""
        decoder = self._model.get_decoder()
        own = {id(module) for module in decoder.modules()}
        sizes: dict[str, tuple[int, int]] = {}
        for name, module in self._model.named_modules():
            if id(module) in own and isinstance(module, nn.Linear):
                sizes[name] = (module.in_features, module.out_features)
            elif id(module) in own and isinstance(module, Conv1D):
                sizes[name] = (module.nx, module.nf)
        return sizes


def describe_model(
    config: EngineConfig, hf_config: PreTrainedConfig | None = None
) -> ModelDescription:
    """Build the modules of a model without its weights. Its configuration has to be here.

    Args:
        config: of the engine; ``model`` is a directory.
        hf_config: the model's configuration, where it has been read already.
    """
    hf_config = read_config(config) if hf_config is None else hf_config
    is_vision = type(hf_config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto_class: Any = AutoModelForImageTextToText if is_vision else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(hf_config, trust_remote_code=config.trust_remote_code)
    return ModelDescription(model, config.name)


def decoder_layers(model: Any, name: str) -> tuple[str, nn.ModuleList]:
    """The list of a model's decoder layers, and its name within the model.

    Args:
        model: loaded, or on the meta device.
        name: the model's, for the message.

    Raises:
        ModelInvalid: none is found.
    """
    decoder = model.get_decoder()
    num_layers = model.config.get_text_config().num_hidden_layers
    for child in decoder.children():
        if isinstance(child, nn.ModuleList) and len(child) == num_layers:
            return next(path for path, module in model.named_modules() if module is child), child
    raise ModelInvalid(f"model {name!r} has no list of decoder layers: it runs on one device only")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
