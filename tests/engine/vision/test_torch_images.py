"""The functions that stand in for torchvision's give its bytes.

The digests were recorded with torchvision 0.28.0 and torch 2.13.0, by the same calls.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch

from engine.loading.families.torch_images import (
    InterpolationMode,
    image_processor_class,
    normalize,
    pad,
    resize,
)

RESIZED = {
    "BILINEAR": "06d69ae2c88feee6157b1806304268a08b5d7c21efe5eeeb67e5eb13fff0625c",
    "BICUBIC": "a1cde50e9f3dba779946625f879f420c4451628fef94e1a77c648724f3ebee5b",
    "NEAREST_EXACT": "b7882a6171cf6f347b5b8d155c977fc1df68b367f21caffe954be20ebec95e95",
}
PADDED = "0c59c8a778defd03207b31530e4e0ed680e0d94239347b97bae8fc2a7281045a"


def pixels(random: np.random.Generator, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(random.integers(0, 256, (3, height, width)).astype(np.uint8))


@pytest.mark.parametrize("mode", RESIZED)
def test_resized(mode: str) -> None:
    digest, random = hashlib.sha256(), np.random.default_rng(0)
    for _ in range(64):
        height, width, *size = random.integers(1, 90, 4).tolist()
        resized = resize(pixels(random, height, width), size, InterpolationMode[mode])
        digest.update(resized.contiguous().numpy().tobytes())
    assert digest.hexdigest() == RESIZED[mode]


def test_padded_and_normalized() -> None:
    digest, random = hashlib.sha256(), np.random.default_rng(1)
    for fill in (0, 127, [1, 2, 3]):
        image = pixels(random, 20, 30)
        digest.update(pad(image, [1, 2, 3, 4], fill).contiguous().numpy().tobytes())
        normalized = normalize(image.float(), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
        digest.update(normalized.numpy().tobytes())
    assert digest.hexdigest() == PADDED


def test_torchvision_is_not_pretended_beyond_an_import() -> None:
    """Other libraries look whether it is there."""
    assert image_processor_class("lfm2_vl").__name__ == "Lfm2VlImageProcessor"
    assert image_processor_class("qwen2_vl") is None
    assert not [name for name in sys.modules if name.startswith("torchvision")]
