"""From a layer to a graph of torch's operations, with products and attention left out.

`torch.export` runs the layer's own code on tensors without content. Its weights are inputs of the
graph, so that one graph serves all layers of a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import AttentionInterface

from engine.execution.attention.interface import UNSUPPORTED
from engine.execution.modules.compiled_layers.calls import (
    CallForm,
    UnknownArgumentError,
    tensors_in,
)
from engine.execution.modules.compiled_layers.kinds import opaque, tensors_of, width_of
from engine.execution.modules.compiled_layers.operations import LayerParts
from engine.execution.modules.prepack import PackedLinear

TRACED = "paged_per_sequence, traced"
"""The name under which transformers knows attention while a layer is traced."""
_MOST_ROWS = 1 << 20  # more than any forward has


@dataclass(frozen=True)
class LayerCall:
    """What a layer was given in a forward of so many rows, and what it returned."""

    args: Sequence[Any]
    kwargs: dict[str, Any]
    inputs: list[torch.Tensor]
    output: Any
    rows: int


@dataclass
class _Trace:
    """What of a layer was met while it was traced, in order."""

    place: torch.Tensor
    products: list[nn.Module] = field(default_factory=list)
    outputs: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = field(default_factory=dict)
    attentions: list[Any] = field(default_factory=list)

    def linear(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """The output of a linear layer, which may be a part of a product for several."""
        if not isinstance(layer, PackedLinear):
            return self._product(layer, x, width_of(layer))
        product = layer.product
        found = self.outputs.get(id(product))
        if found is None or found[0] is not x:
            whole = self._product(layer, x, sum(product.sizes))
            found = x, list(whole.split_with_sizes(product.sizes, dim=-1))
            self.outputs[id(product)] = found
        return found[1][layer.index]

    def _product(self, layer: nn.Module, x: torch.Tensor, width: int) -> torch.Tensor:
        index = len(self.products)
        self.products.append(layer)
        output: torch.Tensor = torch.ops.gpt_task_serve.product(x, self.place, index, width)
        return output


_trace: list[_Trace] = []


def _traced_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    trace = _trace[-1]
    if any(kwargs.get(name) is not None for name in UNSUPPORTED):
        raise UnknownArgumentError("attention with more than queries, keys and values")
    index = len(trace.attentions)
    trace.attentions.append(module)
    arguments = (trace.place, index, scaling, sliding_window, softcap, s_aux)
    return torch.ops.gpt_task_serve.attention(query, key, value, *arguments), None


AttentionInterface.register(TRACED, _traced_attention)


class _Flat(nn.Module):
    """A layer whose inputs are all tensors: those of its call, its weights and its place."""

    def __init__(
        self, layer: nn.Module, form: CallForm, num_inputs: int, seen: Callable[[_Trace], None]
    ) -> None:
        super().__init__()
        # Not submodules: their weights are inputs.
        self._parts = (layer,)
        self._form = form
        self._num_inputs = num_inputs
        self._names = list(tensors_of(layer))
        self._seen = seen

    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        (layer,) = self._parts
        args, kwargs = self._form.arguments(tensors[: self._num_inputs])
        weights = dict(zip(self._names, tensors[self._num_inputs : -1], strict=True))
        trace = _Trace(tensors[-1])
        _trace.append(trace)
        try:
            with _traced_products(layer, trace):
                output = functional_call(layer, weights, tuple(args), kwargs)
        finally:
            _trace.pop()
        self._seen(trace)
        return tensors_in(output)


@contextmanager
def _traced_products(layer: nn.Module, trace: _Trace) -> Iterator[None]:
    linears: list[Any] = [each for each in layer.modules() if opaque(each)]
    with ExitStack() as undo:
        for linear in linears:
            linear.forward = partial(trace.linear, linear)
            undo.callback(delattr, linear, "forward")
        yield


@dataclass(frozen=True)
class TracedLayer:
    """A graph, and what its operations stand for in the layer that was traced.

    Attributes:
        program: its inputs are the tensors of a call, the layer's weights and its place.
        products: names of the linear layers whose products it wants, one of each product.
        attentions: names of the modules whose attention it wants.
    """

    program: torch.export.ExportedProgram
    products: Sequence[str]
    attentions: Sequence[str]

    def parts_of(self, layer: nn.Module) -> LayerParts:
        """The same parts of a layer of the same kind."""
        linears = [layer.get_submodule(name) for name in self.products]
        return LayerParts(
            [each.product.whole if isinstance(each, PackedLinear) else each for each in linears],
            [layer.get_submodule(name) for name in self.attentions],
        )


def traced(layer: nn.Module, form: CallForm, few: LayerCall, many: LayerCall) -> TracedLayer:
    """Trace a layer whose attention is `TRACED` now.

    Args:
        layer: of the decoder.
        form: of its calls.
        few: one call of it.
        many: another one, with more rows.

    Raises:
        Exception: of many kinds, from `torch.export`; the layer cannot be compiled.
    """
    rows = torch.export.Dim("rows", min=2, max=_MOST_ROWS)
    dynamic = [
        _dynamic(*pair, rows, few, many) for pair in zip(few.inputs, many.inputs, strict=True)
    ]
    weights = list(tensors_of(layer).values())
    place = torch.tensor(0)
    traces: list[_Trace] = []
    flat = _Flat(layer, form, len(few.inputs), traces.append)
    inputs = [each.contiguous().clone() for each in many.inputs]
    shapes = (*dynamic, *[None] * (len(weights) + 1))
    with torch.no_grad():
        program = torch.export.export(
            flat, (*inputs, *weights, place), dynamic_shapes=(shapes,), strict=False
        )
    trace = traces[-1]
    names = {id(module): name for name, module in layer.named_modules()}
    return TracedLayer(
        program,
        [names[id(module)] for module in trace.products],
        [names[id(module)] for module in trace.attentions],
    )


def _dynamic(
    small: torch.Tensor, large: torch.Tensor, rows: Any, few: LayerCall, many: LayerCall
) -> dict[int, Any] | None:
    """Which dimension of an input is the rows of a forward.

    Raises:
        UnknownArgumentError: another one changes with them too.
    """
    found = {}
    for dim, sizes in enumerate(zip(small.shape, large.shape, strict=True)):
        if sizes == (few.rows, many.rows):
            found[dim] = rows
        elif sizes[0] != sizes[1]:
            raise UnknownArgumentError(
                f"an input of the shape {list(large.shape)} at {many.rows} rows"
            )
    return found or None
