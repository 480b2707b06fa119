"""The image generator: reproducible, rightly labelled, and hard to confuse."""

import hashlib
import math

import numpy as np
import pytest

from demo.data.shapes import BACKGROUND_DISTANCE, COLOURS, SHAPES, draw_image

SEEDS = range(300)


def test_same_seed_same_pixels() -> None:
    for seed in SEEDS[:30]:
        first, second = draw_image(seed), draw_image(seed)
        assert first.image.tobytes() == second.image.tobytes()
        assert (first.colour, first.shape) == (second.colour, second.shape)


def test_seeds_give_different_images() -> None:
    digests = {hashlib.sha256(draw_image(seed).image.tobytes()).digest() for seed in SEEDS}
    assert len(digests) == len(SEEDS)


def test_every_label_occurs_about_equally_often() -> None:
    images = [draw_image(seed) for seed in range(2000)]
    for colour in COLOURS:
        assert 180 < sum(p.colour == colour for p in images) < 320  # 250 expected
    for shape in SHAPES:
        assert 320 < sum(p.shape == shape for p in images) < 480  # 400 expected


@pytest.mark.parametrize("seed", SEEDS)
def test_the_named_colour_is_there_and_no_other_is_nearer(seed: int) -> None:
    drawing = draw_image(seed)
    pixels = np.asarray(drawing.image, dtype=np.float64).reshape(-1, 3)
    background = pixels[[0, -1]].mean(axis=0)
    others = pixels[np.linalg.norm(pixels - background, axis=1) > BACKGROUND_DISTANCE / 2]
    # The shape's pixels are those unlike the corners; blur and noise average out.
    named = min(COLOURS, key=lambda colour: math.dist(COLOURS[colour], np.median(others, axis=0)))
    assert named == drawing.colour


def test_colours_are_further_apart_than_their_jitter() -> None:
    values = list(COLOURS.values())
    nearest = min(math.dist(a, b) for i, a in enumerate(values) for b in values[i + 1 :])
    assert nearest > 2 * 14 * math.sqrt(3)


def test_colour_and_shape_can_be_chosen() -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            drawing = draw_image(7, colour=colour, shape=shape)
            assert (drawing.colour, drawing.shape) == (colour, shape)


def test_description() -> None:
    assert draw_image(0, colour="red", shape="circle").description == "A red circle."
    assert draw_image(0, colour="orange", shape="star").description == "An orange star."


def test_size_is_within_the_published_range() -> None:
    for seed in SEEDS:
        assert all(96 <= side <= 168 for side in draw_image(seed).image.size)


def test_easiest_images_are_plain() -> None:
    drawing = draw_image(3, difficulty=0.0)
    assert drawing.image.size == (128, 128)
    assert drawing.image.getpixel((0, 0)) == (128, 128, 128)
