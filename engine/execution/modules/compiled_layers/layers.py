"""Decoder layers whose norms, rotary positions, activations and sums are compiled as one.

On a CPU, calling such small operations one by one takes longer than computing them. A layer
is traced once for each kind of layer in the model, for any number of rows. Only forwards of packed
batches use the machine code: the model's own forward, which `generate` and the forward check run,
stays as it is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.execution.attention.interface import packed_forward_runs
from engine.execution.modules.compiled_layers.calls import CallForm, filled, pattern_of, tensors_in
from engine.execution.modules.compiled_layers.kinds import kind_of, tensors_of
from engine.execution.modules.compiled_layers.operations import place_of
from engine.execution.modules.compiled_layers.packages import Run, compiled, compiler_version
from engine.execution.modules.compiled_layers.tracing import LayerCall, TracedLayer, traced
from engine.execution.modules.experts import mixtures

logger = logging.getLogger(__name__)

_FEW, _MANY = 12, 24  # rows of the forwards in which layers are seen
_FEWEST_ROWS = 2
"""Of a compiled forward. A single row, which is no batch size, takes the layer's own code."""
_MOST_KINDS = 4
"""Kinds of layers that are compiled; a model with more is loaded before they all were."""

Forward = Callable[..., Any]


class CompiledLayers:
    """The layers of a model that are compiled."""

    def __init__(self) -> None:
        self.num_layers = 0
        self._undo: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return self.num_layers > 0

    def card(self) -> dict[str, Any] | None:
        """How many layers are compiled and by what; None if none is."""
        return {"layers": self.num_layers, "compiler": compiler_version()} if self else None

    def put(self, layer: nn.Module, forward: Forward) -> None:
        """Let packed forwards call this for a layer."""
        own = layer.forward
        layer.forward = partial(_either, own, forward)
        self._undo.append(partial(setattr, layer, "forward", own))
        self.num_layers += 1

    def undo(self) -> None:
        """Give all layers their own code back."""
        for undo in self._undo:
            undo()
        self._undo.clear()
        self.num_layers = 0


def _either(own: Forward, compiled: Forward, *args: Any, **kwargs: Any) -> Any:
    return compiled(*args, **kwargs) if packed_forward_runs() else own(*args, **kwargs)


def compile_layers(
    model: Any,
    run: Callable[[int], object],
    tracing: Callable[[], Any],
    directory: Path | None,
) -> CompiledLayers:
    """Compile what can be compiled of the layers of a decoder, in place.

    Args:
        model: whose linear layers are packed (`engine.execution.modules.prepack`).
        run: runs a packed forward of so many rows.
        tracing: a context in which the model's attention is `tracing.TRACED`.
        directory: where machine code is kept; None keeps none.

    Returns:
        Which layers are compiled: none where there is no compiler.
    """
    done = CompiledLayers()
    if compiler_version() is None:
        logger.info("layers are not compiled: there is no C++ compiler")
        return done
    layers = [layer for layer in _layers(model) if _is_plain(layer)]
    few, many = (_calls(layers, run, rows) for rows in (_FEW, _MANY))
    kinds: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        if len(few.get(layer, ())) == 1 and len(many.get(layer, ())) == 1:
            kinds.setdefault(kind_of(layer), []).append(layer)
    for members in list(kinds.values())[:_MOST_KINDS]:
        first = members[0]
        (small,), (large,) = few[first], many[first]
        try:
            form = CallForm.of(large.args, large.kwargs)
            # torch warns of parts of itself.
            with warnings.catch_warnings(action="ignore"):
                with tracing():
                    trace = traced(first, form, small, large)
                code = compiled(trace.program, directory)
        except Exception as error:  # noqa: BLE001 - of many kinds; the layer keeps its own code
            logger.warning("a kind of layer is not compiled: %s", error)
            continue
        for layer in members:
            done.put(layer, _CompiledLayer(layer, trace, code, form, large))
    return done


class _CompiledLayer:
    """The forward of one layer."""

    def __init__(
        self, layer: nn.Module, trace: TracedLayer, code: Run, form: CallForm, call: LayerCall
    ) -> None:
        self._own = layer.forward
        self._code = code
        self._tensors_of_call = form.tensors
        self._output = pattern_of(call.output)
        self._parts = trace.parts_of(layer)
        self._always = [*tensors_of(layer).values(), place_of(self._parts)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = [each.contiguous() for each in self._tensors_of_call(args, kwargs)]
        if inputs[0].shape[1] < _FEWEST_ROWS:
            return self._own(*args, **kwargs)
        return filled(self._output, self._code(inputs + self._always))


def _layers(model: Any) -> Iterator[nn.Module]:
    """The members of the lists of modules in a decoder."""
    for child in model.get_decoder().children():
        if isinstance(child, nn.ModuleList):
            yield from child


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer has nothing that chooses by the rows of a forward, as experts do."""
    return not any(True for _ in mixtures(layer))


@contextmanager
def _watched(layers: Sequence[nn.Module], rows: int) -> Iterator[dict[nn.Module, list[LayerCall]]]:
    seen: dict[nn.Module, list[LayerCall]] = {}

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = LayerCall(args, kwargs, tensors_in((*args, *kwargs.values())), output, rows)
        seen.setdefault(layer, []).append(call)

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _calls(
    layers: Sequence[nn.Module], run: Callable[[int], object], rows: int
) -> dict[nn.Module, list[LayerCall]]:
    """How layers are called in a forward."""
    with _watched(layers, rows) as seen:
        run(rows)
    return seen
