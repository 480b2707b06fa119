"""One model over several devices, in one process: consecutive decoder layers on each.

The first device also has everything except decoder layers: embeddings, vision tower, last norm,
head. So tokens are sampled where they are needed, tied embeddings stay one tensor, and only hidden
states go from device to device: to the next device before its first layer, and back to the first
one after the last layer. Devices take turns; more devices add memory, not speed.

transformers loads weights by a device map. The hooks that accelerate then puts around every module
are removed again: they inspect each argument of hundreds of modules, and copy values that all
layers share, such as rotary embeddings, again for every layer. Here they are copied once for each
device and forward (`connect`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import nn
from transformers import PreTrainedConfig

from engine.config import EngineConfig
from engine.loading.description import decoder_layers, describe_model
from engine.loading.estimate import tensor_bytes
from engine.platform.platforms import platform_of
from schema.errors import ModelInvalid


@dataclass(frozen=True)
class Stage:
    """A device, and the decoder layers ``start .. stop`` that it has."""

    device: torch.device
    start: int
    stop: int

    @property
    def layers(self) -> range:
        """Their numbers."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class LayerPlacement:
    """All stages, in the order of their layers; the first one's device has the rest as well."""

    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """The layout as it stands in a model's card: ``layers:2 (0-13, 14-27)``."""
        layers = ", ".join(f"{stage.start}-{stage.stop - 1}" for stage in self.stages)
        return f"layers:{len(self.stages)} ({layers})"

    @property
    def layer_devices(self) -> dict[int, torch.device]:
        """The device of each decoder layer."""
        return {index: stage.device for stage in self.stages for index in stage.layers}


def balanced(rest: float, layers: Sequence[float], num_stages: int) -> list[int]:
    """Cut layers so that the largest stage is as small as can be, and each has one at least.

    Args:
        rest: bytes that the first stage has beside its layers.
        layers: bytes of each layer; at least ``num_stages`` of them.
        num_stages: how many stages.

    Returns:
        [num_stages + 1] boundaries: stage ``i`` has the layers ``[i] .. [i + 1]``. Of equal cuts
        it is the one with the earliest boundaries.
    """
    ends = range(len(layers) + 1)
    total = [0.0]
    for size in layers:
        total.append(total[-1] + size)
    # For each number of layers, (bytes of the largest stage, boundaries) of the best cut so far.
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        stop: (rest + total[stop], (0, stop)) for stop in ends if stop
    }
    for _ in range(1, num_stages):
        best = {
            stop: min(
                (max(largest, total[stop] - total[start]), (*cuts, stop))
                for start, (largest, cuts) in best.items()
                if start < stop
            )
            for stop in ends
            if any(start < stop for start in best)
        }
    return list(best[len(layers)][1])


def stage_devices(config: EngineConfig, first: torch.device) -> list[torch.device]:
    """The devices of all stages: the first one, and others of its kind; of a CPU there is one.

    Raises:
        ModelInvalid: there are not as many GPUs.
        TaskExecutionError: see `engine.platform.device_check`.
    """
    return platform_of(first).devices_of_stages(first, config.num_devices)


def plan_spread(
    config: EngineConfig, hf_config: PreTrainedConfig, devices: Sequence[torch.device]
) -> tuple[LayerPlacement, dict[str, torch.device]]:
    """Divide a model that is not loaded yet, by the bytes that its layers will take.

    Returns:
        The stages, and the device map that loads the model so.

    Raises:
        ModelInvalid: it has fewer decoder layers than there are devices, or none are found.
    """
    described = describe_model(config, hf_config)
    prefix, num_layers = described.layers
    if num_layers < len(devices):
        raise ModelInvalid(
            f"num_devices is {len(devices)}, but model {config.name!r} has {num_layers} layers"
        )
    stored = config.dtype if config.dtype != "auto" else hf_config.get_text_config().dtype
    dtype = str(stored or torch.float32).removeprefix("torch.")
    sizes = {
        name: tensor_bytes(name, tensor.shape, dtype, config.quantize_bits)
        for name, tensor in described.tensors.items()
    }
    each = [
        sum(size for name, size in sizes.items() if name.startswith(f"{prefix}.{index}."))
        for index in range(num_layers)
    ]
    cuts = balanced(sum(sizes.values()) - sum(each), each, len(devices))
    stages = zip(devices, pairwise(cuts), strict=True)
    spread = LayerPlacement(tuple(Stage(device, start, stop) for device, (start, stop) in stages))
    # The map covers everything: transformers' default is the CPU, and accelerate would load the
    # whole model to the default device first.
    rest = dict.fromkeys(described.beside_layers, devices[0])
    own = {f"{prefix}.{index}": device for index, device in spread.layer_devices.items()}
    return spread, own | rest


def connect(model: Any, spread: LayerPlacement, config: EngineConfig) -> None:
    """Hand hidden states, and what layers share, from device to device."""
    remove_hook_from_submodules(model)
    _, layers = decoder_layers(model, config.name)
    for stage in spread.stages[1:]:
        arrivals = _Arrivals(stage.device)
        for index in stage.layers:
            layers[index].register_forward_pre_hook(
                _Handover(arrivals, index == stage.start, index == stage.stop - 1),
                with_kwargs=True,
            )
    back = _Arrivals(spread.stages[0].device)

    def hand_back(_module: nn.Module, _args: Any, output: Any) -> Any:
        moved = back.of(output)
        back.forget()
        return moved

    layers[-1].register_forward_hook(hand_back)


class _Arrivals:
    """Tensors copied to a device in the current forward, so that none is copied twice."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrived: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, value: Any) -> Any:
        """The value with its tensors on the device; objects that are not containers stay."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value) in (tuple, list):
            return type(value)(self.of(part) for part in value)
        if type(value) is dict:
            return {key: self.of(part) for key, part in value.items()}
        return value

    def forget(self) -> None:
        """Forget everything."""
        self._arrived.clear()

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == self._device:
            return tensor
        if id(tensor) not in self._arrived:
            # Between GPUs the host does not wait: the copy is a part of their streams.
            copy = tensor.to(self._device, non_blocking=True)
            self._arrived[id(tensor)] = tensor, copy  # kept, so that its id stays its own
        return self._arrived[id(tensor)][1]


@dataclass(frozen=True, eq=False)
class _Handover:
    """Before a layer: bring its arguments to its device."""

    arrivals: _Arrivals
    is_first: bool
    is_last: bool

    def __call__(self, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if self.is_first:  # after a forward that failed half way, too
            self.arrivals.forget()
        moved = self.arrivals.of(args), self.arrivals.of(kwargs)
        if self.is_last:
            self.arrivals.forget()
        return moved
