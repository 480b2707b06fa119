"""The picture generator: reproducible, rightly labelled, and hard to confuse."""

import hashlib
import math

import numpy as np
import pytest

from demo.data.shapes import BACKGROUND_DISTANCE, COLOURS, SHAPES, draw_picture

SEEDS = range(300)


def test_same_seed_same_pixels() -> None:
    for seed in SEEDS[:30]:
        first, second = draw_picture(seed), draw_picture(seed)
        assert first.image.tobytes() == second.image.tobytes()
        assert (first.colour, first.shape) == (second.colour, second.shape)


def test_seeds_give_different_pictures() -> None:
    digests = {hashlib.sha256(draw_picture(seed).image.tobytes()).digest() for seed in SEEDS}
    assert len(digests) == len(SEEDS)


def test_every_label_occurs_about_equally_often() -> None:
    pictures = [draw_picture(seed) for seed in range(2000)]
    for colour in COLOURS:
        assert 180 < sum(p.colour == colour for p in pictures) < 320  # 250 expected
    for shape in SHAPES:
        assert 320 < sum(p.shape == shape for p in pictures) < 480  # 400 expected


@pytest.mark.parametrize("seed", SEEDS)
def test_the_named_colour_is_there_and_no_other_is_nearer(seed: int) -> None:
    picture = draw_picture(seed)
    pixels = np.asarray(picture.image, dtype=np.float64).reshape(-1, 3)
    background = pixels[[0, -1]].mean(axis=0)
    others = pixels[np.linalg.norm(pixels - background, axis=1) > BACKGROUND_DISTANCE / 2]
    # The shape's pixels are those unlike the corners; blur and noise average out.
    named = min(COLOURS, key=lambda colour: math.dist(COLOURS[colour], np.median(others, axis=0)))
    assert named == picture.colour


def test_colours_are_further_apart_than_their_jitter() -> None:
    values = list(COLOURS.values())
    nearest = min(math.dist(a, b) for i, a in enumerate(values) for b in values[i + 1 :])
    assert nearest > 2 * 14 * math.sqrt(3)


def test_colour_and_shape_can_be_chosen() -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            picture = draw_picture(7, colour=colour, shape=shape)
            assert (picture.colour, picture.shape) == (colour, shape)


def test_description() -> None:
    assert draw_picture(0, colour="red", shape="circle").description == "A red circle."
    assert draw_picture(0, colour="orange", shape="star").description == "An orange star."


def test_size_is_within_the_published_range() -> None:
    for seed in SEEDS:
        assert all(96 <= side <= 168 for side in draw_picture(seed).image.size)


def test_easiest_pictures_are_plain() -> None:
    picture = draw_picture(3, difficulty=0.0)
    assert picture.image.size == (128, 128)
    assert picture.image.getpixel((0, 0)) == (128, 128, 128)
