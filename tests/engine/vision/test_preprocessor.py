"""Images as their format defines them; data that is not an image is refused with its place."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from transformers import InternVLForConditionalGeneration

from engine.config import EngineConfig
from engine.vision import preprocessor as images
from engine.vision.features import Features, Vision
from engine.vision.preprocessor import (
    MAX_PIXELS,
    ImagePreprocessor,
    check_pixels,
    decode_base64,
    image_params,
)
from schema import Task
from schema.errors import TaskArgsInvalid
from tests.engine.conftest import TinyModel

PARAM = "messages.3.content.1.base64"
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "WEBP")


def pixels(mode: str = "RGB", size: tuple[int, int] = (13, 7)) -> Image.Image:
    """An image without symmetries."""
    width, height = size
    rng = np.random.default_rng(5)
    values = rng.integers(0, 256, (height, width, len(Image.new(mode, (1, 1)).getbands())))
    return Image.fromarray(values.astype(np.uint8).squeeze(), mode if mode != "CMYK" else None)


def encoded(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def decode_image(data: str, param: str) -> Image.Image:
    file = decode_base64(data, param)
    check_pixels([None], [file], [param])
    return images.decode_image(file, param)


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.mode == second.mode and np.array_equal(np.asarray(first), np.asarray(second))


def refused(data: str) -> TaskArgsInvalid:
    with pytest.raises(TaskArgsInvalid) as caught:
        decode_image(data, PARAM)
    assert caught.value.param == PARAM
    assert str(caught.value).startswith(PARAM)
    return caught.value


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats(kind: str) -> None:
    original = pixels()
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "GIF":
        original = original.quantize(16).convert("RGB")
    assert same(decode_image(encoded(original, kind, **options), PARAM), original)


def test_jpeg() -> None:
    data = encoded(pixels(), "JPEG")
    reference = Image.open(io.BytesIO(base64.b64decode(data)))
    assert same(decode_image(data, PARAM), reference.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LAB", "F", "I"])
def test_modes_become_rgb(mode: str) -> None:
    original = pixels()
    if mode == "LAB":
        original = pixels("LAB")
    elif mode in "FI":  # which Pillow takes for levels from 0 to 255
        original = original.convert("L").convert(mode)
    else:
        original = original.convert(mode)
    kind = "PNG" if mode in "1LP" else "TIFF"
    assert same(decode_image(encoded(original, kind), PARAM), original.convert("RGB"))


def on_white(image: Image.Image) -> np.ndarray:
    """What a viewer shows of an image with alpha, on a white page."""
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(mode: str, kind: str) -> None:
    original = pixels("RGBA").convert(mode)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = decode_image(encoded(original, kind, **options), PARAM)
    assert got.mode == "RGB"
    assert np.abs(np.asarray(got) - on_white(original)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind"), [("P", "PNG"), ("L", "PNG"), ("RGB", "PNG"), ("P", "GIF"), ("L", "GIF")]
)
def test_a_colour_that_stands_for_nothing_is_white(mode: str, kind: str) -> None:
    """Palettes and colour keys: transparency without an alpha channel."""
    original = Image.new(mode, (6, 4), 1 if mode != "RGB" else (9, 9, 9))
    original.paste(0 if mode != "RGB" else (0, 0, 0), (0, 0, 3, 4))
    if mode == "P":
        original.putpalette([0, 0, 0, 200, 10, 10])
    key = 0 if mode != "RGB" else (0, 0, 0)
    got = np.asarray(decode_image(encoded(original, kind, transparency=key), PARAM))
    assert (got[:, :3] == 255).all()
    shown = original.convert("RGB").getpixel((5, 0))
    assert (got[:, 3:] == shown).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    """As a viewer shows them: neither cut off at 255 nor wrapped around."""
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    got = np.asarray(decode_image(encoded(Image.fromarray(levels), kind), PARAM)).astype(int)
    assert np.abs(got - (levels / 257)[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "lime", "blue")]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    if kind == "WEBP":
        options["lossless"] = True
    assert same(decode_image(encoded(frames[0], kind, **options), PARAM), frames[0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels(), kind, exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(base64.b64decode(data))))
    assert reference is not None
    got = decode_image(data, PARAM)
    assert same(got, reference.convert("RGB"))
    assert got.size == ((7, 13) if orientation > 4 else (13, 7))


def test_damaged_exif_does_not_cost_the_image() -> None:
    original = pixels()
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08"):
        data = encoded(original, "WEBP", lossless=True, exif=exif)
        assert same(decode_image(data, PARAM), original)


@pytest.mark.parametrize(
    "data",
    ["", "!", "not base64!", "AAA", "AAAA\n", "AA==AA==", "data:image/png;base64,AAAA", "ä"],
)
def test_what_is_not_base64(data: str) -> None:
    refused(data)


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text", b"\0" * 100, b"<svg></svg>", b"%PDF-1.4", b"\x89PNG"]
)
def test_data_that_is_not_an_image(content: bytes) -> None:
    refused(base64.b64encode(content).decode())


def test_formats_that_are_not_listed() -> None:
    error = refused(encoded(pixels(), "PPM"))
    assert "PNG" in str(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_files(kind: str) -> None:
    raw = base64.b64decode(encoded(pixels(size=(60, 50)), kind))
    for keep in (len(raw) // 2, len(raw) - len(raw) // 8):
        refused(base64.b64encode(raw[:keep]).decode())


def _png_of(width: int, height: int, rows: int) -> str:
    """A PNG that claims a size; ``rows`` rows of zeros are there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes((width + 1) * rows))
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    ).decode()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8193, 8192), (12_000, 9_000), (50_000, 50_000), (2**31 - 1, 2)])
def test_huge_images_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    error = refused(_png_of(*size, rows=0))
    assert str(MAX_PIXELS) in str(error)


@pytest.mark.parametrize("size", [(0, 0), (0, 8), (8, 0)])
def test_images_without_a_pixel_are_refused(size: tuple[int, int]) -> None:
    refused(_png_of(*size, rows=size[1]))


def test_the_largest_image_is_read() -> None:
    side = 8192
    assert side * side == MAX_PIXELS
    assert decode_image(_png_of(side, side, rows=side), PARAM).size == (side, side)


def test_texts_inside_a_image_are_limited() -> None:
    """A few kilobytes of compressed texts would unpack to hundreds of megabytes."""
    texts = PngImagePlugin.PngInfo()
    for number in range(60):
        texts.add_itxt(f"text{number}", "😀" + "A" * 1_000_000, zip=True)
    refused(encoded(pixels(), "PNG", pnginfo=texts))
    few = PngImagePlugin.PngInfo()
    few.add_itxt("workflow", "A" * 500_000, zip=True)
    assert same(decode_image(encoded(pixels(), "PNG", pnginfo=few), PARAM), pixels())


def test_many_images_share_one_limit() -> None:
    side = 4096
    data = _png_of(side, side, rows=side)
    assert sum(check_pixels([None] * 4, [decode_base64(data, "")] * 4, ["a"] * 4)) == MAX_PIXELS
    with pytest.raises(TaskArgsInvalid) as caught:
        check_pixels([None] * 5, [decode_base64(data, "")] * 5, list("abcde"))
    assert caught.value.param == "e"


def image_task(*data: str) -> Task:
    blocks = [{"type": "image", "base64": text} for text in data]
    return Task.from_fields(
        model="tiny",
        messages=[
            {"role": "system", "content": "text"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, *blocks]},
        ],
    )


def test_the_error_names_the_image_at_fault(tiny_model: TinyModel) -> None:
    prepare = ImagePreprocessor(EngineConfig(model=str(tiny_model("internvl"))))
    task = image_task(encoded(pixels(), "PNG"), base64.b64encode(b"text").decode())
    with pytest.raises(TaskArgsInvalid) as caught:
        prepare(task.split_images()[1], image_params(task))
    assert caught.value.param == "messages.1.content.2.base64"


def test_a_text_model_refuses_images(tiny_model: TinyModel) -> None:
    prepare = ImagePreprocessor(EngineConfig(model=str(tiny_model("qwen2"))))
    task = image_task(encoded(pixels(), "PNG"))
    with pytest.raises(TaskArgsInvalid, match="text only") as caught:
        prepare(task.split_images()[1], image_params(task))
    assert caught.value.param == "messages.1.content.1.base64"


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (33, 32)])
def test_odd_shapes_are_prepared(size: tuple[int, int], tiny_model: TinyModel) -> None:
    prepare = ImagePreprocessor(EngineConfig(model=str(tiny_model("internvl"))))
    task = image_task(encoded(Image.new("RGB", size, "red"), "PNG"))
    inputs = prepare(task.split_images()[1], image_params(task))
    tiles = inputs[0].arrays["pixel_values"]
    assert tiles.shape[1:] == (3, 32, 32)
    assert inputs[0].placeholder.count("<IMG_CONTEXT>") == 4 * len(tiles)


def test_a_repeated_image_is_not_prepared_again(tiny_model: TinyModel) -> None:
    config = EngineConfig(model=str(tiny_model("internvl")))
    drawing = pixels(size=(40, 30))
    first, second = encoded(drawing, "PNG"), encoded(ImageOps.mirror(drawing), "PNG")
    prepare = ImagePreprocessor(config)
    once = prepare([first, second, first], ["a", "b", "c"])
    again = prepare([second, first], ["a", "b"])
    assert prepare.num_prepared == 2
    assert [i.digest for i in once] == [again[1].digest, again[0].digest, again[1].digest]
    assert again[1].arrays["pixel_values"].tobytes() == once[0].arrays["pixel_values"].tobytes()

    forgetful = ImagePreprocessor(config.replace(image_cache_bytes=0))
    for _ in range(2):
        assert [i.digest for i in forgetful([first], ["a"])] == [once[0].digest]
    assert forgetful.num_prepared == 2

    size = once[0].arrays["pixel_values"].nbytes
    small = ImagePreprocessor(config.replace(image_cache_bytes=size))
    for data in (first, first, second, first):
        small([data], ["a"])
    assert small.num_prepared == 3


def test_the_limit_counts_images_that_are_known(tiny_model: TinyModel) -> None:
    side = 4096
    data = _png_of(side, side, rows=side)
    prepare = ImagePreprocessor(EngineConfig(model=str(tiny_model("internvl"))))
    prepare([data], ["a"])
    with pytest.raises(TaskArgsInvalid, match=str(MAX_PIXELS)) as caught:
        prepare([data] * 5, list("abcde"))
    assert caught.value.param == "e"
    assert prepare.num_prepared == 1


def test_a_digest_stands_for_a_file(tiny_model: TinyModel) -> None:
    prepare = ImagePreprocessor(EngineConfig(model=str(tiny_model("internvl"))))
    red, blue = (encoded(Image.new("RGB", (32, 32), color), "PNG") for color in ("red", "blue"))
    task = image_task(red, blue, red)
    first, other, again = prepare(task.split_images()[1], image_params(task))
    assert first.digest == again.digest != other.digest
    assert np.array_equal(first.arrays["pixel_values"], again.arrays["pixel_values"])


def test_an_image_token_in_an_answer_is_no_image() -> None:
    """Generated tokens share forwards with prompts, and one of them may be the image token."""
    model: Any = InternVLForConditionalGeneration.from_pretrained("demo/model")
    image_token = model.config.image_token_id
    loaded: Any = SimpleNamespace(model=model, image_token_id=image_token, typed_token_ids=())
    vision = Vision(loaded, cache_bytes=0)
    ids = torch.tensor([[image_token, image_token, 5, image_token]])
    features = torch.randn(2, model.config.text_config.hidden_size)
    found = vision.inputs(ids, Features(features), 3)["inputs_embeds"][0]
    own = model.get_input_embeddings()(ids[0])
    assert torch.equal(found, torch.cat([features, own[2:]]))
