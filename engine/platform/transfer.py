"""Copies of tensors between the host and a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.platform.platforms import platform_of


def upload(
    values: Sequence[float] | Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype = torch.long,
) -> torch.Tensor:
    """A tensor on the device; the host does not wait until it is there."""
    pinned = platform_of(device).pins_memory
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=pinned)


def staged(
    shape: Sequence[int], value: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A tensor on the host, to be changed there and then given to `send`."""
    pinned = platform_of(device).pins_memory
    return torch.full(tuple(shape), value, dtype=dtype, pin_memory=pinned)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of `staged` on the device; the host does not wait until it is there."""
    return tensor.to(device, non_blocking=platform_of(device).pins_memory)


class AsyncCopy:
    """A tensor that is being copied to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self._synchronize = platform_of(tensor.device).to_host(tensor)

    def wait(self) -> torch.Tensor:
        """The tensor; the one place where the host waits for the device."""
        self._synchronize()
        return self._tensor
