"""Base64 images to pixel tensors, on CPU and without the model's weights.

Runs in a deployment of its own (``serve_app.preprocessor``) or in process (``engine.run_task``).
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from engine.config import EngineConfig
from engine.loader import load_processor
from schema.errors import TaskArgsInvalid
from schema.task import ImageBlock, Task

MAX_IMAGE_PIXELS = 64 * 1024 * 1024
"""Larger pictures are refused before they are decoded (decompression bombs)."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class ImageInputs:
    """All images of one task, ready for the model.

    Attributes:
        arrays: keyword arguments of ``get_image_features``, images concatenated in order, such as
            ``pixel_values`` [tiles, 3, height, width]. NumPy, so that an object store moves them
            without a copy.
        placeholders: for each image, the text that takes the place of the image token in the
        prompt.
    """

    arrays: dict[str, np.ndarray]
    placeholders: tuple[str, ...]


def image_params(task: Task) -> list[str]:
    """The paths of a task's images (``messages.0.content.1.base64``), in order, for error
    messages.
    """
    return [
        f"messages.{m}.content.{b}.base64"
        for m, message in enumerate(task.messages)
        if message.content is not None and not isinstance(message.content, str)
        for b, block in enumerate(message.content)
        if isinstance(block, ImageBlock)
    ]


def decode_image(data: str, param: str) -> Image.Image:
    """One base64 picture as RGB, upright.

    Raises:
        TaskArgsInvalid: not base64, not a picture of a known format, damaged, or too large.
    """
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TaskArgsInvalid(f"{param} is not valid base64: {error}", param=param) from error
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise TaskArgsInvalid(
                f"{param} is a picture of {image.width}x{image.height} pixels; the limit is "
                f"{MAX_IMAGE_PIXELS} pixels: scale it down",
                param=param,
            )
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB")
    except TaskArgsInvalid:
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile input
        raise TaskArgsInvalid(
            f"{param} is not a readable picture ({', '.join(FORMATS)}): {type(error).__name__}",
            param=param,
        ) from error


class ImagePreprocessor:
    """Prepares the images of tasks for one model. Thread safe after construction."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the model's processor (kilobytes; no weights)."""
        self._name = config.name
        self._processor = load_processor(config)

    def __call__(self, images: Sequence[str], params: Sequence[str]) -> ImageInputs:
        """Prepare base64 ``images``; ``params`` are their paths in the task, for error messages.

        Raises:
            TaskArgsInvalid: a picture cannot be read, or the model takes none.
        """
        if self._processor is None:
            raise TaskArgsInvalid(
                f"{params[0]}: model {self._name!r} reads text only; remove the image blocks",
                param=params[0],
            )
        pictures = [decode_image(data, p) for data, p in zip(images, params, strict=True)]
        features = self._processor(
            images=pictures,
            text=[self._processor.image_token * len(pictures)],
            return_text_replacement_offsets=True,
            return_tensors="np",
        )
        offsets = features.pop("text_replacement_offsets")[0]
        arrays = {
            key: np.asarray(value)
            for key, value in features.items()
            if key not in self._processor.tokenizer.model_input_names
        }
        return ImageInputs(arrays, tuple(offset["replacement"] for offset in offsets))
