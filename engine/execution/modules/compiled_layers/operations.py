"""What compiled layers leave to Python: products and attention, as operations of torch.

A layer's code is compiled once for all layers of its kind. So these operations are told which
layer it is by a tensor, ``place``, and within the layer by a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch

from engine.execution.attention.interface import packed_attention

Product = Callable[[torch.Tensor], torch.Tensor]
"""From [..., in] to [..., out]."""


@dataclass(frozen=True)
class LayerParts:
    """What a layer's operations stand for, in the order of the layer's forward."""

    products: Sequence[Product]
    attentions: Sequence[Any]


_places = WeakValueDictionary[int, LayerParts]()
_numbers = count()


def place_of(parts: LayerParts) -> torch.Tensor:
    """The tensor by which operations find the parts of a layer, as long as the parts are kept."""
    number = next(_numbers)
    _places[number] = parts
    return torch.tensor(number)


def _product(x: torch.Tensor, place: torch.Tensor, index: int, width: int) -> torch.Tensor:
    return _places[int(place)].products[index](x)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    place: torch.Tensor,
    index: int,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    module = _places[int(place)].attentions[index]
    return packed_attention(
        module, query, key, value, None, scaling, sliding_window, softcap, sinks
    )[0]


def _product_shape(x: torch.Tensor, place: torch.Tensor, index: int, width: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], width)


def _attention_shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> torch.Tensor:
    batch, heads, rows, _dim = query.shape
    return query.new_empty(batch, rows, heads, value.shape[3])


# Not `torch.library.custom_op`, which takes several times as long to be called.
_library = torch.library.Library("gpt_task_serve", "DEF")
_library.define("product(Tensor x, Tensor place, int index, int width) -> Tensor")
_library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor place, int index, float? scaling, "
    "int? sliding_window, float? softcap, Tensor? sinks) -> Tensor"
)
for _name, _function, _shape in (
    ("product", _product, _product_shape),
    ("attention", _attention, _attention_shape),
):
    _library.impl(_name, _function, "CPU")
    torch.library.register_fake(f"gpt_task_serve::{_name}", _shape, lib=_library)
