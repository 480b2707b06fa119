"""Measures image preprocessing: ``python -m benchmarks.images``.

Compares `preprocessor.ImagePreprocessor`, base64 in and prepared image out, with what nobody can
do without: decoding base64, opening the picture with Pillow, and calling the model's own processor
with it and the text of its place. Both do one picture after the other on one core, in turns (A B, A
B), and must make the same pixels.

Prints a table, writes ``images.json``. Images per second and core are images by seconds of CPU
time, so that others on the machine disturb little; the seconds that passed are in the file as well.
No picture is prepared twice by the engine, so that nothing is found in a cache.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, InternVLProcessor
from transformers.utils import logging as transformers_logging

from benchmarks.engine.report import aligned, say
from engine import EngineConfig, ImagePreprocessor

DEMO = Path(__file__).resolve().parents[2] / "demo" / "model"
ENGINE, DIRECT = "engine", "direct"
_SEED = 20260101


@dataclass(frozen=True)
class Kind:
    """A kind of picture file."""

    width: int
    height: int
    format: str
    options: dict[str, Any]


KINDS = {
    "12 MP JPEG": Kind(4000, 3000, "JPEG", {"quality": 90}),
    "448 px PNG": Kind(448, 448, "PNG", {}),
}
MODELS = ("internvl", "demo")


@dataclass(frozen=True)
class Row:
    """One side's run over the pictures of a round."""

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
    print(_table(found))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "images.json"
    path.write_text(json.dumps(_report(options, rows, found), indent=2) + "\n")
    print("written:", path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = list(KINDS)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds, metavar="KIND")
    parser.add_argument("--images", type=int, default=8, help="of each kind and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="DIR")
    return parser.parse_args(arguments)


# --- What is measured ----------------------------------------------------------------------------


def model_directory(model: str, folder: Path) -> Path:
    """The demo model; or one whose pictures become up to 12 tiles of 448 pixels and a thumbnail, as
    InternVL's do. The processor needs no weights.
    """
    directory = folder / model
    if directory.exists():
        return directory
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    if model == "internvl":
        tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 12}
        _change(
            directory / "preprocessor_config.json", tiles | {"size": {"height": 448, "width": 448}}
        )
        _change(directory / "processor_config.json", {"image_seq_length": 256})
        _change(directory / "config.json", {"image_seq_length": 256})
    return directory


def _change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def make_picture(kind: Kind, seed: tuple[int, int]) -> str:
    """A picture in base64: shades and some noise, about as hard to decode as a photograph."""
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
        pictures = [make_picture(KINDS[kind], (index + 1, number)) for number in range(count)]
        pixels: dict[str, np.ndarray] = {}
        for side, prepare in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for picture in pictures:
                pixels[side] = prepare(picture)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if index >= 0:  # the first picture warms both up
                rows.append(Row(model, kind, side, index, count, cpu, wall))
        if not np.array_equal(pixels[ENGINE], pixels[DIRECT]):
            raise RuntimeError(f"{model}, {kind}: the two sides made different pixels")
    return rows


# --- The report ----------------------------------------------------------------------------------


def _compare(rows: Sequence[Row]) -> list[Comparison]:
    speeds: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        sides = speeds.setdefault((row.model, row.kind), {ENGINE: [], DIRECT: []})
        sides[row.side].append(row.images_per_core_s)
    return [
        Comparison(
            model,
            kind,
            median(sides[ENGINE]),
            median(sides[DIRECT]),
            median(e / d for e, d in zip(sides[ENGINE], sides[DIRECT], strict=True)),
        )
        for (model, kind), sides in speeds.items()
    ]


def _table(found: Sequence[Comparison]) -> str:
    lines = [["model", "picture", "engine, images/s/core", "direct", "engine/direct"]]
    lines += [
        [
            one.model,
            one.kind,
            f"{one.engine_images_per_core_s:.2f}",
            f"{one.direct_images_per_core_s:.2f}",
            f"{one.ratio:.1%}",
        ]
        for one in found
    ]
    return aligned(lines)


def _report(
    options: argparse.Namespace, rows: Sequence[Row], found: Sequence[Comparison]
) -> dict[str, Any]:
    return {
        "benchmark": "images",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "load_after": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("numpy", "pillow", "transformers")},
        "pictures": {name: asdict(KINDS[name]) for name in options.kinds},
        "runs": [asdict(row) | {"images_per_core_s": row.images_per_core_s} for row in rows],
        "ratios": [asdict(one) for one in found],
    }


if __name__ == "__main__":
    main()
