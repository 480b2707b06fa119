"""What pictures cost: preparing them, and putting their tensors into Ray's object store."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.capacity.costs import PictureCosts
from benchmarks.images.__main__ import Kind, make_picture, model_directory
from engine import EngineConfig, ImagePreprocessor
from engine.vision.preprocessor import ImageInputs
from schema.task import Task

SENT = Kind(1024, 768, "JPEG", {"quality": 90})
"""What is sent through the whole server."""

# The demo model takes one small tensor of a picture; InternVL up to 12 tiles and a thumbnail.
_CASES = {
    "demo, 0.8 MP JPEG": ("demo", SENT),
    "InternVL, 448 px PNG": ("internvl", Kind(448, 448, "PNG", {})),
    "InternVL, 12 MP JPEG": ("internvl", Kind(4000, 3000, "JPEG", {"quality": 90})),
}
_COUNT = 6


def picture_base64(number: int) -> str:
    """A picture of the kind that is sent, each number another one."""
    return make_picture(SENT, (0, number))


def measure_preparing() -> dict[str, dict[str, Any]]:
    """CPU seconds and sizes of each case; the store's part is still missing."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
        for name, (model, kind) in _CASES.items():
            directory = model_directory(model, Path(folder))
            processor = ImagePreprocessor(EngineConfig(model=str(directory), device="cpu"))
            pictures = [make_picture(kind, (1, number)) for number in range(_COUNT)]
            prepared = processor(pictures[:1], ["0"])
            body = json.dumps(_task(pictures[0])).encode()
            began = time.process_time()
            for _ in range(_COUNT):
                Task.parse(body).split_images()
            parse = (time.process_time() - began) / _COUNT
            began = time.process_time()
            for picture in pictures[1:]:
                prepared = processor([picture], ["0"])
            costs = PictureCosts(
                parse=parse,
                prepare=(time.process_time() - began) / (_COUNT - 1),
                body_bytes=len(pictures[0]),
                tensor_bytes=_bytes(prepared),
                put=0.0,
                get=0.0,
            )
            found[name] = asdict(costs)
    return found


def _task(picture: str) -> dict[str, Any]:
    blocks = [{"type": "image", "base64": picture}, {"type": "text", "text": "What is it?"}]
    return {"model": "demo", "messages": [{"role": "user", "content": blocks}]}


def _bytes(prepared: ImageInputs) -> int:
    return sum(array.nbytes for one in prepared for array in one.arrays.values())


def measure_store() -> dict[str, Any]:
    """Seconds for each byte of a tensor that is put and got; needs a running Ray.

    Time that passed and not CPU time: copying is done by threads.
    """
    tensor = np.ones((13, 3, 448, 448), dtype=np.float32)
    puts, gets = [], []
    for _ in range(8):
        began = time.perf_counter()
        reference = ray.put(tensor)
        between = time.perf_counter()
        ray.get(reference)
        puts.append((between - began) / tensor.nbytes)
        gets.append((time.perf_counter() - between) / tensor.nbytes)
        del reference
    return {"put_s_per_byte": min(puts[1:]), "get_s_per_byte": min(gets[1:])}
