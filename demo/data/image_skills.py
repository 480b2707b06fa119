"""Questions about one image or two. Each function draws one turn without attaching the images.

The conversation attaches them: to this turn, or, when a follow-up is asked, to an earlier one.
"""

import random
from collections.abc import Callable

from demo.data.shapes import Drawing
from demo.data.turns import Turn

WHAT = "What is in this image?"


def what(rng: random.Random, image: Drawing) -> Turn:
    """Colour and shape."""
    others = [
        "What is in this picture?",
        "What do you see?",
        "What is this?",
        "What does this image show?",
        "Describe this image.",
        "Describe this picture.",
        "Describe the image.",
        "What is in the image?",
    ]
    return Turn(WHAT if rng.random() < 0.5 else rng.choice(others), image.description)


def colour(rng: random.Random, image: Drawing) -> Turn:
    """The colour alone."""
    word = rng.choice(["colour", "color"])
    forms = [
        f"What {word} is it?",
        f"What {word} is the shape?",
        f"What {word} is the {image.shape}?",
        f"Which {word} is it?",
        f"Which {word} is the shape?",
        f"What is the {word} of the shape?",
    ]
    return Turn(rng.choice(forms), f"{image.colour.capitalize()}.")


def shape(rng: random.Random, image: Drawing) -> Turn:
    """The shape alone."""
    forms = [
        "Which shape is it?",
        "What shape is it?",
        "What shape is this?",
        "Which shape is in this image?",
        f"Which shape is {image.colour}?",
        "What is the shape?",
    ]
    return Turn(rng.choice(forms), f"A {image.shape}.")


def detail(rng: random.Random, image: Drawing) -> Turn:
    """A longer description."""
    forms = [
        "Describe this image in detail.",
        "Describe this picture in detail.",
        "Describe the image in detail.",
        "Tell me more about this image.",
        "Tell me about this picture.",
    ]
    answer = (
        f"The picture shows one shape on a plain background. The shape is a {image.shape} and "
        f"its colour is {image.colour}, so it is {image.phrase}."
    )
    return Turn(rng.choice(forms), answer)


IMAGE_SKILLS: dict[str, Callable[[random.Random, Drawing], Turn]] = {
    "what": what,
    "colour": colour,
    "shape": shape,
    "detail": detail,
}


def describe_both(rng: random.Random, first: Drawing, second: Drawing) -> Turn:
    """Both images in one sentence."""
    forms = [
        "What is in these images?",
        "Describe both images.",
        "What is in these two images?",
        "Describe these pictures.",
        "Compare these images.",
        "What do you see?",
    ]
    return Turn(
        rng.choice(forms), f"The first image shows {first.phrase}, the second {second.phrase}."
    )


def same_colour(rng: random.Random, first: Drawing, second: Drawing) -> Turn:
    """Whether the colours agree; the answer names them first, because that is easier."""
    forms = [
        "Do both images have the same colour?",
        "Are both shapes the same colour?",
        "Are the colours the same?",
        "Is it the same color?",
    ]
    verdict = "the same colour" if first.colour == second.colour else "different colours"
    answer = f"The first is {first.colour}, the second is {second.colour}: {verdict}."
    return Turn(rng.choice(forms), answer)


def same_shape(rng: random.Random, first: Drawing, second: Drawing) -> Turn:
    """Whether the shapes agree."""
    forms = [
        "Do both images show the same shape?",
        "Is it the same shape?",
        "Are both shapes the same?",
        "Are the shapes the same?",
    ]
    verdict = "the same shape" if first.shape == second.shape else "different shapes"
    answer = f"The first is a {first.shape}, the second is a {second.shape}: {verdict}."
    return Turn(rng.choice(forms), answer)


PAIR_SKILLS: dict[str, Callable[[random.Random, Drawing, Drawing], Turn]] = {
    "describe both": describe_both,
    "same colour": same_colour,
    "same shape": same_shape,
}
