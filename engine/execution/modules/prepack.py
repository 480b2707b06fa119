"""Prepacked weights on CPU: the layout of a kernel, made once at load instead of at every call.

A linear layer with packed weights is 1.1 to 2.3 times as fast in bfloat16 and 1.2 to 3.5 times in
float32 at the batch sizes of decoding, and a row's bits agree at all sizes from 2 up, where the
plain layer's agree at some only (`batch_invariance` measures which); with our kernel for bfloat16
(`bfloat16_kernel`), which takes oneDNN's place where it can, at all sizes. Layers called with the
same input, one after the other, become one product: queries, keys and values; gate and up. The
packed copy replaces the weight; a weight with another use (a head tied to the embedding) is kept
beside it. INT8 layers of bitsandbytes have a kernel and a layout of our own (`int8_product`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.execution.modules import int8_product
from engine.execution.modules.int8_product import Int8Product
from engine.execution.modules.products import MakePacked, PackedProduct, packed_product


class Product:
    """``x @ weight.T + bias`` for layers that share their input, stacked into one weight."""

    def __init__(self, layers: Sequence[Any], make: MakePacked) -> None:
        if int8_product.takes(layers[0]):
            self.sizes = [layer.out_features for layer in layers]
            self.packed: PackedProduct = Int8Product(layers)
        else:
            weights = [_weight(layer) for layer in layers]
            biases = [layer.bias for layer in layers if layer.bias is not None]
            self.sizes = [len(weight) for weight in weights]
            self.packed = make(_stacked(weights), _stacked(biases) if biases else None)
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = []

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs of all layers, beside each other."""
        return self.packed(x)

    def __call__(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """The output of one of the layers; the first call computes all of them."""
        if x is not self._input or self._outputs[index] is None:
            output = self.whole(x)
            self._input, self._outputs = x, list(output.split_with_sizes(self.sizes, dim=-1))
        mine = self._outputs[index]
        assert mine is not None
        self._outputs[index] = None
        if not any(output is not None for output in self._outputs):
            self._input = None  # every layer has its output
        return mine


class PackedLinear(nn.Module):
    """One linear layer of a product."""

    def __init__(self, product: Product, index: int, in_features: int) -> None:
        super().__init__()
        self.product = product
        self.index = index
        self.in_features = in_features
        self.out_features = product.sizes[index]

    def stored(self) -> list[torch.Tensor]:
        """The tensors of the whole product, so the same ones for all of its layers."""
        return self.product.packed.stored

    def packed(self) -> list[PackedProduct]:
        """The whole product."""
        return [self.product.packed]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return self.product(x, self.index)


def _weight(layer: Any) -> torch.Tensor:
    """[out_features, in_features]; Conv1D, GPT-2's linear layer, is stored transposed."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.t().contiguous() if type(layer) is Conv1D else weight


def _in_features(layer: Any) -> int:
    return int(layer.weight.shape[0] if type(layer) is Conv1D else layer.weight.shape[1])


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])


class _OnTrial(nn.Module):
    """A linear layer without a ``weight``, as `PackedLinear` is, that notes its calls."""

    def __init__(self, place: _Place, calls: list[tuple[_Place, torch.Tensor]]) -> None:
        super().__init__()
        self._place = place
        self._calls = calls
        self._call = place.layer.forward  # not a submodule: parameters must not be found through it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._calls.append((self._place, x))
        output: torch.Tensor = self._call(x)
        return output


class _Place:
    """Where a linear layer stands in the model."""

    def __init__(self, parent: nn.Module, name: str, layer: Any) -> None:
        self._parent = parent
        self._name = name
        self.layer: Any = layer

    def put(self, module: nn.Module) -> None:
        setattr(self._parent, self._name, module)

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers that become one product have in common."""
        return type(self.layer), self.layer.bias is None


@torch.inference_mode()
def prepack(
    model: Any,
    trial: Callable[[], object],
    *,
    plain: bool = True,
    make: MakePacked = packed_product,
) -> bool:
    """Replace the linear layers of the language model and its head, in place.

    These are plain ones, and those that `int8_product` takes. Layers of other types (bitsandbytes'
    are subclasses of `nn.Linear`) are left alone.

    Args:
        model: a causal language model or one with a vision tower, which is left alone.
        plain: whether weights of the model's dtype can be packed; if not, plain layers stay.
        trial: runs a forward. Modules that read a layer's ``weight`` fail in it, and nothing is
            replaced then; it also shows which layers are called with the same input.
        make: makes a product of the weight and the bias of plain layers.

    Returns:
        Whether the layers were replaced.
    """
    places = [
        _Place(parent, name, child)
        for parent in [model, *model.get_decoder().modules()]
        for name, child in parent.named_children()
        if (plain and type(child) in (nn.Linear, Conv1D)) or int8_product.takes(child)
    ]
    if not plain and not places:
        return False
    calls: list[tuple[_Place, torch.Tensor]] = []
    for place in places:
        place.put(_OnTrial(place, calls))
    try:
        trial()
    except AttributeError:
        for place in places:
            place.put(place.layer)
        return False
    groups = _groups(calls)
    called = {place for group in groups for place in group}
    groups += [[place] for place in places if place not in called]
    calls.clear()
    del places, called
    while groups:  # one by one, so that weights are freed when their packed copy is made
        group = groups.pop()
        product = Product([place.layer for place in group], make)
        for index, place in enumerate(group):
            place.put(PackedLinear(product, index, _in_features(place.layer)))
            place.layer = None
    return True


def _groups(calls: Sequence[tuple[_Place, torch.Tensor]]) -> list[list[_Place]]:
    """Layers that were called one after the other with the very same tensor, and with it alone."""
    counts: dict[_Place, int] = {}
    for place, _ in calls:
        counts[place] = counts.get(place, 0) + 1
    runs = groupby(calls, key=lambda call: (id(call[1]), call[0].kind, counts[call[0]] == 1))
    groups: list[list[_Place]] = []
    for (_, _, once), run in runs:
        members = [place for place, _ in run]
        groups += [members] if once else [[place] for place in dict.fromkeys(members)]
    return [list(group) for group in dict.fromkeys(tuple(group) for group in groups)]


def packed_bytes(model: Any) -> int:
    """Bytes of the packed weights of a model."""
    found = {
        id(tensor): tensor.numel() * tensor.element_size()
        for module in model.modules()
        if isinstance(module, PackedLinear)
        for tensor in module.stored()
    }
    return sum(found.values())
