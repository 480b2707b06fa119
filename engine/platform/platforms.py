"""All platforms, and which one a device or a configuration means."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.platform.cpu import CpuPlatform
from engine.platform.cuda import CudaPlatform
from engine.platform.interface import Platform
from schema.errors import ModelInvalid

AUTO = "auto"
PLATFORMS: Mapping[str, Platform] = {each.name: each for each in (CudaPlatform(), CpuPlatform())}
"""By torch's name for the type of device; "auto" takes the first that this process has."""


def platform_of(device: torch.device) -> Platform:
    """The platform of a device."""
    return PLATFORMS[device.type]


def best_platform() -> Platform:
    """What "auto" means in this process."""
    return next(each for each in PLATFORMS.values() if each.problem() is None)


def resolve_device(wanted: str) -> torch.device:
    """The device that the name of a platform, or "auto", means here; torch can compute on it.

    Raises:
        ModelInvalid: there is no such device.
        TaskExecutionError: see `engine.platform.device_check`.
    """
    if wanted == AUTO:
        return best_platform().current_device()
    platform = PLATFORMS[wanted]
    if (problem := platform.problem()) is not None:
        raise ModelInvalid(f"device is {wanted!r}, but {problem}; or use 'auto' or 'cpu'")
    return platform.current_device()


def may_prepack(wanted: str) -> bool:
    """Whether a model may be kept in packed form, for the device of a configuration."""
    return wanted == AUTO or PLATFORMS[wanted].may_prepack
