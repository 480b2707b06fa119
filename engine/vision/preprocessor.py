"""Base64 images to pixel tensors, on CPU and without the model's weights.

Runs in a deployment of its own (`image_replica`) or in process (`run_task`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import mul

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from transformers.image_transforms import convert_to_rgb

from engine.config import EngineConfig
from engine.loading.families.processors import ProcessedImage
from engine.loading.model_files import load_processor
from engine.vision.image_cache import ImageCache
from schema.errors import ImageInvalid, OutOfMemory, TaskArgsInvalid, TaskExecutionError
from schema.task import ImageBlock, Task

MAX_PIXELS = 64 * 1024 * 1024
"""Of all images of a task together; more are refused before they are decoded."""

# Texts inside a PNG are unpacked when it is opened; Pillow's own limit is 64 million characters, of
# up to four bytes each.
PngImagePlugin.MAX_TEXT_MEMORY = 2 * 1024 * 1024

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready for the model.

    Attributes:
        arrays: keyword arguments of ``get_image_features``, such as ``pixel_values`` [tiles, 3,
            height, width]. NumPy, so that an object store moves them without a copy.
        placeholder: the text that takes the place of the image token in the prompt.
        digest: of the image's file; equal digests mean equal arrays.
        num_tokens: image tokens in the placeholder, each of which takes one feature.
    """

    arrays: dict[str, np.ndarray]
    placeholder: str
    digest: bytes
    num_tokens: int


ImageInputs = tuple[PreparedImage, ...]
"""All images of a task, in order."""


def image_params(task: Task) -> list[str]:
    """The paths of a task's images, such as ``messages.0.content.1.base64``, in order."""
    return [
        f"messages.{m}.content.{b}.base64"
        for m, message in enumerate(task.messages)
        if message.content is not None and not isinstance(message.content, str)
        for b, block in enumerate(message.content)
        if isinstance(block, ImageBlock)
    ]


def check_pixels(
    known: Sequence[int | None],
    files: Sequence[bytes],
    params: Sequence[str],
    pixels_of: Callable[[int, int], int] = mul,
) -> list[int]:
    """The number of pixels of each image, read from its header where it is not known.

    ``pixels_of`` computes it from a width and a height.

    Raises:
        ImageInvalid: a header is damaged.
        TaskArgsInvalid: the images have too many pixels together.
    """
    pixels: list[int] = []
    for number, file, param in zip(known, files, params, strict=True):
        if number is None:
            # Opened for its header and dropped: the other parts of a parsed image (texts,
            # profiles) may be large too.
            with _open(file, param) as image:
                number = pixels_of(image.width, image.height)
        pixels.append(number)
        if sum(pixels) > MAX_PIXELS:
            raise _too_large(param)
    return pixels


def decode_image(file: bytes, param: str) -> Image.Image:
    """One image, whose size has been checked.

    Raises:
        ImageInvalid: not an image of a known format, or damaged.
    """
    with _open(file, param) as image:
        return _rgb(image, param)


def decode_base64(data: str, param: str) -> bytes:
    """The file that a task holds as base64.

    Raises:
        ImageInvalid: not base64.
    """
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageInvalid(f"{param} is not valid base64: {error}", param=param) from error


def _open(file: bytes, param: str) -> Image.Image:
    """One image, of which only the header has been read."""
    try:
        return Image.open(io.BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit
        raise _too_large(param) from error
    except Exception as error:  # Pillow raises many types on hostile input
        raise _unreadable(param, error) from error


def _rgb(image: Image.Image, param: str) -> Image.Image:
    """RGB, with transparency on white, as in transformers' own image processors."""
    try:
        _turn_upright(image)
        if image.mode.startswith("I;16"):  # Pillow would cut the values off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode == "RGB" and "transparency" not in image.info:
            image.load()
            return image  # as it is: a copy of 12 megapixels takes 5 % of all the time
        return Image.fromarray(np.asarray(convert_to_rgb(image, return_numpy=True)))
    except Exception as error:
        raise _unreadable(param, error) from error


def _too_large(param: str) -> TaskArgsInvalid:
    return TaskArgsInvalid(
        f"{param}: with this image the task has more than {MAX_PIXELS} pixels (as the "
        "model's processor pads or scales them), which is the limit for all its images together: "
        "scale them down",
        param=param,
    )


def _unreadable(param: str, error: Exception) -> TaskArgsInvalid:
    return ImageInvalid(
        f"{param} is not a readable image: {_reason(error)}",
        param=param,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is not one of {', '.join(FORMATS)}"
    return "it is damaged, or its end is missing"


def _turn_upright(image: Image.Image) -> None:
    # Damaged EXIF does not matter; a damaged image fails when it is decoded.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


@dataclass(frozen=True)
class _Known:
    """An image that has been prepared."""

    image: PreparedImage
    pixels: int

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.image.arrays.values())


class ImagePreprocessor:
    """Prepares the images of tasks for one model. Thread safe after construction.

    Prepared images are cached by the bytes of their files (`EngineConfig.image_cache_bytes`).
    """

    def __init__(self, config: EngineConfig) -> None:
        """Load the model's processor (kilobytes; no weights)."""
        self._name = config.name
        self._processor = load_processor(config)
        self._cache = ImageCache[_Known](config.image_cache_bytes)
        self.num_prepared = 0

    def __call__(self, images: Sequence[str | bytes], params: Sequence[str]) -> ImageInputs:
        """Prepare ``images``, each base64 or the file itself.

        ``params`` are their paths in the task, for error messages.

        Raises:
            TaskArgsInvalid: an image cannot be read, or the model takes none.
        """
        if self._processor is None:
            raise TaskArgsInvalid(
                f"{params[0]}: model {self._name!r} reads text only; remove the image blocks",
                param=params[0],
            )
        among_others = len(images) > 1
        variant = among_others and self._processor.depends_on_image_count
        files = [
            image if isinstance(image, bytes) else decode_base64(image, param)
            for image, param in zip(images, params, strict=True)
        ]
        keys = [_digest(file, variant) for file in files]
        known = [self._cache.get(key) for key in keys]
        pixels_of = partial(self._processor.pixels, among_others=among_others)
        sizes = check_pixels(
            [one.pixels if one else None for one in known], files, params, pixels_of
        )
        made: dict[bytes, _Known] = {
            key: one for key, one in zip(keys, known, strict=True) if one is not None
        }
        # One at a time: the model's processor makes several copies of its input.
        for key, file, param, pixels in zip(keys, files, params, sizes, strict=True):
            if key not in made:
                processed = self._process(decode_image(file, param), param, among_others)
                made[key] = _Known(
                    PreparedImage(
                        processed.arrays, processed.placeholder, key, processed.num_tokens
                    ),
                    pixels,
                )
                self._cache.put(key, made[key])
        return tuple(made[key].image for key in keys)

    def _process(self, decoded: Image.Image, param: str, among_others: bool) -> ProcessedImage:
        assert self._processor is not None
        try:
            processed = self._processor(decoded, among_others=among_others)
        except ValueError as error:
            raise TaskArgsInvalid(
                f"{param}: the model's image processor refused this image: {error}", param=param
            ) from error
        except MemoryError as error:
            raise OutOfMemory(
                f"{param}: there is no memory to prepare this image: scale it down", param=param
            ) from error
        except Exception as error:
            raise TaskExecutionError(
                f"{param}: the model's image processor failed on this image: {error!r}",
                param=param,
            ) from error
        self.num_prepared += 1
        for array in processed.arrays.values():
            array.setflags(write=False)  # tasks share them
        return processed


def _digest(file: bytes, variant: bool) -> bytes:
    """A key for an image and the way in which it is prepared."""
    digest = hashlib.sha256(file)
    digest.update(bytes([variant]))
    return digest.digest()
