"""Tiles are cut as InternVL's own ``dynamic_preprocess`` cuts them, pixel for pixel.

The reference is written from its description: of all grids of 1 to n tiles the one whose shape is
nearest to the image's; of equally near ones a larger one only if the image has more than half
its pixels; resize (bicubic) to the whole grid, cut row by row; a thumbnail if there is more than
one tile. Then ``ToTensor`` and ``Normalize`` of torchvision: 32-bit floats, divided by 255.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from engine.config import EngineConfig
from engine.loading.model_files import load_processor
from tests.engine.models.tiny_internvl import TILE, save_original

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def grid(width: int, height: int, max_tiles: int, side: int) -> tuple[int, int]:
    """Columns and rows."""
    every = range(1, max_tiles + 1)
    candidates = [(c, r) for c in every for r in every if c * r <= max_tiles]
    best = (1, 1)
    for columns, rows in sorted(candidates, key=lambda one: one[0] * one[1]):
        closer = abs(width / height - best[0] / best[1]) - abs(width / height - columns / rows)
        enough = width * height > 0.5 * side**2 * columns * rows
        if closer > 0 or (closer == 0 and enough):
            best = (columns, rows)
    return best


def tiles(image: Image.Image, max_tiles: int, side: int) -> torch.Tensor:
    """[tiles, 3, side, side]."""
    columns, rows = grid(*image.size, max_tiles, side)
    whole = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    parts = [
        whole.crop((c * side, r * side, (c + 1) * side, (r + 1) * side))
        for r in range(rows)
        for c in range(columns)
    ]
    if len(parts) > 1:
        parts.append(image.resize((side, side), Image.Resampling.BICUBIC))
    pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in parts])
    return pixels.to(torch.float32).div(255).sub(MEAN).div(STD)


@pytest.mark.parametrize("max_tiles", [1, 2, 6, 12, 24])
def test_the_same_grid(max_tiles: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(1, 4000, (2000, 2))]
    every = range(1, max_tiles + 1)
    ratios = sorted({Fraction(c, r) for c in every for r in every if c * r <= max_tiles})
    ties = [(a + b) / 2 for a, b in combinations(ratios, 2)]
    sizes += [(t.numerator * k, t.denominator * k) for t in [*ratios, *ties] for k in (1, 7, 100)]
    for width, height in sizes:
        chosen = get_optimal_tiled_canvas((height, width), (448, 448), 1, max_tiles)
        assert chosen == grid(width, height, max_tiles, 448), (width, height)


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (448, 448),
        (900, 448),
        (1200, 900),
        (333, 1000),
        (3000, 40),
        (500, 501),
        (1344, 1792),
    ],
)
def test_the_same_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    """Of a whole processor, 12 tiles of 448 and a thumbnail."""
    save_original(tmp_path, "qwen2", "300M")
    processor = load_processor(EngineConfig(model=str(tmp_path)))
    assert processor is not None
    rng = np.random.default_rng(1)
    values = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(values)
    for side, most in ((TILE, 4), (448, 12)):
        features = processor._processor.image_processor(
            [image],
            size={"height": side, "width": side},
            max_patches=most,
            crop_to_patches=True,
            return_tensors="np",
        )
        expected = tiles(image, most, side)
        assert np.array_equal(features["pixel_values"], expected.numpy())
