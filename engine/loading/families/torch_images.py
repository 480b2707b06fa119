"""transformers' image processors that were written for torchvision, without torchvision.

Some families have no processor around Pillow. Theirs call a few functions of
`torchvision.transforms.v2.functional`, which are written here with torch alone, so that the pixels
are bit for bit those of torchvision on a CPU (`tests/engine/vision/test_torch_images.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from PIL.Image import Resampling
from torch.nn.functional import interpolate
from torch.nn.functional import pad as torch_pad
from transformers import image_processing_backends
from transformers.models.auto.auto_mappings import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.utils.import_utils import is_torchvision_available

_PACKAGES = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")


class InterpolationMode(Enum):
    """How pixels between pixels are computed; the values are torch's names."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


_OF_PILLOW = {
    Resampling.NEAREST: InterpolationMode.NEAREST_EXACT,
    Resampling.BILINEAR: InterpolationMode.BILINEAR,
    Resampling.BICUBIC: InterpolationMode.BICUBIC,
    Resampling.LANCZOS: InterpolationMode.LANCZOS,
}


def resize(
    image: torch.Tensor,
    size: Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    antialias: bool = True,
) -> torch.Tensor:
    """An image [..., channels, height, width] in another size (height, width)."""
    height, width = size
    if (height, width) == tuple(image.shape[-2:]):
        return image
    smooth = interpolation in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    resized = interpolate(
        image.reshape(-1, *image.shape[-3:]),
        size=(height, width),
        mode=interpolation.value,
        align_corners=False if smooth else None,
        antialias=antialias and smooth,
    )
    return resized.reshape(*image.shape[:-2], height, width)


def pad(
    image: torch.Tensor,
    padding: Sequence[int],
    fill: float | Sequence[float] | None = 0,
    padding_mode: str = "constant",
) -> torch.Tensor:
    """An image with a border: left, top, right, bottom; ``fill`` for all channels or for each."""
    if padding_mode != "constant":
        raise NotImplementedError(f"padding_mode {padding_mode!r}")
    left, top, right, bottom = padding
    border = (left, right, top, bottom)
    if not isinstance(fill, Sequence):
        return torch_pad(image, border, value=float(fill or 0))
    channels = zip(image.split(1, dim=-3), fill, strict=True)
    return torch.cat([torch_pad(each, border, value=float(value)) for each, value in channels], -3)


def normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:
    """Each channel less its mean, by its standard deviation."""
    mean, std = (
        torch.as_tensor(each, dtype=image.dtype, device=image.device).view(-1, 1, 1)
        for each in (mean, std)
    )
    return (image.sub_(mean) if inplace else image.sub(mean)).div_(std)


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """A part of an image, within it."""
    return image[..., top : top + height, left : left + width]


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    """Three channels where there is one."""
    return image if image.shape[-3] != 1 else image.expand(*image.shape[:-3], 3, *image.shape[-2:])


def image_processor_class(model_type: str) -> Any:
    """The image processor of a family that has none around Pillow; None if it has one."""
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    if not isinstance(names, dict) or "pil" in names:
        return None
    return class_of(model_type, "image_processing", names["torchvision"])


def class_of(model_type: str, kind: str, name: str) -> Any:
    """A class of transformers, from a module that may import torchvision.

    Args:
        model_type: of the family to which it belongs.
        kind: ``image_processing`` or ``processing``.
        name: of the class.
    """
    folder = model_type_to_module_name(model_type)
    with torchvision_replaced():
        module = import_module(f"transformers.models.{folder}.{kind}_{folder}")
    return getattr(module, name)


@contextmanager
def torchvision_replaced() -> Iterator[None]:
    """In the body, imports of torchvision find the functions of this module, if there is none."""
    if is_torchvision_available():
        yield
        return
    backends: Any = image_processing_backends
    backends.tvF = sys.modules[__name__]
    backends.pil_torch_interpolation_mapping = _OF_PILLOW
    packages = {name: ModuleType(name) for name in _PACKAGES}
    v2: Any = packages[_PACKAGES[-1]]
    v2.functional = sys.modules[__name__]
    sys.modules.update(packages)
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
