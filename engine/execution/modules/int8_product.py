"""INT8 layers of bitsandbytes on a CPU, as products of the kernel `int8_kernel`: same bits, faster.

bitsandbytes computes such a layer in eight or more calls of torch. What replaces it quantizes,
multiplies and scales in one call. Where the CPU has not the instructions, bitsandbytes' own layers
stay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.execution.modules import int8_kernel
from engine.execution.modules.products import PackedProduct
from engine.platform.platforms import platform_of


class Int8Product(PackedProduct):
    """Rows times the weights of layers that share their input."""

    dtype = torch.int8
    computed_by = "vnni"

    def __init__(self, layers: Sequence[Any]) -> None:
        """Copy the weights of ``layers``, which `takes`: all have a bias, or none."""
        weight = torch.cat([_weight(layer) for layer in layers])
        sums = weight.sum(1, dtype=torch.int32) * 128
        scales = torch.cat([_scales(layer) for layer in layers])
        self._out_features = len(weight)
        biases = [layer.bias.detach().float() for layer in layers if layer.bias is not None]
        # What is added where nothing is to be: 0.0 would turn -0.0 into 0.0.
        bias = torch.cat(biases) if biases else torch.full_like(scales, -0.0)
        self._weight = int8_kernel.packed(weight)
        self._sums, self._scales, self._bias = map(int8_kernel.in_panels, (sums, scales, bias))
        self.stored = [self._weight, self._sums, self._scales, self._bias]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features], in the dtype of x."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        columns = (self._sums, self._scales, self._bias)
        output = int8_kernel.product(rows, self._weight, *columns, self._out_features)
        return output.view(*x.shape[:-1], self._out_features)


def is_int8(layer: Any) -> bool:
    """Whether a layer is one of bitsandbytes', computed with threshold 0."""
    library: Any = sys.modules.get("bitsandbytes")  # there is no such layer where it is not loaded
    return (
        library is not None
        and type(layer) is library.nn.Linear8bitLt
        and not layer.state.has_fp16_weights
        and layer.state.threshold == 0.0
    )


def takes(layer: Any) -> bool:
    """Whether a layer can be replaced: it is INT8, and where it is there is a kernel for it."""
    return (
        is_int8(layer)
        and platform_of(layer.weight.device).shares_host_memory
        and layer.in_features <= int8_kernel.MOST_INPUTS
        and int8_kernel.has_kernel()
    )


def packed_if_int8(make: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Makes the product of what makes a layer of a weight and a bias; other layers stay."""

    def made(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        layer = make(weight, bias)
        return Int8Product([layer]) if takes(layer) else layer

    return made


def _weight(layer: Any) -> torch.Tensor:
    """int8 [out, in]. A forward moves weight and scales from the parameter to the state."""
    weight = layer.weight.CB if layer.state.CB is None else layer.state.CB
    return weight.detach()  # type: ignore[no-any-return]


def _scales(layer: Any) -> torch.Tensor:
    """float32 [out]: the largest absolute value of each row of the weight."""
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    return scales.detach().float().flatten()  # type: ignore[no-any-return]
