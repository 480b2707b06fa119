"""Which layers are of one kind: the same code computes them, with other weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.execution.modules.prepack import PackedLinear

_OF_MODULES = frozenset(vars(nn.Module()))
_OF_A_LAYER = ("layer_idx", "layer_id")  # its number, by which nothing but its cache is chosen


def opaque(module: nn.Module) -> bool:
    """Whether a module is called from compiled code instead of being compiled."""
    return isinstance(module, PackedLinear | nn.Linear | Conv1D)


def width_of(linear: Any) -> int:
    """The features that a linear layer gives."""
    return int(linear.nf if isinstance(linear, Conv1D) else linear.out_features)


def kind_of(layer: nn.Module) -> Hashable:
    """What layers have in common that the same code computes."""
    return _module(layer, {})


def tensors_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of what is compiled of a layer, by name."""
    return dict(_tensors(layer, ""))


def _tensors(module: nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module.named_children():
        if not opaque(child):
            yield from _tensors(child, f"{prefix}{name}.")


def _module(module: nn.Module, products: dict[int, int]) -> Hashable:
    if isinstance(module, PackedLinear):
        number = products.setdefault(id(module.product), len(products))
        return PackedLinear, number, module.index, *module.product.sizes
    if opaque(module):
        return type(module), width_of(module)
    plain = {
        name: _value(value)
        for name, value in vars(module).items()
        if name not in _OF_MODULES and name not in _OF_A_LAYER
    }
    tensors = [
        (name, None if each is None else (each.shape, each.dtype, each.stride()))
        for name, each in (*module._parameters.items(), *module._buffers.items())
    ]
    # children() names a module that has two names only once
    children = [(name, _module(child, products)) for name, child in module.named_children()]
    return type(module), tuple(sorted(plain.items())), tuple(tensors), tuple(children)


def _value(value: Any) -> Hashable:
    """A value that is equal where code that reads it does the same."""
    if isinstance(value, list | tuple):
        return tuple(map(_value, value))
    if isinstance(value, dict):
        return tuple((_value(key), _value(each)) for key, each in value.items())
    if isinstance(value, torch.Tensor) or not isinstance(value, Hashable):
        return id(value)
    return type(value), value
