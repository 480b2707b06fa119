"""LoRA adapters in the batch: each row of a forward gets what its own task's adapter adds.

The model's own products run on all rows as ever, so that rows without an adapter have the bits that
they have without any. Behind a linear layer, the rows of an adapter go through its two matrices at
counts whose results agree (`products`), so that what it adds to a row is a function of the row. As
in PEFT, it is computed in float32 and rounded with the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from engine.execution.modules.prepack import PackedLinear
from engine.execution.modules.products import (
    PackedProduct,
    Product,
    agreeing_counts,
    padded,
    plain_product,
    probe_rows,
)
from engine.loading.adapters.adapter import Adapter, LoraLayer
from engine.platform.platforms import platform_of
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens

_ATTRIBUTE = "_loras"
_LINEARS = (nn.Linear, Conv1D, PackedLinear)


class Place(NamedTuple):
    """Where a linear layer computes, and its sizes, as a forward has shown them."""

    module: nn.Module
    device: torch.device
    in_features: int
    out_features: int


class _Rows(NamedTuple):
    """Some rows of the forward, all of which have one adapter; all of them if ``rows`` is None."""

    adapter: Adapter
    rows: Sequence[int] | None
    num_rows: int
    on: dict[torch.device, torch.Tensor]  # the rows as an index, on each device that needs it

    def placed(self, device: torch.device) -> torch.Tensor:
        """The rows as an index."""
        assert self.rows is not None
        if device not in self.on:
            self.on[device] = upload(self.rows, device)
        return self.on[device]


class _Layer(NamedTuple):
    """What an adapter adds behind one linear layer."""

    down: Product
    up: Product
    scale: float
    counts: tuple[int, ...]

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [n, out] of rows [n, in], all at once."""
        return self.up(self.down(rows.float())) * self.scale


class Loras:
    """The adapters that are loaded into a model. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._places: Mapping[str, Place] = {}
        self._counts: dict[tuple[object, ...], tuple[int, ...]] = {}
        self._loaded: dict[Adapter, dict[str, _Layer]] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._users: Counter[str] = Counter()
        self._rows: Sequence[_Rows] = ()

    # --- Setup -----------------------------------------------------------------------------------

    @torch.inference_mode()
    def set_up(self, places: Mapping[str, Place], adapters: Sequence[Adapter]) -> None:
        """Check that adapters fit, and measure their products.

        Args:
            places: of `linear_places`.
            adapters: that may be loaded.

        Raises:
            ModelInvalid: one does not fit.
            BatchInvarianceError: what one adds to a row depends on other rows.
        """
        self._places = places
        sizes = {name: (each.in_features, each.out_features) for name, each in places.items()}
        for adapter in adapters:
            adapter.refuse_misfit(sizes)
            for name, layer in adapter.layers.items():
                kind = self._kind(name, layer)
                if kind not in self._counts:
                    self._counts[kind] = self._measured(name, layer)

    def counts_of(self, adapter: Adapter) -> list[tuple[int, ...]]:
        """The numbers of rows that it computes at once, of each kind of its layers."""
        kinds = {self._kind(name, layer) for name, layer in adapter.layers.items()}
        return sorted({self._counts[kind] for kind in kinds})

    def _kind(self, name: str, layer: LoraLayer) -> tuple[object, ...]:
        return layer[:3], self._places[name].device

    def _measured(self, name: str, layer: LoraLayer) -> tuple[int, ...]:
        device = self._places[name].device
        draw = torch.Generator().manual_seed(0)
        down = torch.randn(layer.rank, layer.in_features, generator=draw)
        up = torch.randn(layer.out_features, layer.rank, generator=draw)
        probed = _layer(down, up, 1.0, (), device)
        return agreeing_counts(
            probed.of, probe_rows(layer.in_features, down.to(device)), "an adapter"
        )

    # --- Loading ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def load(self, adapter: Adapter) -> None:
        """Read an adapter's weights. Raises `ModelCorrupt`."""
        weights = adapter.read()
        self._loaded[adapter] = {
            name: _layer(
                *weights[name],
                layer.scale,
                self._counts[self._kind(name, layer)],
                self._places[name].device,
            )
            for name, layer in adapter.layers.items()
        }
        for name in adapter.layers:
            self._users[name] += 1
            if name not in self._hooks:
                hook = partial(self._added, name)
                self._hooks[name] = self._places[name].module.register_forward_hook(hook)

    def unload(self, adapter: Adapter) -> None:
        """Forget an adapter's weights."""
        del self._loaded[adapter]
        for name in adapter.layers:
            self._users[name] -= 1
            if not self._users[name]:
                self._hooks.pop(name).remove()

    # --- Forwards --------------------------------------------------------------------------------

    @contextmanager
    def of(self, scheduled: Sequence[ScheduledTokens], num_rows: int) -> Iterator[None]:
        """In the body, the rows are those of some tokens, and padding."""
        rows: dict[Adapter, list[int]] = {}
        row = 0
        for tokens in scheduled:
            adapter = tokens.request.adapter if tokens.request else None
            if adapter is not None:
                rows.setdefault(adapter, []).extend(range(row, row + tokens.num_tokens))
            row += tokens.num_tokens
        with self._set([_Rows(adapter, own, num_rows, {}) for adapter, own in rows.items()]):
            yield

    @contextmanager
    def alone(self, adapter: Adapter | None) -> Iterator[None]:
        """In the body, all rows of every forward have this adapter, if there is one."""
        with self._set([] if adapter is None else [_Rows(adapter, None, 0, {})]):
            yield

    @contextmanager
    def _set(self, rows: Sequence[_Rows]) -> Iterator[None]:
        self._rows = rows
        try:
            yield
        finally:
            self._rows = ()

    def _added(self, name: str, _: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """The output of a linear layer with what adapters add; a hook behind it."""
        for group in self._rows:
            layer = self._loaded[group.adapter].get(name)
            if layer is None:
                continue
            if group.rows is None:
                output = (output + layer.of(inputs[0])).to(output.dtype)
                continue
            x, flat = (each.reshape(-1, each.shape[-1]) for each in (inputs[0], output))
            if len(x) != group.num_rows:
                raise RuntimeError(
                    f"{name} computes {len(x)} rows in a forward of {group.num_rows}, so that it "
                    "is not known which of them have an adapter"
                )
            index = group.placed(x.device)
            added = padded(layer.of, x[index], layer.counts)
            flat[index] = (flat[index] + added).to(flat.dtype)
            output = flat.view(output.shape)
        return output


def _layer(
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    counts: tuple[int, ...],
    device: torch.device,
) -> _Layer:
    packs = platform_of(device).packs_weights(torch.float32)
    make = PackedProduct if packs else plain_product
    return _Layer(make(down.to(device), None), make(up.to(device), None), scale, counts)


def loras(model: Any) -> Loras:
    """Those of a model: always the same object."""
    found: Loras | None = getattr(model, _ATTRIBUTE, None)
    if found is None:
        found = Loras()
        setattr(model, _ATTRIBUTE, found)
    return found


def linear_places(model: Any, run: Any) -> dict[str, Place]:
    """The linear layers of the language model that a forward calls, by their names.

    Args:
        model: a causal language model, or one with a vision tower, which is left out.
        run: runs a forward.
    """
    decoder = model.get_decoder()
    own = {id(module) for module in decoder.modules()}
    places: dict[str, Place] = {}

    def seen(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(output, torch.Tensor):
            x = inputs[0]
            places[name] = Place(module, x.device, x.shape[-1], output.shape[-1])

    hooks = [
        module.register_forward_hook(partial(seen, name))
        for name, module in model.named_modules()
        if id(module) in own and isinstance(module, _LINEARS)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return places
