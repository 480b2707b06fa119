"""Base64 images to pixel tensors, on CPU and without the model's weights.

Runs in a deployment of its own (``serve_app.preprocessor``) or in process (``engine.run_task``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from engine.config import EngineConfig
from engine.loader import load_processor
from schema.errors import TaskArgsInvalid
from schema.task import ImageBlock, Task

MAX_PIXELS = 64 * 1024 * 1024
"""Of all pictures of a task together; more are refused before they are decoded."""

# Texts inside a PNG are unpacked when it is opened; Pillow's own limit is 64 million characters, of
# up to four bytes each.
PngImagePlugin.MAX_TEXT_MEMORY = 2 * 1024 * 1024

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class PreparedImage:
    """One picture, ready for the model.

    Attributes:
        arrays: keyword arguments of ``get_image_features``, such as ``pixel_values`` [tiles, 3,
            height, width]. NumPy, so that an object store moves them without a copy.
        placeholder: the text that takes the place of the image token in the prompt.
        digest: SHA-256 of the picture's file; equal digests mean equal arrays.
    """

    arrays: dict[str, np.ndarray]
    placeholder: str
    digest: bytes


ImageInputs = tuple[PreparedImage, ...]
"""All pictures of a task, in order."""


def image_params(task: Task) -> list[str]:
    """The paths of a task's images, such as ``messages.0.content.1.base64``, in order."""
    return [
        f"messages.{m}.content.{b}.base64"
        for m, message in enumerate(task.messages)
        if message.content is not None and not isinstance(message.content, str)
        for b, block in enumerate(message.content)
        if isinstance(block, ImageBlock)
    ]


def decode_images(
    images: Sequence[str], params: Sequence[str]
) -> Iterator[tuple[Image.Image, bytes]]:
    """The pictures of a task as RGB, upright; of an animation the first frame. With the SHA-256 of
    each file.

    All headers are read before the first picture is decoded, and no more than one decoded picture
    is held here at a time: a few kilobytes may unpack to gigabytes, in one picture or in many.

    Raises:
        TaskArgsInvalid: not base64, not a picture of a known format, damaged, or too many pixels.
    """
    total = 0
    files = [_decode_base64(data, param) for data, param in zip(images, params, strict=True)]
    for file, param in zip(files, params, strict=True):
        # Opened for its header, dropped, and opened again: what a parsed picture holds besides its
        # pixels (texts, profiles) may be large too.
        with _open(file, param) as image:
            total += image.width * image.height
        if total > MAX_PIXELS:
            raise _too_large(param)
    for file, param in zip(files, params, strict=True):
        with _open(file, param) as image:
            yield _rgb(image, param), hashlib.sha256(file).digest()


def _decode_base64(data: str, param: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TaskArgsInvalid(f"{param} is not valid base64: {error}", param=param) from error


def _open(file: bytes, param: str) -> Image.Image:
    """One picture, its header read and its pixels not yet."""
    try:
        return Image.open(io.BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit
        raise _too_large(param) from error
    except Exception as error:  # Pillow raises many types on hostile input
        raise _unreadable(param, error) from error


def _rgb(image: Image.Image, param: str) -> Image.Image:
    try:
        _turn_upright(image)
        if image.mode.startswith("I;16"):  # Pillow would cut the values off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode == "RGB":
            image.load()
            return image  # as it is: a copy of 12 megapixels takes 5 % of all the time
        return image.convert("RGB")
    except Exception as error:
        raise _unreadable(param, error) from error


def _too_large(param: str) -> TaskArgsInvalid:
    return TaskArgsInvalid(
        f"{param}: with this picture the task has more than {MAX_PIXELS} pixels, which is the "
        "limit for all its pictures together: scale them down",
        param=param,
    )


def _unreadable(param: str, error: Exception) -> TaskArgsInvalid:
    return TaskArgsInvalid(
        f"{param} is not a readable picture ({', '.join(FORMATS)}): {type(error).__name__}",
        param=param,
    )


def _turn_upright(image: Image.Image) -> None:
    # Damaged EXIF does not matter; a damaged picture fails when it is decoded.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


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
        # One at a time: the model's processor makes several copies of what it is given.
        return tuple(self._prepare(*decoded) for decoded in decode_images(images, params))

    def _prepare(self, picture: Image.Image, digest: bytes) -> PreparedImage:
        assert self._processor is not None
        features = self._processor(
            images=[picture],
            text=[self._processor.image_token],
            return_text_replacement_offsets=True,
            return_tensors="np",
        )
        (offset,) = features.pop("text_replacement_offsets")[0]
        arrays = {
            key: np.ascontiguousarray(value)
            for key, value in sorted(features.items())
            if key not in self._processor.tokenizer.model_input_names
        }
        return PreparedImage(arrays, offset["replacement"], digest)
