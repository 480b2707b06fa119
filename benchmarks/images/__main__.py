"""Measures image preprocessing: ``python -m benchmarks.images``.

Compares the engine's `ImagePreprocessor`, base64 in and prepared image out, with what cannot be
avoided: decoding base64, opening the image with Pillow, and calling the model's own processor with
it and the text of its place. Both do one image after the other on one core, in turns (A B, A B),
and must make the same pixels.

Prints a table, writes ``images.json``. Images per second and core are images by seconds of CPU
time, so that others on the machine disturb little; the seconds that passed are in the file as well.
No image is prepared twice by the engine, so that nothing is found in a cache.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, InternVLProcessor
from transformers.utils import logging as transformers_logging

from benchmarks.harness import command
from benchmarks.harness.engine_api import EngineConfig, ImagePreprocessor
from benchmarks.harness.report import about, grouped, middle, say, table, write
from benchmarks.harness.server import REPOSITORY

ENGINE, DIRECT = "engine", "direct"
MODELS = ("internvl", "demo")
_SEED = 20260101


@dataclass(frozen=True)
class Kind:
    """A kind of image file."""

    width: int
    height: int
    format: str
    options: dict[str, Any]


KINDS = {
    "12 MP JPEG": Kind(4000, 3000, "JPEG", {"quality": 90}),
    "448 px PNG": Kind(448, 448, "PNG", {}),
}


@dataclass(frozen=True)
class Row:
    """One side's run over the images of a round."""

    model: str
    kind: str
    side: str
    round: int
    images: int
    cpu_s: float
    wall_s: float

    @property
    def images_per_core_s(self) -> float:
        """Images per second and core."""
        return self.images / self.cpu_s


@dataclass(frozen=True)
class Comparison:
    """Medians over rounds; the ratio is that of the engine's speed to the direct one."""

    model: str
    kind: str
    engine_images_per_core_s: float
    direct_images_per_core_s: float
    ratio: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    transformers_logging.set_verbosity_error()  # 13 tiles are more than the demo model's context
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for model in options.models:
            for kind in options.kinds:
                rows += _measure(model, kind, options, Path(folder))
                say(f"{model}, {kind}: {_compare(rows)[-1].ratio:.1%} of the direct speed")
    found = _compare(rows)
    print(table(found, _COLUMNS))
    data = about("images", options, "numpy", "pillow", "transformers")
    data["images"] = {name: asdict(KINDS[name]) for name in options.kinds}
    data["runs"] = [asdict(row) | {"images_per_core_s": row.images_per_core_s} for row in rows]
    data["ratios"] = [asdict(one) for one in found]
    write(options.out, "images", data)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.images", __doc__)
    kinds, add = list(KINDS), parser.add_argument
    add("--models", nargs="+", default=MODELS, choices=MODELS, metavar="MODEL")
    add("--kinds", nargs="+", default=kinds, choices=kinds, metavar="KIND")
    add("--images", type=int, default=8, help="of each kind and round")
    add("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


def model_directory(model: str, folder: Path) -> Path:
    """The demo model; or one whose images become up to 12 tiles of 448 pixels and a thumbnail, as
    InternVL's do. The processor needs no weights.
    """
    directory = folder / model
    if directory.exists():
        return directory
    without_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(REPOSITORY / "demo" / "model", directory, ignore=without_weights)
    if model == "internvl":
        tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 12}
        size = {"size": {"height": 448, "width": 448}}
        _change(directory / "preprocessor_config.json", tiles | size)
        _change(directory / "processor_config.json", {"image_seq_length": 256})
        _change(directory / "config.json", {"image_seq_length": 256})
    return directory


def _change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def make_image(kind: Kind, seed: tuple[int, int]) -> str:
    """An image in base64: shades and some noise, about as hard to decode as a photograph."""
    random = np.random.default_rng([_SEED, *seed])
    shades = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(shades.resize((kind.width, kind.height), Image.Resampling.BICUBIC))
    noise = random.integers(-6, 7, smooth.shape, dtype=np.int16)
    pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind.format, **kind.options)
    return base64.b64encode(file.getvalue()).decode()


def _engine_side(directory: Path) -> Callable[[str], np.ndarray]:
    preprocessor = ImagePreprocessor(EngineConfig(model=str(directory)))

    def prepare(data: str) -> np.ndarray:
        (image,) = preprocessor([data], ["messages.0.content.0.base64"])
        return image.arrays["pixel_values"]

    return prepare


class _Processor(InternVLProcessor):
    """InternVL's, without the video processor, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, image_seq_length: int) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length=image_seq_length)


def _direct_side(directory: Path) -> Callable[[str], np.ndarray]:
    settings = json.loads((directory / "processor_config.json").read_text())
    processor = _Processor(
        AutoImageProcessor.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
        settings["image_seq_length"],
    )

    def prepare(data: str) -> np.ndarray:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            text = [processor.image_token]
            pixels = processor(images=[image], text=text, return_tensors="np")["pixel_values"]
        assert isinstance(pixels, np.ndarray)
        return pixels

    return prepare


def _measure(model: str, kind: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    directory = model_directory(model, folder)
    sides = {DIRECT: _direct_side(directory), ENGINE: _engine_side(directory)}
    rows: list[Row] = []
    for index in range(-1, options.rounds):
        count = options.images if index >= 0 else 1
        images = [make_image(KINDS[kind], (index + 1, number)) for number in range(count)]
        pixels: dict[str, np.ndarray] = {}
        for side, prepare in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for image in images:
                pixels[side] = prepare(image)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if index >= 0:  # the first image warms both up
                rows.append(Row(model, kind, side, index, count, cpu, wall))
        if not np.array_equal(pixels[ENGINE], pixels[DIRECT]):
            raise RuntimeError(f"{model}, {kind}: the two sides made different pixels")
    return rows


def _compare(rows: Sequence[Row]) -> list[Comparison]:
    found = []
    for (model, kind), own in grouped(rows, lambda row: (row.model, row.kind)).items():
        sides = grouped(own, lambda row: row.side)
        pairs = zip(sides[ENGINE], sides[DIRECT], strict=True)
        ratio = median(e.images_per_core_s / d.images_per_core_s for e, d in pairs)
        engine, direct = (middle(sides[s], lambda r: r.images_per_core_s) for s in (ENGINE, DIRECT))
        found.append(Comparison(model, kind, engine, direct, ratio))
    return found


_COLUMNS: dict[str, Callable[[Comparison], str]] = {
    "model": lambda one: one.model,
    "image": lambda one: one.kind,
    "engine, images/s/core": lambda one: f"{one.engine_images_per_core_s:.2f}",
    "direct": lambda one: f"{one.direct_images_per_core_s:.2f}",
    "engine/direct": lambda one: f"{one.ratio:.1%}",
}


if __name__ == "__main__":
    main()
