"""Prepacked weights on CPU: oneDNN's own layout, made once at load instead of at every call.

A linear layer with packed weights is 1.1 to 2.3 times as fast in bfloat16 and 1.2 to 3.5 times in
float32 at the row counts of decoding, and a row's bits agree at all row counts from 2 up, where the
plain layer's agree at some only (`engine.probe` measures which). The packed copy replaces the
weight; a weight that something else uses too (a head tied to the embedding) is kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# What oneDNN's inner product takes on CPU. float16 needs instructions that few CPUs have.
_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """``linear(x, weight, bias)`` with the weight in oneDNN's layout.

    Args:
        weight: [out_features, in_features].
        bias: [out_features] or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features]."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, "none", [], ""
        )
        return output


def can_prepack(model: Any) -> bool:
    """Whether this build of torch and this CPU pack weights of the model's dtype."""
    return (
        model.device.type == "cpu"
        and model.dtype in _DTYPES
        and torch.backends.mkldnn.is_available()
        and (model.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class _Opaque(nn.Module):
    """A linear layer without a ``weight``, as `PackedLinear` is; for the trial of `prepack`."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self._call = linear.forward  # not a submodule: parameters must not be found through it
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._call(x)
        return output


@torch.inference_mode()
def prepack(model: Any, trial: Callable[[], object]) -> bool:
    """Replace the plain linear layers of the language model and its head, in place.

    Layers of other types (bitsandbytes' are subclasses of `nn.Linear`) are left alone.

    Args:
        model: a causal language model or one with a vision tower, which is left alone.
        trial: runs a forward. Modules that read a layer's ``weight`` fail in it, and nothing is
            replaced then.

    Returns:
        Whether the layers were replaced.
    """
    places = [
        (parent, name, child)
        for parent in [model, *model.get_decoder().modules()]
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, Conv1D)
    ]
    for parent, name, child in places:
        setattr(parent, name, _Opaque(child))
    try:
        trial()
    except AttributeError:
        for parent, name, child in places:
            setattr(parent, name, child)
        return False
    while places:  # one by one, so that each weight is freed when its packed copy is made
        parent, name, child = places.pop()
        # Conv1D is GPT-2's linear layer, stored transposed.
        weight = child.weight.t().contiguous() if type(child) is Conv1D else child.weight
        setattr(parent, name, PackedLinear(weight, child.bias))
    return True
