"""LoRA adapters in the batch: each row of a forward gets what its own task's adapter adds.

The model's own products run on all rows as ever, so that rows without an adapter have the bits that
they have without any. Behind a linear layer, what an adapter adds to a row is a function of the
row: on a CPU rows are computed one by one (`lora_kernel`), elsewhere at counts whose results agree
(`products`). As in PEFT, it is computed in float32 and rounded with the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from engine.execution.modules import lora_kernel
from engine.execution.modules.lora_kernel import LoraMatrices
from engine.execution.modules.prepack import PackedLinear
from engine.execution.modules.products import agreeing_counts, padded, probe_rows
from engine.loading.adapters.adapter import Adapter, LoraLayer, filled_rank
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


class _Kind(NamedTuple):
    """What the number of rows of a product may depend on."""

    rank: int
    in_features: int
    out_features: int
    device: torch.device


class _Rows(NamedTuple):
    """Rows of the forward that have the same adapter."""

    adapter: Adapter
    rows: Sequence[int]


class _Chosen(NamedTuple):
    """Rows whose adapters have something for a layer, and which of these adapters each has."""

    rows: torch.Tensor
    members: np.ndarray[Any, Any]


class _Forward:
    """The adapters of the forward that runs.

    Of one that runs ``alone``, on any number of rows, all rows have the one adapter.
    """

    def __init__(self, groups: Sequence[_Rows], num_rows: int, *, alone: bool = False) -> None:
        self.groups = groups
        self.num_rows = num_rows
        self.alone = alone
        self._chosen: dict[tuple[torch.device, tuple[int, ...]], _Chosen] = {}

    def chosen(self, device: torch.device, groups: tuple[int, ...]) -> _Chosen:
        """The rows of some groups, made once for each device that needs them."""
        found = self._chosen.get((device, groups))
        if found is None:
            rows = [self.groups[group].rows for group in groups]
            members = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
            chosen = upload([row for own in rows for row in own], device)
            found = self._chosen[device, groups] = _Chosen(chosen, members)
        return found


_NO_ADAPTERS = _Forward((), 0)


class Loras:
    """The adapters that are loaded into a model. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._places: Mapping[str, Place] = {}
        self._counts: dict[_Kind, tuple[int, ...]] = {}
        self._loaded: dict[Adapter, dict[str, LoraMatrices]] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._users: Counter[str] = Counter()
        self._forward = _NO_ADAPTERS

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

    def _kind(self, name: str, layer: LoraLayer) -> _Kind:
        rank = filled_rank(layer.rank)
        return _Kind(rank, layer.in_features, layer.out_features, self._places[name].device)

    def _measured(self, name: str, layer: LoraLayer) -> tuple[int, ...]:
        device = self._places[name].device
        draw = torch.Generator().manual_seed(0)
        down = torch.randn(layer.rank, layer.in_features, generator=draw)
        up = torch.randn(layer.out_features, layer.rank, generator=draw)
        probed = _on(device, lora_kernel.matrices(down, up, 1.0))
        probe = probe_rows(layer.in_features, probed.down)
        if lora_kernel.has_kernel(device):
            lora_kernel.added(probe[:1], np.zeros(1, np.int64), [probed])  # compiles it
            return (1,)
        return agreeing_counts(partial(_product, probed), probe, "an adapter")

    # --- Loading ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def load(self, adapter: Adapter) -> None:
        """Read an adapter's weights. Raises `ModelCorrupt`."""
        weights = adapter.read()
        self._loaded[adapter] = {
            name: _on(
                self._places[name].device,
                lora_kernel.matrices(*weights[name], layer.scale),
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
        with self._set(_Forward([_Rows(*group) for group in rows.items()], num_rows)):
            yield

    @contextmanager
    def alone(self, adapter: Adapter | None) -> Iterator[None]:
        """In the body, all rows of every forward have this adapter, if there is one."""
        groups = [] if adapter is None else [_Rows(adapter, ())]
        with self._set(_Forward(groups, 0, alone=True)):
            yield

    @contextmanager
    def _set(self, forward: _Forward) -> Iterator[None]:
        self._forward = forward
        try:
            yield
        finally:
            self._forward = _NO_ADAPTERS

    def _added(self, name: str, _: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """The output of a linear layer with what adapters add; a hook behind it."""
        forward = self._forward
        found = [self._loaded[group.adapter].get(name) for group in forward.groups]
        layers = [layer for layer in found if layer is not None]
        if not layers:
            return output
        x, flat = (each.reshape(-1, each.shape[-1]) for each in (inputs[0], output))
        if forward.alone:
            members = np.zeros(len(x), np.int64)
            added = self._compute(x, members, layers)
            return (output + added.view(output.shape)).to(output.dtype)
        if len(x) != forward.num_rows:
            raise RuntimeError(
                f"{name} computes {len(x)} rows in a forward of {forward.num_rows}, so that it is "
                "not known which of them have an adapter"
            )
        groups = tuple(number for number, layer in enumerate(found) if layer is not None)
        rows, members = forward.chosen(x.device, groups)
        added = self._compute(x[rows], members, layers)
        flat[rows] = (flat[rows] + added).to(flat.dtype)
        return flat.view(output.shape)

    def _compute(
        self, rows: torch.Tensor, members: np.ndarray[Any, Any], layers: Sequence[LoraMatrices]
    ) -> torch.Tensor:
        """float32 [n, out] of rows [n, in]; those of a member stand together."""
        rows = rows.float()
        if lora_kernel.has_kernel(rows.device):
            return lora_kernel.added(rows, members, layers)
        device, parts, start = rows.device, [], 0
        for layer, count in zip(layers, np.bincount(members).tolist(), strict=True):
            rank, in_features = layer.down.shape
            kind = _Kind(rank, in_features, layer.up.shape[1], device)
            counts = self._counts[kind]
            parts.append(padded(partial(_product, layer), rows[start : start + count], counts))
            start += count
        return torch.cat(parts)


def _on(device: torch.device, layer: LoraMatrices) -> LoraMatrices:
    return layer._replace(down=layer.down.to(device), up=layer.up.to(device))


def _product(layer: LoraMatrices, rows: torch.Tensor) -> torch.Tensor:
    return linear(linear(rows, layer.down), layer.up.t()) * layer.scale


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
